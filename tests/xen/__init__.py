"""Tests on a real Xen host, booted once: what is seen and done from its dom0, with PV, PVH and HVM guests.

Everything in dom0 is done in one Python there: starting one takes this emulation many seconds. What takes longer than
the rest together is left out without `--xen-long`. The files run in the order of their names: guests end in the last.
"""
