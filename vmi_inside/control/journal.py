"""The journal of a guest: every change that was made to it, with the bytes that take it back.

Knows entries and their states, as records of the store tell them. Writing to guests is left to `transaction`.

An entry's records: `begin`, with the writes that are planned; one `writes` for each group of writes, before they are
made; `taken back` when all of these were put back, and the change goes on; a `note` where there is more to say
meanwhile; then `done`, or `put back`, or `broken`. An entry with none of these three was left by a controller that
died.

What is planned gets to the disk before the guest is paused. In the pause a record only says that it is made now, and
need not get there at once: it outlives a controller that dies, and a host that dies takes the guest along.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from vmi_inside.control.store import Seen, Store

State = Literal["open", "done", "put back", "broken", "undone"]
#: The records that end an entry.
_ENDS: Final[dict[str, State]] = {"done": "done", "put back": "put back", "broken": "broken"}
UNDO: Final = "undo"
_NOTE: Final = "note"
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
    writes: tuple[Write, ...] = field(default=(), repr=False)
    state: State = "open"
    command: str = ""
    planned: tuple[Write, ...] = field(default=(), repr=False)


class Journal:
    """The entries of one guest. What was read once is not read again: a journal only grows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[int, Entry] = {}
        self._seen = Seen()
        # A controller that places and removes the same gates for days makes the same writes: each is kept once.
        self._kept: dict[Write, Write] = {}

    def entries(self) -> list[Entry]:
        """All of them, the oldest first. Records that make no sense are left out."""
        records, self._seen = self._store.news(self._seen)
        if not self._seen.on:
            self._found, self._kept = {}, {}
        found = self._found
        for record in records:
            number, event = record.get("id"), record.get("event")
            if not isinstance(number, int) or not isinstance(event, str):
                continue
            if event == "begin" and number not in found:
                try:
                    found[number] = Entry(
                        number, str(record["kind"]), str(record["reason"]), str(record["user"]), float(record["time"]),
                        str(record["boot"]), dict(record["detail"]), command=str(record.get("command", "")),
                        planned=self._once(_writes(record.get("planned"))),
                    )  # fmt: skip
                except (KeyError, TypeError, ValueError, OverflowError):
                    continue
            entry = found.get(number)
            if entry is None or entry.state != "open":
                continue
            if event == "writes":
                entry.writes += self._once(_writes(record.get("writes"), entry.planned))
            elif event == _TAKEN_BACK:
                entry.writes = ()
            elif event == _NOTE and isinstance(record.get("detail"), dict):
                entry.detail = record["detail"]
            elif event in _ENDS:
                entry.state = _ENDS[event]
                if isinstance(record.get("detail"), dict):
                    entry.detail = record["detail"]
        for entry in found.values():
            number = entry.detail.get("undoes") if entry.kind == UNDO and entry.state == "done" else None
            undone = found.get(number) if isinstance(number, int) else None
            if undone is not None and undone.state == "done":
                undone.state = "undone"
        return [replace(entry, detail=dict(entry.detail)) for entry in found.values()]

    def _once(self, writes: Iterable[Write]) -> tuple[Write, ...]:
        return tuple(self._kept.setdefault(one, one) for one in writes)

    def find(self, number: int) -> Entry | None:
        """One entry."""
        return next((entry for entry in self.entries() if entry.id == number), None)

    def begin(
        self, kind: str, reason: str, boot: str, detail: Mapping[str, Any], command: str = "",
        planned: Iterable[Write] = (),
    ) -> Entry:  # fmt: skip
        """A new entry; `planned` are writes that are meant to be made, with what is thought to stand there."""
        number = max((entry.id for entry in self.entries()), default=0) + 1
        entry = Entry(
            number, kind, reason, _user(), time.time(), boot, dict(detail), command=command, planned=tuple(planned)
        )
        self._store.append({
            "id": entry.id, "event": "begin", "kind": kind, "reason": reason, "user": entry.user, "time": entry.time,
            "boot": boot, "detail": entry.detail, "command": command,
            "planned": [one.to_json() for one in entry.planned],
        })  # fmt: skip
        return entry

    def writes(self, entry: Entry, writes: Iterable[Write]) -> None:
        """What is about to be written. It is on the disk when this returns, and was already if it was planned.

        Of a planned place that holds other bytes by now, as a counter does, those get to the disk with the next `sync`.
        """
        new = tuple(writes)
        exact = {one: at for at, one in enumerate(entry.planned)}
        places = {(one.space, one.address, len(one.new)) for one in entry.planned}
        told = [exact[one] if one in exact else one.to_json() for one in new]
        foreseen = all((one.space, one.address, len(one.new)) in places for one in new)
        self._store.append({"id": entry.id, "event": "writes", "writes": told}, sync=not foreseen)
        entry.writes += new

    def taken_back(self, entry: Entry) -> None:
        """All that was written was put back."""
        self._store.append({"id": entry.id, "event": _TAKEN_BACK})
        entry.writes = ()

    def note(self, entry: Entry) -> None:
        """What its detail says by now, for who finds the entry open. It gets to the disk with the next `sync`."""
        self._store.append({"id": entry.id, "event": _NOTE, "detail": entry.detail}, sync=False)

    def end(self, entry: Entry, state: State, *, sync: bool = True) -> None:
        """How the entry ended: done, put back or broken. Without `sync` it gets to the disk with the next `sync`."""
        self._store.append({"id": entry.id, "event": state, "detail": entry.detail}, sync=sync)
        entry.state = state

    def sync(self) -> None:
        """Get everything to the disk."""
        self._store.sync()


def _writes(told: object, planned: Sequence[Write] = ()) -> Iterable[Write]:
    """Writes from a record: each whole, or a planned one's number."""
    for one in told if isinstance(told, list) else []:
        try:
            yield planned[one] if one in range(len(planned)) else Write.from_json(one)
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
