"""The journal of a guest: every change that was made to it, with the bytes that take it back.

Knows entries and their states, as records of the store tell them. Writing to guests is left to `transaction`.

An entry's records: `begin`; one `writes` for each group of writes, before they are made; `taken back` when all of these
were put back, and the change goes on; then `done`, or `put back`, or `broken`. An entry with none of these three was
left by a controller that died.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vmi_inside.control.store import Store

State = Literal["open", "done", "put back", "broken", "undone"]
#: The records that end an entry.
_ENDS: Final[dict[str, State]] = {"done": "done", "put back": "put back", "broken": "broken"}
UNDO: Final = "undo"
_TAKEN_BACK: Final = "taken back"


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were changed: `old` and `new` are of one length.

    `space` says what `address` is; see `places`. `code` is written so that it takes effect also where code was
    translated.
    """

    address: int
    old: bytes
    new: bytes
    code: bool = False
    space: str = "kernel"

    def to_json(self) -> dict[str, Any]:
        """As a record has it."""
        return {"address": f"{self.address:#x}", "old": self.old.hex(), "new": self.new.hex(),
                "code": self.code, "space": self.space}  # fmt: skip

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Write:
        """From a record. Raises ValueError."""
        try:
            made = cls(int(told["address"], 16), bytes.fromhex(told["old"]), bytes.fromhex(told["new"]),
                       bool(told["code"]), str(told["space"]))  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from error
        if len(made.old) != len(made.new):
            raise ValueError("old and new bytes differ in length")
        return made


@dataclass(slots=True)
class Entry:
    """One change: `kind` in a word, `reason` in words, who made it and when (seconds since the epoch), in which boot.

    `detail` is the maker's own, as JSON has it. States: open (its controller died in it, or is in it), done, put back
    (it failed, or was recovered), broken (it could not be put back), undone.
    """

    id: int
    kind: str
    reason: str
    user: str
    time: float
    boot: str
    detail: dict[str, Any] = field(default_factory=dict)
    writes: tuple[Write, ...] = ()
    state: State = "open"
    command: str = ""


class Journal:
    """The entries of one guest, read anew each time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> list[Entry]:
        """All of them, the oldest first. Records that make no sense are left out."""
        found: dict[int, Entry] = {}
        for record in self._store.lines():
            number, event = record.get("id"), record.get("event")
            if not isinstance(number, int):
                continue
            if event == "begin" and number not in found:
                try:
                    found[number] = Entry(
                        number, str(record["kind"]), str(record["reason"]), str(record["user"]), float(record["time"]),
                        str(record["boot"]), dict(record["detail"]), command=str(record.get("command", "")),
                    )  # fmt: skip
                except (KeyError, TypeError, ValueError):
                    continue
            entry = found.get(number)
            if entry is None or entry.state != "open":
                continue
            if event == "writes":
                entry.writes += tuple(_writes(record.get("writes")))
            elif event == _TAKEN_BACK:
                entry.writes = ()
            elif event in _ENDS:
                entry.state = _ENDS[str(event)]
                if isinstance(record.get("detail"), dict):
                    entry.detail = record["detail"]
        for entry in found.values():
            undone = found.get(entry.detail.get("undoes", -1)) if entry.kind == UNDO and entry.state == "done" else None
            if undone is not None and undone.state == "done":
                undone.state = "undone"
        return list(found.values())

    def find(self, number: int) -> Entry | None:
        """One entry."""
        return next((entry for entry in self.entries() if entry.id == number), None)

    def begin(self, kind: str, reason: str, boot: str, detail: Mapping[str, Any], command: str = "") -> Entry:
        """A new entry."""
        number = max((entry.id for entry in self.entries()), default=0) + 1
        entry = Entry(number, kind, reason, _user(), time.time(), boot, dict(detail), command=command)
        self._store.append({
            "id": entry.id, "event": "begin", "kind": kind, "reason": reason, "user": entry.user, "time": entry.time,
            "boot": boot, "detail": entry.detail, "command": command,
        })  # fmt: skip
        return entry

    def writes(self, entry: Entry, writes: Iterable[Write]) -> None:
        """What is about to be written."""
        new = tuple(writes)
        self._store.append({"id": entry.id, "event": "writes", "writes": [one.to_json() for one in new]})
        entry.writes += new

    def taken_back(self, entry: Entry) -> None:
        """All that was written was put back."""
        self._store.append({"id": entry.id, "event": _TAKEN_BACK})
        entry.writes = ()

    def end(self, entry: Entry, state: State) -> None:
        """How the entry ended: done, put back or broken."""
        self._store.append({"id": entry.id, "event": state, "detail": entry.detail})
        entry.state = state


def _writes(told: object) -> Iterable[Write]:
    for one in told if isinstance(told, list) else []:
        try:
            yield Write.from_json(one)
        except ValueError:
            continue


def _user() -> str:
    """Who asked for it: behind sudo, the one who called that."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    behind = os.environ.get("SUDO_USER")
    return f"{behind} as {name}" if behind and behind != name else name
