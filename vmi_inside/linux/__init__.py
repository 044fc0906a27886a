"""Linux: one small file for each table, in folders by subsystem; here what all share, and the kernel as a whole."""
