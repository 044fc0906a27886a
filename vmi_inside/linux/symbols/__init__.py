"""The kernel's code and what it is called: symbols, modules and their types, and what unwinds its stacks."""
