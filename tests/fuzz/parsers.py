"""Targets that are bytes or text: types, symbols, dumps, profiles, journals, packets, what QEMU says.

Knows a good example of each, and what to ask of what was parsed. What must hold is `watch`'s matter.
"""

from __future__ import annotations

import gzip
import json
import lzma
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from tests import (
    test_btf,
    test_drivers_monitor,
    test_dump_elf,
    test_dump_kdump,
    test_gdbstub,
    test_kallsyms,
    test_profile_given,
    test_profile_image,
)
from tests.fuzz import documents
from tests.fuzz.mutate import mutate
from tests.fuzz.rendering import render
from tests.fuzz.watch import Violation
from vmi_inside import saved
from vmi_inside.cli import unpack
from vmi_inside.cli.escape import visible, width
from vmi_inside.control.gates import layout as gates
from vmi_inside.control.journal import Journal
from vmi_inside.control.store import Store
from vmi_inside.diff import diff
from vmi_inside.drivers import gdbpackets, monitor, qemu_layout
from vmi_inside.drivers.dump import open_dump
from vmi_inside.drivers.gdbregisters import describe
from vmi_inside.drivers.notes import Notes
from vmi_inside.errors import VmiError
from vmi_inside.profile import cache, declare, given, isf, plain, rekall, vmcoreinfo
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.image import read_image
from vmi_inside.profile.profile import Build, Profile
from vmi_inside.profile.symbols import Symbols
from vmi_inside.snapshot import Snapshot
from vmi_inside.tables import TABLES


@dataclass(frozen=True, slots=True)
class Bytes:
    """Examples of a format, made wrong and given to `run`, which raises nothing but `VmiError`.

    `make` makes a case's bytes of an example; without it they are only mutated.
    """

    name: str
    examples: tuple[bytes, ...]
    run: Callable[[bytes, Random], object]
    seed: int
    make: Callable[[bytes, Random], bytes] = mutate

    def case(self, number: int) -> None:
        """One case."""
        random = Random(f"{self.seed} {self.name} {number}")
        self.run(self.make(random.choice(self.examples), random), random)


# -- profiles ---------------------------------------------------------------------------------------------------------

_NAMES: Final = ("task", "task_struct", "list_head", "node", "old", "new", "", "a" * 500, "\x00")


def _types(raw: bytes, random: Random) -> None:
    _ask_types(Btf(raw), random)


def _ask_types(types: Btf, random: Random) -> None:
    for one in [*range(min(len(types), 64)), len(types), 1 << 31, 0xFFFF_FFFF]:
        with suppress(VmiError):
            ctype = types.type(one)
            _ = ctype.kind, ctype.size, ctype.count, ctype.signed, len(ctype.members)
            for member in list(ctype.members.values())[:32]:
                _ = member.offset, member.size, member.type.size
        with suppress(VmiError):
            record = types.record(one)
            types.enumerators(one)
            declare.declared(types, one, record.name)
    for name in _NAMES:
        with suppress(VmiError):
            types.struct(name)
            types.enum(name)
            types.enumerator(name)
            types.variable(name)
            types.basic(name)
        with suppress(VmiError):
            for _ in islice(declare.printed(types, name), 1000):
                pass
    for table in (lambda profile: rekall.rekall(isf.isf(profile, "0"), "6.1"), plain.plain):
        with suppress(VmiError):
            profile = Profile(Build(b"Linux version 6.1", "ab", 0, _symbols(), types), 0xFFFF_FFFF_8100_0000)
            json.dumps(table(profile))


def _symbols() -> Symbols:
    return test_kallsyms.symbols_of([test_kallsyms.Line("_text", "T", 0), test_kallsyms.Line("init_task", "D", 4096)])


def _split(raw: bytes, random: Random) -> None:
    base = Btf(test_btf.small().blob())
    _ask_types(Btf(raw, base=base), random)


def _kallsyms(raw: bytes, random: Random) -> None:
    found = test_kallsyms.decode(raw)
    if found is None:
        return
    symbols = found.symbols
    for row in range(min(len(symbols), 64)):
        one = symbols[row]
        symbols.find(one.name)
        symbols.at(one.value)
    list(symbols.matching("s"))
    symbols.find("\x00")


