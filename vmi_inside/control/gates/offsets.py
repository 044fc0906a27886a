"""Where the code of a gate finds things in this kernel: `current`, and members of structs that hooks are called with.

Knows include/linux/sched.h, cred.h, cgroup-defs.h, net.h, socket.h, fs.h, dcache.h, include/net/sock.h and
fs/mount.h, 5.10 to 7.2, by probing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside.control.sleepers import current_offset
from vmi_inside.errors import NoMember, NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.types import MASK64

_TASK: Final = {
    "tgid": ("tgid",),
    "flags": ("flags",),
    "leader": ("group_leader",),
    "born": ("start_boottime",),
    "cred": ("cred",),
    "css_set": ("cgroups",),
}
_FILES: Final = {
    "file_dentry": ("file", "f_path.dentry"),
    "file_mount": ("file", "f_path.mnt"),
    "inode": ("dentry", "d_inode"),
    "parent": ("dentry", "d_parent"),
    "number": ("inode", "i_ino"),
    "generation": ("inode", "i_generation"),
    "block": ("inode", "i_sb"),
    "device": ("super_block", "s_dev"),
    "mount": ("mount", "mnt"),
    "above": ("mount", "mnt_parent"),
    "mountpoint": ("mount", "mnt_mountpoint"),
}


@dataclass(frozen=True, slots=True)
class Offsets:
    """Offsets in bytes; `current` is an address relative to gs. What the kernel does not have is -1."""

    current: int
    tgid: int
    flags: int
    leader: int
    born: int
    cred: int
    css_set: int
    uid: int
    euid: int
    group: int  # css_set.dfl_cgrp
    level: int  # cgroup.level
    ancestors: int  # cgroup.ancestors, pointers; or ancestor_ids, numbers
    ancestor_pointers: bool
    serial: int  # cgroup.self.serial_nr
    sock: int  # socket.sk
    kind: int  # socket.type
    family: int  # sock_common.skc_family, 2 bytes
    protocol: int  # sock.sk_protocol, 2 bytes
    peer: int  # sock_common.skc_daddr, 4 bytes
    peer6: int  # sock_common.skc_v6_daddr, 16 bytes
    name: int  # msghdr.msg_name
    name_size: int  # msghdr.msg_namelen
    private: int  # file.private_data
    file_dentry: int  # file.f_path
    file_mount: int
    inode: int  # dentry.d_inode
    parent: int  # dentry.d_parent
    number: int  # inode.i_ino, 8 bytes
    generation: int  # inode.i_generation, 4 bytes
    block: int  # inode.i_sb
    device: int  # super_block.s_dev, 4 bytes
    mount: int  # mount.mnt, which files point to
    above: int  # mount.mnt_parent
    mountpoint: int  # mount.mnt_mountpoint


def find_offsets(kernel: Kernel) -> Offsets:
    """All of them. Raises `Unsupported` where the kernel lacks something that every gate needs."""
    try:
        task, cred, cgroup = kernel.struct("task_struct"), kernel.struct("cred"), kernel.struct("cgroup")
        sock, socket, message = kernel.struct("sock"), kernel.struct("socket"), kernel.struct("msghdr")
        found = {name: task.member(*paths).offset for name, paths in _TASK.items()}
        six = "__sk_common.skc_v6_daddr"
        # `ancestors` since 6.1: pointers instead of ids.
        pointers = cgroup.has("ancestors")
        return Offsets(
            current=_current(kernel),
            **found,
            uid=cred.member("uid.val").offset,
            euid=cred.member("euid.val").offset,
            group=kernel.struct("css_set").member("dfl_cgrp").offset,
            level=cgroup.member("level").offset,
            ancestors=cgroup.member("ancestors", "ancestor_ids").offset,
            ancestor_pointers=pointers,
            serial=cgroup.member("self.serial_nr").offset,
            sock=socket.member("sk").offset,
            kind=socket.member("type").offset,
            family=sock.member("__sk_common.skc_family").offset,
            protocol=sock.member("sk_protocol").offset,
            peer=sock.member("__sk_common.skc_daddr").offset,
            peer6=sock.member(six).offset if sock.has(six) else -1,
            name=message.member("msg_name").offset,
            name_size=message.member("msg_namelen").offset,
            private=kernel.struct("file").member("private_data").offset,
            **{name: kernel.struct(of).member(path).offset for name, (of, path) in _FILES.items()},
        )
    except (NoMember, NoSymbol) as error:
        raise Unsupported(f"no gates for this kernel: {error}") from None


def _current(kernel: Kernel) -> int:
    """What to add to gs to find the pointer to the task that runs.

    The per-CPU area began at 0 until 6.14; since, its symbols are full addresses, of which the lower 32 bits serve,
    signed.
    """
    at = current_offset(kernel)
    if at >> 31 not in (0, MASK64 >> 31):
        raise Unsupported(f"no gates for this kernel: `current` is at {at:#x}, out of reach of gs")
    return at
