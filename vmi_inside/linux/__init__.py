"""Linux: one small file for each table."""
