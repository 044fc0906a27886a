"""Interfaces, addresses, routes, neighbours and packet filters of all network namespaces; sockets are `sockets`'."""
