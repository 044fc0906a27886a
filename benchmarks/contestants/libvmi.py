"""LibVMI (the PyPI wheel, its FILE driver) on the RAM file of the running guest, with a profile that vmi-inside made.

It has no tables of its own: its documentation's example of a process list is followed, one read a member. Sockets and
open files are not written there, nor here. Its FILE driver has no registers and does not find a current kernel's page
tables; so what is read is told it by physical addresses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.contestants import Absent
from benchmarks.scene import KIB, MIB, SYMBOLS, Scene


class Contestant:
    """See `benchmarks.contestants`."""

    def __init__(self, scene: Scene) -> None:
        if not scene.ram:
            raise Absent("the guest's RAM is no file that begins at address 0 without holes")
        self.scene = scene

    def attach(self) -> None:
        import libvmi

        entry = Path(self.scene.libvmi).read_text()
        self.offsets = {
            key.strip(): int(value.strip(" ;"), 0)
            for key, _, value in (line.partition("=") for line in entry.splitlines())
            if value.strip(" ;").startswith("0x")
        }
        body = "\n".join(line for line in entry[entry.index("{") :].splitlines() if "#" not in line)
        # The name is written into the configuration, where a slash is a syntax error.
        os.chdir(self.scene.folder)
        if not Path("ram").is_symlink():
            Path("ram").symlink_to(self.scene.ram)
        self.vmi = libvmi.Libvmi(
            "ram", init_flags=libvmi.INIT_DOMAINNAME, config_mode=libvmi.VMIConfig.STRING, config=body,
            partial=False,
        )  # fmt: skip

    def processes(self) -> Any:
        vmi, offsets = self.vmi, self.offsets
        tasks, pid, name = offsets["linux_tasks"], offsets["linux_pid"], offsets["linux_name"]
        head = vmi.translate_ksym2v("init_task") + tasks
        found, at = [], head
        while True:
            at = vmi.read_addr_va(at, 0)
            if at == head or len(found) > 1 << 20:
                return found
            found.append((vmi.read_32_va(at - tasks + pid, 0), vmi.read_str_va(at - tasks + name, 0)))

    def modules(self) -> Any:
        vmi = self.vmi
        head = vmi.translate_ksym2v("modules")
        found, at = [], head
        while True:
            at = vmi.read_addr_va(at, 0)
            if at == head or len(found) > 1 << 20:
                return found
            found.append(vmi.read_str_va(at + 16, 0))  # module.name stands behind module.list

    def symbols(self) -> Any:
        return [self.vmi.translate_ksym2v(name) for name in SYMBOLS]

    def read_page(self) -> Any:
        return self.vmi.read_pa(self.scene.next() - self.scene.text + self.scene.text_physical, 4 * KIB)[0]

    def read_bulk(self) -> Any:
        return self.vmi.read_pa(self.scene.next() - self.scene.text + self.scene.text_physical, MIB)[0]

    def plain(self, question: str, answer: Any) -> Any:
        if question == "processes":
            return {pid: (None, name) for pid, name in answer}
        if question == "modules":
            return set(answer)
        return dict(zip(SYMBOLS, answer, strict=True)) if question == "5 symbols" else bytes(answer)

    @staticmethod
    def command(scene: Scene, question: str) -> list[str] | None:
        return None