def _vmcoreinfo(raw: bytes, random: Random) -> None:
    info = vmcoreinfo.parse(raw)
    for key in [*list(info)[:32], "KERNELOFFSET"]:
        for base in (10, 16):
            vmcoreinfo.number(info, key, base)


def _given(folder: Path) -> Callable[[bytes, Random], None]:
    path = folder / "profile"

    def run(raw: bytes, random: Random) -> None:
        path.write_bytes(raw)
        found = given.load(path)
        if found.types is not None:
            _ask_types(found.types, random)
        if found.symbols is not None:
            found.symbols.find("_text")
            for row in range(min(len(found.symbols), 16)):
                _ = found.symbols[row]
        found.differs(_symbols(), Btf(test_btf.small().blob()))

    return run


def _json(raw: bytes, random: Random) -> bytes:
    """The document in an example made wrong, or its text; now and then packed."""
    text = documents.spoiled(raw, random)
    return random.choice((bytes, bytes, bytes, gzip.compress, lzma.compress))(text)


def _image(folder: Path) -> Callable[[bytes, Random], None]:
    path = folder / "vmlinuz"

    def run(raw: bytes, random: Random) -> None:
        path.write_bytes(raw)
        image = read_image(str(path))
        image.at(0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_1000)
        for name in list(image.sections)[:8]:
            with suppress(VmiError):
                image.relocated(name, random.choice((0, 1 << 21, -(1 << 21))))

    return run


def _cache(folder: Path) -> tuple[bytes, Callable[[bytes, Random], None]]:
    """A file of the cache; and what is made of one that is damaged, or forged with right checksums."""
    home = folder / "cache"
    banner = b"Linux version 6.1\n"
    build = Build(banner, "abcd", 4096, _symbols(), Btf(test_btf.small().blob()))
    kept = cache.Cache(home)
    kept.save(banner, build.build_id, build.meta(), build.arrays())
    path = next(home.glob("*.profile"))
    good = path.read_bytes()

    def run(raw: bytes, random: Random) -> None:
        if random.random() < 0.7 and len(raw) >= 64:
            raw = _forged(raw)
        path.write_bytes(raw)
        again = cache.Cache(home)
        list(again.kept())
        for entry in again.entries(banner):
            made = Build.from_parts(entry.meta, entry.arrays)
            profile = Profile(made, 0xFFFF_FFFF_8100_0000)
            with suppress(VmiError):
                profile.find_symbol("_text", "init_task")
            with suppress(VmiError):
                profile.struct("task")
            _ask_types(profile.types, random)

    return good, run


def _forged(raw: bytes) -> bytes:
    """The file with its sizes and checksums made right."""
    magic, form, size, _, _, _ = cache._HEADER.unpack_from(raw)
    text = raw[cache._HEADER.size : cache._HEADER.size + size]
    body = np.frombuffer(raw[cache._HEADER.size + size :], np.uint8)
    header = cache._HEADER.pack(magic, form, size, len(raw), zlib.crc32(text), cache._checksum(body))
    return header + raw[cache._HEADER.size :]


# -- dumps ------------------------------------------------------------------------------------------------------------


def _dump(folder: Path) -> Callable[[bytes, Random], None]:
    path = folder / "dump"

    def run(raw: bytes, random: Random) -> None:
        path.write_bytes(raw)
        memory = open_dump(path, partial=random.random() < 0.5)
        try:
            if any(a.end > b.start for a, b in zip(memory.runs, memory.runs[1:], strict=False)):
                raise Violation(f"runs overlap: {memory.runs[:4]}")
            wanted = [run.start & ~0xFFF for run in memory.runs[:8]]
            wanted += [max(run.end - 64, 0) & ~63 for run in memory.runs[:8]] + [random.getrandbits(44) & ~0xFFF]
            out = np.ones((len(wanted), 64), np.uint8)
            ok = memory.gather(np.array([at & (1 << 64) - 1 for at in wanted], np.uint64), out)
            if out[~ok].any():
                raise Violation("gather: an unreadable row is not zeroed")
            for at in wanted:
                one = memory.read(at, 4096)
                if one is not None and len(one) != 4096:
                    raise Violation(f"read: {len(one)} bytes for 4096")
            notes = getattr(memory, "notes", None)
            if notes is not None:
                _ = notes.vmcoreinfo, notes.registers
        finally:
            memory.close()

    return run


