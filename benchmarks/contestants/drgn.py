"""drgn with the kernel's own debug information, on the RAM file of the running guest.

drgn cannot attach to a guest by itself. It gets what it would need for it: memory segments over a mapping of the RAM
file, and the VMCOREINFO that vmi-inside found. Structs are read whole, as its documentation advises for speed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

from benchmarks.contestants import Absent
from benchmarks.scene import KIB, MIB, SYMBOLS, Scene

_LISTEN = 10


class Contestant:
    """See `benchmarks.contestants`."""

    def __init__(self, scene: Scene) -> None:
        if not scene.vmlinux:
            raise Absent("no debug information of the guest's kernel")
        if not scene.ram_file:
            raise Absent("the guest's RAM is no file")
        self.scene = scene

    def attach(self) -> None:
        import drgn

        handle = os.open(self.scene.ram_file, os.O_RDONLY)
        self.mapped = memoryview(mmap.mmap(handle, 0, prot=mmap.PROT_READ))
        os.close(handle)
        self.program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        for start, size, offset in self.scene.segments:
            self.program.add_memory_segment(start, size, self._reader(offset), True)
        with open(self.scene.vmcoreinfo, "rb") as file:
            self.program.set_linux_kernel_custom(file.read(), True)
        self.program.load_debug_info([self.scene.vmlinux])

    def _reader(self, base: int) -> Callable[[int, int, int, bool], memoryview]:
        mapped = self.mapped
        return lambda _address, count, offset, _physical: mapped[base + offset : base + offset + count]

    def processes(self) -> Any:
        from drgn.helpers.linux import for_each_task

        found = []
        for each in for_each_task(self.program):
            task = each[0].read_()
            found.append((
                task.tgid.value_(), task.real_parent.tgid.value_(), task.comm.string_(),
                task.real_cred.uid.val.value_(), task.member_("__state").value_(), task.pid.value_(),
            ))  # fmt: skip
        return found

    def sockets(self) -> Any:
        from drgn import cast
        from drgn.helpers.linux import for_each_file, for_each_task

        program, found, seen = self.program, [], set()
        operations = program["socket_file_ops"].address_of_().value_()
        for task in for_each_task(program):
            pid = task.tgid.value_()
            for number, file in for_each_file(task):
                if file.f_op.value_() != operations:
                    continue
                socket = cast("struct socket *", file.private_data)
                sock = socket.sk
                if not sock:
                    continue
                common = sock.member_("__sk_common").read_()
                seen.add(sock.value_())
                found.append((
                    pid, number, common.skc_family.value_(), sock.sk_protocol.value_(), common.skc_state.value_(),
                    common.skc_num.value_(), common.skc_dport.value_(), common.skc_rcv_saddr.value_(),
                    common.skc_daddr.value_(),
                ))  # fmt: skip
        return found

    def files(self) -> Any:
        from drgn.helpers.linux import d_path, for_each_file, for_each_task

        found = []
        for task in for_each_task(self.program):
            pid = task.tgid.value_()
            for number, file in for_each_file(task):
                found.append((pid, number, d_path(file.f_path)))
        return found

    def modules(self) -> Any:
        from drgn.helpers.linux import for_each_module

        return [(module.name.string_(), module.value_()) for module in for_each_module(self.program)]

    def symbols(self) -> Any:
        return [self.program.symbol(name).address for name in SYMBOLS]

    def read_page(self) -> Any:
        return self.program.read(self.scene.next(), 4 * KIB)

    def read_bulk(self) -> Any:
        return self.program.read(self.scene.next(), MIB)

    def plain(self, question: str, answer: Any) -> Any:
        if question == "processes":
            return {row[0]: (row[1], row[2].decode(errors="replace")) for row in answer if row[0] == row[5]}
        if question == "sockets":
            return {row[5] for row in answer if row[2] in (2, 10) and row[3] == 6 and row[4] == _LISTEN}
        if question == "open files":
            found: dict[int, int] = {}
            for pid, _, _ in answer:
                found[pid] = found.get(pid, 0) + 1
            return found
        if question == "modules":
            return {name.decode() for name, _ in answer}
        return dict(zip(SYMBOLS, answer, strict=True)) if question == "5 symbols" else bytes(answer)

    @staticmethod
    def command(scene: Scene, question: str) -> list[str] | None:
        return None
