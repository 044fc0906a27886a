"""Memory management: the regions and page tables of processes, and what the system's memory is used for."""
