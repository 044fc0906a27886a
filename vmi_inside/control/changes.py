"""The journal of a guest as a table.

Knows how an entry becomes a row. What stands in the journal is `journal`'s matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from vmi_inside.control.journal import Entry
from vmi_inside.table import Table, Text, text
from vmi_inside.types import I64, Mask


class Changes(Table):
    """One row for each change that was made to a guest, the oldest first."""

    id: I64
    time: I64  # seconds since the epoch, by this host's clock
    kind: Text
    state: Text  # open, done, put back, broken, undone
    undoable: Mask
    reason: Text
    user: Text
    command: Text
    writes: I64
    bytes: I64  # written in all
    boot: Text  # names the boot of the guest
    detail: Text  # JSON


def changes(entries: Sequence[Entry], undoable: Sequence[Entry]) -> Changes:
    """The table of these entries; `undoable` are those of them that can be undone."""
    can = {entry.id for entry in undoable}
    return Changes({
        "id": np.array([one.id for one in entries], dtype=np.int64),
        "time": np.array([int(one.time) for one in entries], dtype=np.int64),
        "kind": text(one.kind for one in entries),
        "state": text(one.state for one in entries),
        "undoable": np.array([one.id in can for one in entries], dtype=np.bool_),
        "reason": text(one.reason for one in entries),
        "user": text(one.user for one in entries),
        "command": text(one.command for one in entries),
        "writes": np.array([len(one.writes) for one in entries], dtype=np.int64),
        "bytes": np.array([sum(len(each.new) for each in one.writes) for one in entries], dtype=np.int64),
        "boot": text(one.boot for one in entries),
        "detail": text(json.dumps(one.detail, sort_keys=True) for one in entries),
        "fault": text("it could not be put back" if one.state == "broken" else "" for one in entries),
    })  # fmt: skip
