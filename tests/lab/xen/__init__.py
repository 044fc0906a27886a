"""A Xen host in QEMU: Debian's hypervisor and dom0 under TCG, PV and PVH guests in it.

`parts` fetches, `image` packs, `host` boots; `inside/` is what runs in dom0.
"""
