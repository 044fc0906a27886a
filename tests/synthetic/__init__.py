"""A guest made of NumPy arrays: RAM with a hole, x86_64 page tables, and a kernel's structs planted through them."""

from tests.synthetic.guest import SyntheticGuest
from tests.synthetic.layout import Layout, SyntheticProfile
from tests.synthetic.linux import LinuxGuest
from tests.synthetic.ram import CountingMemory, PageTables, Ram

__all__ = ["CountingMemory", "Layout", "LinuxGuest", "PageTables", "Ram", "SyntheticGuest", "SyntheticProfile"]
