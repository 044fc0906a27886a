"""What stands in memory, byte by byte: to be read, written as a core, or looked through."""
