"""How two readings of a table are held against each other, by the tests that read a guest that does not stand still."""

from __future__ import annotations

import numpy as np
import pytest

from tests.identities import IDENTITIES, changed
from vmi_inside.linux.processes.namespaces import ProcessNamespaces
from vmi_inside.linux.processes.threads import Threads
from vmi_inside.table import text
from vmi_inside.tables import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_one(name: str) -> None:
    identity = IDENTITIES[name]
    assert {*identity.key, *identity.fixed} <= set(TABLES[name].table.schema)
    assert identity.key
    assert not {*identity.key} & {*identity.fixed}


def threads(*rows: tuple[int, int, str], faults: tuple[str, ...] = ("", "")) -> Threads:
    """Of tid, start time and name."""
    tid, start, names = zip(*rows, strict=True)
    return Threads({
        "pid": np.array(tid), "tid": np.array(tid), "address": np.array(tid, np.uint64), "start_time": np.array(start),
        "kernel_thread": np.zeros(len(rows), np.bool_), "name": text(names), "fault": text(faults[: len(rows)]),
    })  # fmt: skip


def test_a_row_that_differs_from_itself() -> None:
    before = threads((1, 5, "a"), (2, 6, "b"))
    assert changed("threads", before, threads((1, 5, "renamed"), (2, 6, "b"))) == ([], [])
    differ, alone = changed("threads", before, threads((1, 7, "a"), (2, 6, "b")))
    assert (len(differ), alone) == (1, [])
    assert changed("threads", before, threads((1, 7, "a"), (2, 6, "b"), faults=("torn", ""))) == ([], [])
    differ, alone = changed("threads", before, threads((1, 5, "a")))
    assert (differ, len(alone)) == ([], 1)
    assert "(2, 2)" in alone[0]


def test_what_ends_may_lose_what_is_fixed() -> None:
    def table(mount: int) -> ProcessNamespaces:
        names = [*IDENTITIES["process_namespaces"].key, *IDENTITIES["process_namespaces"].fixed]
        columns = {name: np.array([3]) for name in names}
        return ProcessNamespaces({**columns, "mnt_namespace": np.array([mount]), "fault": text([""])})

    assert changed("process_namespaces", table(3), table(0)) == ([], [])
    assert len(changed("process_namespaces", table(3), table(4))[0]) == 1