def _notes(raw: bytes, random: Random) -> None:
    notes = Notes.parse(raw)
    _ = notes.vmcoreinfo, notes.registers


# -- what is kept on disk ---------------------------------------------------------------------------------------------

_RECORDS: Final[tuple[dict[str, Any], ...]] = (
    {"id": 1, "event": "begin", "kind": "write", "reason": "r", "user": "u", "time": 1.5, "boot": "b", "detail": {},
     "command": "c"},
    {"id": 1, "event": "writes",
     "writes": [{"address": "0x1000", "old": "00ff", "new": "ff00", "code": False, "space": "kernel"}]},
    {"id": 1, "event": "done", "detail": {"a": 1}},
    {"id": 2, "event": "begin", "kind": "undo", "reason": "", "user": "u", "time": 2, "boot": "b",
     "detail": {"undoes": 1}},
    {"id": 2, "event": "done", "detail": {"undoes": 1}},
)  # fmt: skip


def _journal(folder: Path) -> Callable[[bytes, Random], None]:
    store = Store("fuzz", folder / "guests")
    for record in _RECORDS:
        store.append(record)
    store.hold({"pid": 1})

    def run(raw: bytes, random: Random) -> None:
        store.path("journal").write_bytes(raw)
        store.path("held").write_bytes(raw)
        journal = Journal(store)
        for entry in journal.entries():
            json.dumps(entry.detail)
            if not all(len(write.old) == len(write.new) for write in entry.writes):
                raise Violation("a write whose bytes differ in length")
        journal.find(1)
        store.held()
        if random.random() < 0.02:
            begun = journal.begin("kind", "reason", "boot", {})
            if journal.find(begun.id) is None:
                raise Violation("what was begun cannot be found")

    return run


def _lines(raw: bytes, random: Random) -> bytes:
    """Records of a journal, some of them wrong, some of them no records."""
    lines = []
    for line in raw.splitlines():
        kind = random.random()
        if kind < 0.5:
            lines.append(line)
        elif kind < 0.9:
            told = documents.wrong(json.loads(line), random)
            lines.append(json.dumps(told).encode("utf-8", "surrogatepass"))
        elif kind < 0.92:
            lines.append(documents.deep(random))
        else:
            lines.append(mutate(line, random).replace(b"\n", b" "))
    return b"\n".join(lines) + b"\n" * random.randrange(2)


def _snapshot_example() -> bytes:
    values = {"text": "x\x1b[31m", "integer": 1, "unsigned": 1 << 63, "boolean": True, "real": 0.5}
    tables: dict[str, Any] = {}
    for name in ("processes", "process_open_sockets", "kernel_modules"):
        words = TABLES[name].table.describe()
        tables[name] = {"columns": {key: [values[word]] * 2 for key, word in words.items()}, "notes": ["n"]}
    whole = {"format": "vmi-inside snapshot", "version": 1, "name": "web01", "taken": 1.5, "took": 0.1, "paused": 0.0,
             "whole": True, "notes": [], "tables": tables}  # fmt: skip
    return json.dumps(whole).encode()


def _snapshot(folder: Path) -> Callable[[bytes, Random], None]:
    path = folder / "snapshot"
    path.write_bytes(_snapshot_example())
    good = saved.load(path)

    def run(raw: bytes, random: Random) -> None:
        path.write_bytes(raw)
        loaded: Snapshot = saved.load(path)
        loaded.contents().to_dicts()
        for table in loaded.tables.values():
            render(table)
        render(diff(good, loaded))
        render(diff(loaded, good))

    return run


# -- what QEMU says ---------------------------------------------------------------------------------------------------


def _packets(raw: bytes, random: Random) -> None:
    decoder = gdbpackets.Decoder()
    at = 0
    try:
        while at < len(raw):
            size = random.choice((1, 3, 64, 4096))
            for packet in decoder.feed(raw[at : at + size]):
                if len(packet) > gdbpackets.LIMIT + 1:
                    raise Violation(f"decode: {len(packet)} bytes")
            at += size
    except gdbpackets.BadPacket:
        pass
    if gdbpackets.decode(gdbpackets.encode(raw)[1:-3]) != raw:
        raise Violation("encode: does not come back")


