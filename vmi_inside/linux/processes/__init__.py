"""Processes and threads, what belongs to each (credentials, open files, stacks ...), and the groups they are in."""
