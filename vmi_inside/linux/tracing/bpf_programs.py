"""Loaded eBPF programs, as bpf(2) lists them.

Knows `struct bpf_prog` and `bpf_prog_aux` (include/linux/bpf.h; kernel/bpf/syscall.c `bpf_prog_get_info_by_fd`). Maps
and links are tables of their own; what a program does is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.linux.tracing import bpf_objects
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: Maps that one program may use (MAX_USED_MAPS), and functions that it may consist of (BPF_MAX_SUBPROGS), and more.
_MAPS: Final = 64
_FUNCTIONS: Final = 1024
_INSTRUCTION: Final = 8  # bytes of struct bpf_insn


class BpfPrograms(Table):
    """One row for each program that has a number."""

    id: I64
    type: Text  # kprobe, socket_filter, xdp ...: enum bpf_prog_type's words
    name: Text
    tag: Text  # hash of its instructions, in hexadecimal
    attach_type: Text  # what it is meant for, where that is asked for: enum bpf_attach_type's words
    attach_to: Text  # the function or program that it traces or replaces
    load_time: I64  # seconds since the epoch
    uid: I64  # who loaded it
    gpl: Mask
    maps: Text  # numbers of the maps that it uses
    translated_size: I64  # bytes of its instructions, as the verifier left them
    jited_address: U64  # 0 where it is interpreted
    jited_size: I64  # bytes, of all its functions
    references: I64
    address: U64  # of struct bpf_prog


def bpf_programs(kernel: Kernel, columns: Iterable[str] | None = None) -> BpfPrograms:
    """All eBPF programs; `columns` asks for some columns only. Raises `Unsupported` where the kernel has no bpf(2)."""
    wanted = list(BpfPrograms.schema if columns is None else columns)
    BpfPrograms.check(wanted)
    with kernel.operation():
        number, rows, notes = bpf_objects.objects(kernel, "prog_idr", "bpf_prog")
        rows.fetch(
            "type", "expected_attach_type", "len", "jited_len", "tag", "bpf_func", "jited", "gpl_compatible", "aux"
        )
        aux = rows.follow("aux").fetch(
            "id", "name", "load_time", "user", "used_map_cnt", "used_maps", "func_cnt", "func", "attach_func_name",
            "dst_prog", "refcnt.counter",
        )  # fmt: skip
        users = aux.follow("user").fetch("uid.val")
        faults = Faults(len(rows))
        faults.mark(rows.fault, "program unreadable")
        faults.mark(aux.fault, "auxiliary struct unreadable")
        faults.mark(~aux.fault & (aux.number("id") != number), "its number is another")
        faults.mark(users.fault, "user unreadable")
        jited = rows.number("jited") != 0
        data = {
            "id": number,
            "type": bpf_objects.shown(rows.number("type"), program_types(kernel)),
            "name": text(aux.text("name")),
            "tag": text(np.ascontiguousarray(each).tobytes().hex() for each in rows["tag"]),
            "attach_type": _meant_for(kernel, rows.number("expected_attach_type")),
            "uid": users.number("uid.val"),
            "gpl": rows.number("gpl_compatible") != 0,
            "translated_size": rows.number("len") * _INSTRUCTION,
            "jited_address": np.where(jited, rows.pointer("bpf_func"), np.uint64(0)),
            "references": aux.number("refcnt.counter"),
            "address": rows.address,
        }
        if "attach_to" in wanted:
            data["attach_to"], good = targets(kernel, aux)
            faults.mark(~good, "attach_to unreadable")
        if "maps" in wanted:
            data["maps"], good = _maps(kernel, aux)
            faults.mark(~good, "maps unreadable")
        if "jited_size" in wanted:
            data["jited_size"], good = _sizes(kernel, rows, aux, jited)
            faults.mark(~good, "functions unreadable")
        if "load_time" in wanted:
            boot = clock.boot_time(kernel)
            faults.mark(np.full(len(rows), boot is None), "load_time counts from boot: clock unreadable")
            since = aux.unsigned("load_time").astype(np.float64) / 1e9
            data["load_time"] = np.floor(since + (boot or 0.0)).astype(np.int64)
        data["fault"] = faults.column()
        return BpfPrograms({name: data[name] for name in (*wanted, "fault")}, notes)


def program_types(kernel: Kernel) -> dict[int, str]:
    """Words for types of programs."""
    return dict(bpf_objects.words(kernel, "bpf_prog_type", "BPF_PROG_TYPE_"))


def _meant_for(kernel: Kernel, codes: I64) -> Text:
    """Words for attach types; the first, 0, is also what is there when none was asked for."""
    names = dict(bpf_objects.words(kernel, "bpf_attach_type", "BPF_"))
    names[0] = ""
    return bpf_objects.shown(codes, names)


def targets(kernel: Kernel, aux: Structs) -> tuple[Text, Mask]:
    """What programs (n rows of bpf_prog_aux) trace or replace: a function, of a program where it is one's."""
    names, ok = kernel.strings(aux.pointer("attach_func_name"))
    program = aux.follow("dst_prog")
    others = program.follow("aux").text("name")
    shown = (f"{other}:{name}" if other else name for name, other in zip(names, others, strict=True))
    return text(shown), ok & ~program.fault


def _maps(kernel: Kernel, aux: Structs) -> tuple[Text, Mask]:
    """Numbers of the maps that each program uses."""
    count = aux.number("used_map_cnt")
    found = ragged.gather(kernel.space, aux.pointer("used_maps"), np.minimum(count, _MAPS) * 8)
    address, owner, _ = found.words()
    maps = kernel.structs("bpf_map", address).fetch("id")
    numbers: list[list[str]] = [[] for _ in range(len(aux))]
    for row, number in zip(owner.tolist(), maps.number("id").tolist(), strict=True):
        numbers[row].append(str(number))
    ok = found.ok & (count <= _MAPS)
    ok[owner[maps.fault]] = False
    return text(map(",".join, numbers)), ok


def _sizes(kernel: Kernel, rows: Structs, aux: Structs, jited: Mask) -> tuple[I64, Mask]:
    """Bytes of machine code: of all functions, where a program has several."""
    count = np.where(jited, aux.number("func_cnt"), 0)
    found = ragged.gather(kernel.space, aux.pointer("func"), np.minimum(count, _FUNCTIONS) * 8)
    address, owner, _ = found.words()
    parts = kernel.structs(rows.type, address).fetch("jited_len")
    size = np.where(count == 0, rows.number("jited_len"), 0)
    np.add.at(size, owner, parts.number("jited_len"))
    ok = found.ok & (count <= _FUNCTIONS)
    ok[owner[parts.fault]] = False
    return size, ok