def _registers(raw: bytes, random: Random) -> None:
    with suppress(ValueError):
        describe(lambda name: raw.decode("latin-1"))


def _stub(folder: Path) -> Callable[[bytes, Random], None]:
    """A stub that is honest but for one kind of answer."""
    from vmi_inside.drivers.gdbstub import GdbStub

    honest = {**test_gdbstub.HONEST, b"qsThreadInfo": b"l"}
    path = folder / "stub"

    def run(raw: bytes, random: Random) -> None:
        liar = random.choice(list(honest))
        packed = random.random() < 0.8

        def answers(asked: bytes) -> bytes | None:
            known = max((key for key in honest if asked.startswith(key)), key=len, default=None)
            if known == liar:
                return b"+" + gdbpackets.encode(raw) if packed else raw
            return b"+" + gdbpackets.encode(honest[known] if known else b"")

        path.unlink(missing_ok=True)
        with test_gdbstub.stub(path, answers) as where, GdbStub(where, "fuzz", timeout=0.05) as stub:
            stub.registers(0)
            with suppress(VmiError):
                stub.set_registers(0, {"rip": 1})
            with suppress(VmiError):
                stub.read(0, 5)
            stub.read(0x1000, 5, vcpu=len(stub.threads) - 1)

    return run


def _text(raw: bytes, random: Random) -> None:
    text = raw.decode("utf-8", "backslashreplace")
    shown = visible(text)
    if not shown.isprintable():
        raise Violation(f"visible: {shown[:80]!r}")
    width(shown)
    for part in unpack.parts(text):
        if part in ("", ".", "..") or "/" in part or len(part.encode()) > 255 or "\0" in part:
            raise Violation(f"a path has the part {part[:80]!r}")


def _monitor(raw: bytes, random: Random) -> None:
    text = raw.decode("utf-8", "replace")
    monitor.regions(text)
    monitor.backends(text)
    monitor.registers(text)
    qemu_layout.parse_maps(text)
    with suppress(VmiError):
        qemu_layout.layout(text.split("\0"))


def _gates(raw: bytes, random: Random) -> None:
    with suppress(gates.NotOurs):
        state = gates.decode(0xFFFF_FFFF_8200_0000, raw.ljust(gates.CODE_AT + 4096, b"\xcc"))
        gates.encode(0xFFFF_FFFF_8200_0000, state)


_XML: Final = (test_gdbstub.TARGET[1:], test_gdbstub.CORE[1:])


