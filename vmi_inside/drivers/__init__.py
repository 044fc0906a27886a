"""Ways of reaching guest memory: one file each, all giving a `PhysicalMemory`."""
