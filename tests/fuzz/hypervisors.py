"""Targets that are what a hypervisor says: libvirt's XML of a domain, QEMU's machine protocol, Xen's structs and store.

Knows a good answer of each, without the hypervisor: a socket that answers as QEMU does, libraries that fill in what
Xen's would, frames of a PV guest in a file of ours. What must hold is `watch`'s matter.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import numpy as np

from tests import test_domains, test_drivers_monitor, test_drivers_qmp, test_drivers_xen
from tests.fuzz import documents
from tests.fuzz.mutate import TEXTS, WORDS, mutate
from tests.fuzz.parsers import Bytes
from tests.fuzz.watch import Violation
from vmi_inside import domains
from vmi_inside.cli.escape import visible
from vmi_inside.drivers import qmp, xen, xenlib, xenpv
from vmi_inside.drivers.xenmachine import XenMachine, XenVcpus
from vmi_inside.errors import VmiError
from vmi_inside.memory import PhysicalMemory

_PAGE: Final = 4096


def _read(memory: PhysicalMemory, random: Random) -> None:
    """Look at the runs, and at some pages in them and elsewhere."""
    if any(a.end > b.start for a, b in pairwise(memory.runs)):
        raise Violation(f"runs overlap: {memory.runs[:4]}")
    wanted = [run.start & ~0xFFF for run in memory.runs[:8]] + [random.getrandbits(44) & ~0xFFF]
    out = np.ones((len(wanted), 64), np.uint8)
    ok = memory.gather(np.array(wanted, np.uint64), out)
    if out[~ok].any():
        raise Violation("gather: an unreadable row is not zeroed")
    for at in wanted:
        one = memory.read(at, _PAGE)
        if one is not None and len(one) != _PAGE:
            raise Violation(f"read: {len(one)} bytes for {_PAGE}")


# -- libvirt ----------------------------------------------------------------------------------------------------------

#: As libvirt 9 has them, and one with entities, which nobody may expand.
_XML: Final = (
    test_domains.XML.format(more="", devices="").encode(),
    test_domains.XML.format(more="<maxMemory slots='2'>8388608</maxMemory>", devices="<memory model='dimm'/>").encode(),
    b"<!DOCTYPE domain [" + b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 12))
    + b'<!ENTITY e0 "1024">]><domain><memory>&e11;</memory><os><type arch="x86_64" machine="q35"/></os></domain>',
)  # fmt: skip


def _domain_xml(raw: bytes, random: Random) -> None:
    runs = domains.xml_runs(raw.decode("utf-8", "replace"))
    if any(run.size <= 0 for run in runs) or any(a.end > b.start for a, b in pairwise(runs)):
        raise Violation(f"runs of an XML: {runs[:4]}")


def _wrong_xml(raw: bytes, random: Random) -> bytes:
    """An example with other numbers and words in it, one that is mutated, or nothing but depth and length."""
    kind = random.random()
    if kind < 0.04:
        return random.choice((b"<a>", b"<domain><memory>", b"<a b='")) * random.choice((100, 10_000, 200_000))
    if kind < 0.08:
        deep = random.choice((100, 10_000, 200_000))
        return raw.replace(b"<os>", b"<a>" * deep + b"</a>" * deep + b"<os>")
    if kind < 0.6:
        old = random.choice((b"4194304", b"KiB", b"x86_64", b"pc-q35-7.2", b"q35", b"1024"))
        number = random.choice((*(b"%d" % word for word in (*WORDS, 10**30, -1)), b"9" * 5000))
        strange = ("²", "٣", "1e9", " 7 ", "bytes", "GiB", "pc-q35-99999999999999999999.1", "pc-i440fx-2.1", "microvm")
        return raw.replace(old, random.choice((number, *(one.encode() for one in strange), *TEXTS)))
    return mutate(raw, random)


# -- QEMU's machine protocol ------------------------------------------------------------------------------------------

_COMMANDS: Final[dict[str, Any]] = {
    "greeting": json.loads(test_drivers_qmp.GREETING),
    "qmp_capabilities": {},
    "query-name": {"name": "web01"},
    "query-status": {"status": "running", "running": True, "singlestep": False},
    "query-uuid": {"UUID": "5e9a4fc5-8dd3-4a9b-8e4a-7ffd9f0f2f5c"},
    "human-monitor-command": test_drivers_monitor.MTREE,
    "stop": {},
    "cont": {},
}


def _qmp(folder: Path) -> Callable[[bytes, Random], None]:
    """A QEMU that is honest but for its answer to one kind of command, which is `raw`."""
    path = folder / "qmp"

    def run(raw: bytes, random: Random) -> None:
        liar = random.choice(list(_COMMANDS))

        def say(line: bytes) -> bytes:
            try:
                asked = json.loads(line)
            except ValueError:
                return b""
            command = asked["execute"]
            if command == liar:
                return raw if random.random() < 0.2 else b'{"return": ' + raw + b', "id": ID}\n'
            answer = _COMMANDS[command]
            if command == "human-monitor-command":
                words = asked["arguments"]["command-line"]
                answer = test_drivers_monitor.MEMDEV if words == "info memdev" else answer
                if words.startswith("gpa2hva"):
                    answer = "Host virtual address for 0x0 (pc.ram) is 0x7f0000000000"
            return json.dumps({"return": answer}).encode()[:-1] + b', "id": ID}\n'

        greeting = raw + b"\n" if liar == "greeting" else test_drivers_qmp.GREETING
        brief = partial(qmp.Qmp, timeout=0.1)

        def asked(work: Callable[[str], None]) -> None:
            path.unlink(missing_ok=True)
            with test_drivers_qmp.server(path, greeting, say) as where, suppress(VmiError):
                work(where)

        def opened(where: str) -> None:
            memory, _ = qmp.open_qmp(where, 0.1)
            try:
                _read(memory, random)
            finally:
                memory.close()

        def machine(where: str) -> None:
            guest = qmp.QmpGuest(where, "", "running", os.getpid())
            with mock.patch.object(qmp, "Qmp", brief):
                qmp.open_machine(guest).close()

        def levers(where: str) -> None:
            with mock.patch.object(qmp, "Qmp", brief):
                random.choice((
                    lambda: qmp.QmpLevers(where).paused(), lambda: qmp.QmpLevers(where).pause(),
                    lambda: qmp.QmpLevers(where).resume(), lambda: qmp.QmpLevers(where).hmp("info registers -a"),
                ))()  # fmt: skip

        with mock.patch.object(qmp, "_check_program", return_value=None):
            for work in random.sample((opened, machine, levers), 2):
                asked(work)

    return run


def _wrong_json(raw: bytes, random: Random) -> bytes:
    """One line: an example made wrong, or length alone."""
    if random.random() < 0.03:
        return b'"' + b"x" * random.choice((1 << 16, 1 << 20, 12 << 20)) + b'"'
    return documents.spoiled(raw, random).replace(b"\n", b" ") or b"0"


# -- Xen --------------------------------------------------------------------------------------------------------------


def _pv(raw: bytes, random: Random) -> None:
    """All frames of a PV guest: what it shares with Xen, page tables, its own table; some of them change meanwhile."""
    ram = test_drivers_xen.Ram(16, info=test_drivers_xen.info(kind="pv", shared_info=1))
    raw = raw.ljust(16 * _PAGE, b"\0")[: 16 * _PAGE]
    ram.file[:] = raw
    memory = xenpv.PvMemory(ram, xen.Domain("pv", ram.info))  # type: ignore[arg-type]
    try:
        _read(memory, random)
        memory.entries(np.frombuffer(raw, "<u8").copy())
        at = random.choice((1, 2, 5, 6)) * _PAGE
        ram.file[at : at + _PAGE] = mutate(raw[at : at + _PAGE], random)[:_PAGE].ljust(_PAGE, b"\xff")
        with suppress(VmiError):
            _read(memory, random)
    finally:
        memory.close()


def _wrong_frames(raw: bytes, random: Random) -> bytes:
    """Frames with words of them changed where a reader looks, or bytes anywhere."""
    if random.random() < 0.2:
        return mutate(raw, random)
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 4))):
        page = random.choice((1, 2, 3, 4, 5, 6))
        words = range(0, 48, 8) if page != 1 else range(3088, 3088 + 48, 8)
        at = page * _PAGE + random.choice(words)
        value = random.choice((*WORDS, *(frame * _PAGE | 1 for frame in range(17)), 2, 5, 1 << 62 | 3))
        data[at : at + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
    return bytes(data)


class _Libraries:
    """libxenctrl and libxenstore, whose every answer is these bytes, from their beginning or from elsewhere."""

    def __init__(self, raw: bytes, random: Random) -> None:
        self.raw, self.random = raw, random

    def _fill(self, reference: Any) -> None:
        there = getattr(reference, "_obj", reference)
        size = ctypes.sizeof(there)
        data = self.raw[self.random.choice((0, 0, self.random.randrange(len(self.raw) + 1))) :][:size]
        ctypes.memmove(ctypes.addressof(there), data, len(data))

    def xc_domain_getinfolist(self, xch: object, first: int, count: int, room: Any) -> int:
        self._fill(room)
        return self.random.choice((0, 1, 1, count, -1)) if count > 1 else 1

    def xc_vcpu_getcontext(self, xch: object, number: int, vcpu: int, room: Any) -> int:
        self._fill(room)
        return 0

    def xc_domain_maximum_gpfn(self, xch: object, number: int, room: Any) -> int:
        self._fill(room)
        return 0

    def xs_read(self, handle: object, transaction: int, path: bytes, size: Any) -> int | None:
        if self.random.random() < 0.1:
            return None
        data = self.raw[self.random.randrange(len(self.raw) + 1) :][: self.random.choice((0, 4, 64, 4096))]
        at: int = xenlib._libc.malloc(len(data) + 1)
        ctypes.memmove(at, data + b"\0", len(data) + 1)
        size._obj.value = len(data)
        return at

    def xs_write(self, handle: object, transaction: int, path: bytes, value: bytes, size: int) -> bool:
        return True


def _xen_says(raw: bytes, random: Random) -> None:
    """Domains, names, registers and values of the store, by the real code over libraries that answer with `raw`."""
    hypervisor = object.__new__(xenlib.Xen)
    hypervisor._control = hypervisor._store = _Libraries(raw, random)
    hypervisor._xch, hypervisor._xs = 1, 1
    for one in xen.domains(hypervisor)[:300]:
        _ = one.id, one.info.state, one.info.kind
        visible(one.name).encode()
        domains.of_xen(one)
    with suppress(VmiError):
        xen.find(hypervisor, random.choice(("web01", "7", "0", "\udcff", "4" * 5000, "²")))
    memory = mock.Mock(
        xen=hypervisor, domain=xen.Domain("web01", test_drivers_xen.info(kind=random.choice(("pv", "pvh"))))
    )
    with suppress(VmiError):
        XenMachine(memory).ring()
    with suppress(VmiError):
        _ = XenMachine(memory).paused
    registers = XenVcpus(memory).registers(0)
    if not all(0 <= value < 1 << 64 for value in registers.values()):
        raise Violation(f"registers: {registers}")
    hypervisor.last_frame(7)


def targets(folder: Path, seed: int) -> list[Bytes]:
    """All of them; their files are in `folder`."""
    xenlib._libc.malloc.restype = ctypes.c_void_p
    xenlib._libc.malloc.argtypes = (ctypes.c_size_t,)
    frames = bytes(test_drivers_xen.pv_ram([9, 8, test_drivers_xen.GONE, 1 << 62 | 3, 10]).file)
    one = xenlib.DomainInfo(7, 0, xenlib.RUNNING, 256, 256, 0, 0, 0, 1)
    answers = tuple(json.dumps(value).encode() for value in _COMMANDS.values())
    return [
        Bytes("domain-xml", _XML, _domain_xml, seed, _wrong_xml),
        Bytes("qmp", answers, _qmp(folder), seed, _wrong_json),
        Bytes("xen-frames", (frames,), _pv, seed, _wrong_frames),
        Bytes("xen-domains", (bytes(one) * 4, bytes(range(256)) * 24, b"web01\0running"), _xen_says, seed),
    ]