def targets(folder: Path, seed: int) -> list[Bytes]:
    """All of them; their files are in `folder`."""

    def kept(folder_name: str) -> Path:
        made = folder / folder_name
        made.mkdir(exist_ok=True)
        return made

    small = test_btf.small().blob()
    example = Profile(Build(b"Linux version 6.1", "ab", 0, _symbols(), Btf(small)), 0xFFFF_FFFF_8100_0000)
    module = test_btf.Blob(Btf(small))
    module.struct("new", 16, ("a", 1, 0), ("b", 2, 64))
    table = json.dumps(test_profile_given.table()).encode()
    lines = b"".join(b"%016x %s s%d\n" % (0xFFFFFFFF81000000 + 64 * n, b"T", n) for n in range(40))
    loads = [test_dump_elf.Load(0x1000, test_dump_elf.page(1, 3)), test_dump_elf.Load(0x10_0000, test_dump_elf.page(2))]
    note = test_dump_elf.note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\nKERNELOFFSET=1a00000\n")
    note += test_dump_elf.note(b"QEMU", 0, bytes(440)) + test_dump_elf.note(b"CORE", 1, bytes(336))
    kdump = test_dump_kdump.build()
    packed = b"".join(gdbpackets.encode(one) for one in test_gdbstub.HONEST.values())
    good, cached = _cache(kept("cache"))
    image = test_profile_image.elf()
    journal = b"\n".join(json.dumps(one).encode() for one in _RECORDS) + b"\n"
    monitor_texts = tuple(
        value.encode() for name, value in vars(test_drivers_monitor).items() if isinstance(value, str) and "\n" in value
    )
    return [
        Bytes("btf", (small,), _types, seed),
        Bytes("btf-module", (module.blob(),), _split, seed),
        Bytes("kallsyms", tuple(
            test_kallsyms.encode(test_kallsyms.some_lines(700, absolute=3), layout)[0]
            for layout in test_kallsyms.LAYOUTS
        ), _kallsyms, seed),
        Bytes("vmcoreinfo", (b"OSRELEASE=6.1.0-13-amd64\nPAGESIZE=4096\nKERNELOFFSET=1a00000\nNUMBER(phys_base)=-1\n",),
              _vmcoreinfo, seed),
        Bytes("isf", (table,), _given(kept("isf")), seed, _json),
        Bytes("rekall", (json.dumps(rekall.rekall(isf.isf(example, "0"), "6.1")).encode(),),
              _given(kept("rekall")), seed, _json),
        Bytes("system-map", (lines,), _given(kept("map")), seed),
        Bytes("btf-file", (small, _elf_with_btf(small)), _given(kept("btf")), seed),
        Bytes("vmlinuz", (image, test_profile_image.bzimage(gzip.compress(image), len(image))),
              _image(kept("image")), seed),
        Bytes("cache", (good,), cached, seed),
        Bytes("elf", (test_dump_elf.elf(loads, note), test_dump_elf.elf(loads, note, bits=32),
                      test_dump_elf.elf(loads, note, many=True)), _dump(kept("elf")), seed),
        Bytes("lime", (test_dump_elf.lime((0x1000, test_dump_elf.page(1)), (0x9000, test_dump_elf.page(2))),),
              _dump(kept("lime")), seed),
        Bytes("kdump", (kdump, test_dump_kdump.build(bits=32), test_dump_kdump.flatten(kdump)),
              _dump(kept("kdump")), seed),
        Bytes("notes", (note,), _notes, seed),
        Bytes("journal", (journal,), _journal(kept("journal")), seed, _lines),
        Bytes("snapshot", (_snapshot_example(),), _snapshot(kept("snapshot")), seed, _json),
        Bytes("gdb-packets", (packed,), _packets, seed),
        Bytes("gdb-registers", _XML, _registers, seed),
        Bytes("gdb-stub", tuple(test_gdbstub.HONEST.values()), _stub(kept("stub")), seed),
        Bytes("monitor", (*monitor_texts, b"qemu-system-x86_64\0-m\0004096\0-machine\0q35\0-smp\0002"), _monitor, seed),
        Bytes("gates", _gate_examples(), _gates, seed),
        Bytes("text", (b"plain name", "grüße/☃/../x".encode(), b"a" * 5000), _text, seed),
    ]  # fmt: skip


def _gate_examples() -> tuple[bytes, ...]:
    hooks = (gates.Hook(0xFFFF_FFFF_8120_0000, b"\x0f\x1f\x44\x00\x00"),)
    allowed = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    rule = gates.Rule(1, gates.Scope(1), 1 << 63, 13, 42, 0, 0, 0, allowed, 42, 0, "name", "entry", 1)
    state = gates.State(3000, b"abcdefgh", 0, hooks, {0: rule, 3: rule})
    area = bytearray(gates.CODE_AT + 4096)
    for offset, data in gates.encode(0xFFFF_FFFF_8200_0000, state).items():
        area[offset : offset + len(data)] = data
    return (bytes(area),)


def _elf_with_btf(blob: bytes) -> bytes:
    """A 64-bit ELF file with one section, `.BTF`."""
    names = b"\0.BTF\0.shstrtab\0"
    sections = [(0, 0, 0, 0, 0, 0), (1, 1, 0, 0, 64, len(blob)), (6, 3, 0, 0, 64 + len(blob), len(names))]
    table = b"".join(struct.pack("<IIQQQQ", *one).ljust(64, b"\0") for one in sections)
    at = 64 + len(blob) + len(names)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, at, 0, 64, 56, 0, 64, len(sections), 2
    )
    return head + blob + names + table
