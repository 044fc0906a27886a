"""Whose code lies where, held against what the guest's own /proc/kallsyms and /proc/modules say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.lab.guest import LabGuest
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.symbols.loaded import loaded


@pytest.fixture(params=["6.1-cloud", "new-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def test_modules_lie_where_the_guest_says(guest: LabGuest) -> None:
    said = {line.split()[0]: line.split() for line in guest.ask("cat /proc/modules").splitlines()}
    with guest.attach() as seen, seen.kernel.operation():
        found = loaded(seen.kernel)
    assert set(found.name) == set(said)
    assert not found.faults
    for row, name in enumerate(found.name):
        mine = found.owner == row
        assert int(said[name][5], 16) in found.base[mine & found.text].tolist()
        whole = mine & ~found.text if not found.modules.has("mem") else mine
        size = int(found.size[whole].sum())
        assert size == int(said[name][1]), name


def test_every_function_is_its_owners(guest: LabGuest) -> None:
    told = guest.ask("awk '$2 ~ /[tT]/ && ++n % 97 == 0' /proc/kallsyms", timeout=120)
    lines = [line.split() for line in told.splitlines()]
    functions = [(int(line[0], 16), line[2], line[3].strip("[]") if len(line) > 3 else "kernel") for line in lines]
    assert len(functions) > 300
    address = np.array([each[0] for each in functions], dtype=np.uint64)
    with guest.attach() as seen, seen.kernel.operation():
        code = Code(seen.kernel)
        owners, symbols = code.owners(address), code.symbols(address)
        inside = code.symbols(address + np.uint64(1))
        here, there = code.kernel_ranges[0][1:]
        nobody = code.owners(np.array([0, here - 1, (1 << 64) - 1], dtype=np.uint64))
    assert nobody.tolist() == ["", "", ""]
    names = {}
    for at, name, _ in functions:
        names.setdefault(at, set()).add(name)
    for (at, name, owner), seen_owner, symbol, behind in zip(functions, owners, symbols, inside, strict=True):
        if owner == "kernel":
            # Symbols of the kernel may stand before its text (per-CPU), in its init text, or behind it.
            assert seen_owner in ("kernel", "init", ""), (name, seen_owner)
            assert (seen_owner == "kernel") == (here <= at < there)
        elif not owner.startswith(("bpf", "__builtin")):
            assert seen_owner == owner, name
            assert symbol.endswith(f"[{owner}]"), symbol
            assert "+0x1" in behind, behind
