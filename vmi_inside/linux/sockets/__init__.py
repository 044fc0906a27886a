"""Sockets: found in the kernel's hash tables and in descriptor tables, joined to the processes that hold them."""

from vmi_inside.linux.sockets.table import OpenSockets, process_open_sockets

__all__ = ["OpenSockets", "process_open_sockets"]
