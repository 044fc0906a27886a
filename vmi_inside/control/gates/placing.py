"""Denying and allowing: rules put into a running guest and taken out again, each as one transaction.

Knows the order of things, and when it is safe. What stands is told by `standing`, whom a rule is for by `rules`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmi_inside.control.gates import operations, rules
from vmi_inside.control.gates.layout import Network, Rule, Scope, State
from vmi_inside.control.gates.rules import Found, Subject
from vmi_inside.control.gates.standing import Change, Plan, Site
from vmi_inside.control.journal import Write
from vmi_inside.errors import Conflict, ControlError, MemoryFault, Unsafe, VmiError
from vmi_inside.kernel import Kernel

if TYPE_CHECKING:
    from vmi_inside.control.controls import Controls
    from vmi_inside.control.journal import Entry

#: Errors that a refused call can end in.
ERRNOS: Final = {"EACCES": errno.EACCES, "EPERM": errno.EPERM}
LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_TRIES: Final = 40
_WAIT: Final = 0.01
#: Tasks that were being made while others were marked are looked for so often, so many seconds apart.
_LOOKS: Final = 3
_LOOK_AGAIN: Final = 0.02
_WORD: Final = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the journal's entry (None for a dry run), seconds that the guest stood still, what was written.

    `notes` is what there is to say beside.
    """

    entry: Entry | None
    seconds: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """What is asked for: an operation, denied to somebody, with what is let through."""

    operation: str
    subject: Subject
    networks: tuple[Network, ...] = ()
    unix: bool = False
    errno: str = "EACCES"
    force: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        known(self.operation)
        if self.errno not in ERRNOS:
            raise ControlError(f"a refused call ends in {' or '.join(ERRNOS)}, not in {self.errno}")
        if self.operation != operations.NETWORK and (self.networks or self.unix):
            raise ControlError(f"networks and unix sockets have nothing to do with {self.operation}")

    def detail(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "gate": "deny", "operation": self.operation, "subject": str(self.subject), "errno": self.errno,
            "allow": [str(network) for network in self.networks], "unix": self.unix,
        }  # fmt: skip


def known(name: str) -> operations.Operation:
    """The operation of that name. Raises `ControlError`, with those there are."""
    found = operations.OPERATIONS.get(name)
    if found is None:
        raise ControlError(f"there is no operation {name!r} to deny; there are {', '.join(operations.OPERATIONS)}")
    return found


def networks(texts: Iterable[str], *, loopback: bool) -> tuple[Network, ...]:
    """Networks from text: `10.0.0.0/8`, `fd00::/8`, `192.0.2.1`. Raises `ControlError`."""
    found: list[Network] = []
    for one in texts:
        try:
            found.append(ip_network(one))
        except ValueError as error:
            raise ControlError(f"no network: {error}") from None
    return tuple(dict.fromkeys((*found, *(LOOPBACK if loopback else ()))))


class Placing:
    """Puts rules into one guest and takes them out."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.kernel: Kernel = controls.kernel
        self.site = Site(self.kernel)

    def deny(self, asked: Denial, *, dry: bool = False) -> Outcome:
        """Refuse the operation to the subject. Raises `Conflict` when that stands already, `ControlError`, `Unsafe`."""

        def plan(number: str) -> tuple[Plan, list[Change], State]:
            before, raw = self.site.read()
            found = rules.find(self.kernel, self.site.offsets, asked.subject, force=asked.force)
            state = before or self.site.fresh()
            if before is not None and not self.site.ours(before):
                raise Conflict("gates of another version of vmi-inside stand there; take those out first")
            bit = known(asked.operation).bit
            alike = {slot: rule for slot, rule in state.rules.items() if rule.operations == bit}
            if any(rules.same(rule, asked.subject, found) for rule in alike.values()):
                raise Conflict(f"{asked.operation} is denied to {asked.subject} already")
            # Of an earlier process with that pid nothing is left that its rule could be for.
            stale = {
                slot: rule for slot, rule in alike.items() if rule.scope == Scope.PROCESS and rule.pid == found.pid
            }  # fmt: skip
            state = replace(state, rules={slot: rule for slot, rule in state.rules.items() if slot not in stale})
            more = self._uncount(stale.values())
            if found.scope == Scope.MARKED:
                found, marks = self._mark(state, found)
                more += marks
            slot = next(at for at in range(len(state.rules) + 1) if at not in state.rules)
            rule = Rule(
                bit, found.scope, operations.families(known(asked.operation), unix=asked.unix), ERRNOS[asked.errno],
                found.number, found.first, found.second, self.site.spare_counter(state), asked.networks,
                found.pid, int(time.time()), found.name, number,
            )  # fmt: skip
            after = replace(state, rules=dict(sorted({**state.rules, slot: rule}.items())))
            try:
                return self.site.plan(before, raw, after), more, after
            except ValueError as error:
                raise ControlError(f"no more gates: {error}") from None

        reason = _because(f"deny {asked.operation} to {asked.subject}", asked.reason)
        outcome, after = self._do(plan, reason, asked.detail(), dry=dry, coming=True)
        if asked.subject.children and not dry:
            self._mark_the_rest(after, asked.subject, reason)
        return outcome

    def allow(
        self, operation: str | None, subject: Subject | None, reason: str = "", *, dry: bool = False
    ) -> Outcome:  # fmt: skip
        """Take the rules out that deny this; None stands for any. Raises `ControlError` when there is none."""
        bit = known(operation).bit if operation is not None else 0
        cleared = [0]

        def plan(_: str) -> tuple[Plan, list[Change], State]:
            before, raw = self.site.read()
            found = None
            if subject is not None:
                with suppress(ControlError):  # it may be no more, and its rule still there
                    found = rules.find(self.kernel, self.site.offsets, subject, force=True)
            gone = {
                slot: rule for slot, rule in (before.rules if before else {}).items()
                if (not bit or rule.operations == bit) and (
                    subject is None or rules.same(rule, subject, found) or rules.same(rule, subject, None)
                )
            }  # fmt: skip
            if before is None or not gone:
                raise ControlError(f"{words} is not denied; nothing was changed")
            after = replace(before, rules={at: rule for at, rule in before.rules.items() if at not in gone})
            cleared[0] = sum({rule.number for rule in gone.values() if rule.scope == Scope.MARKED})
            changes = self._unmark(before, cleared[0]) if cleared[0] else []
            changes += self._uncount(gone.values())
            return self.site.plan(before, raw, after), changes, before

        words = f"{operation or 'anything'} to {subject or 'anybody'}"
        detail = {"gate": "allow", "operation": operation or "", "subject": str(subject or "")}
        outcome, before = self._do(plan, _because(f"allow {words}", reason), detail, dry=dry, coming=False)
        if cleared[0] and not dry:
            self._again(lambda: self._unmark(before, cleared[0]), f"allow {words}: children made meanwhile")
        return outcome

    # -- one transaction ----------------------------------------------------------------------------------------------

    def _do(
        self, plan: Callable[[str], tuple[Plan, list[Change], State]], reason: str, detail: Mapping[str, Any], *,
        dry: bool, coming: bool,
    ) -> tuple[Outcome, State]:  # fmt: skip
        """Plan, stop the guest, write. What changed in between is seen before anything is written, and planned anew."""
        made, more, state = plan("")  # what is wrong with it is found before all else
        if dry:
            return Outcome(None, 0.0, (*more, *made.records, *made.code), made.notes), state
        refused: VmiError | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_WAIT)
            with self.controls.transaction_lock():
                number = max((entry.id for entry in self.controls.journal()), default=0) + 1
                made, more, state = plan(str(number))
                changes = (*more, *made.records, *made.code) if coming else (*made.code, *made.records, *more)
                code = set(made.code)
                try:
                    with self.controls.transaction(reason, kind="gate", detail=detail, code=True) as change:
                        pause = change.pause
                        if made.inside:
                            change.nobody_in([self.site.code_range])
                        change.make(
                            Write(one.address, b"" if one.moving else one.old, one.new, one in code) for one in changes
                        )  # fmt: skip
                except (Conflict, Unsafe, MemoryFault) as error:
                    refused = error
                    continue
            return Outcome(change.entry, pause.seconds, changes, made.notes), state
        raise refused or ControlError(f"{reason}: not done")

    def _uncount(self, gone: Iterable[Rule]) -> list[Change]:
        """Counts back to what they were: nothing."""
        changes = []
        for rule in gone:
            count = self.kernel.space.read(rule.counter, 8) if rule.counter else b""
            if any(count):
                what = "a word that nothing uses: refusals"
                changes.append(Change(rule.counter, count, bytes(8), what, moving=True))
        return changes

    # -- marks --------------------------------------------------------------------------------------------------------

    def _mark(self, state: State, found: Found) -> tuple[Found, list[Change]]:
        """A bit for the descendants of a process, and the words to change."""
        if not state.mark:
            raise ControlError("this kernel's tasks have no unused bits to mark a process's children with")
        rows, word = self._words(state)
        used = int(np.bitwise_or.reduce(word, initial=0))
        for rule in state.rules.values():
            used |= rule.number if rule.scope == Scope.MARKED else 0
        bit = next((1 << at for at in range(32) if not used >> at & 1), 0)
        if not bit:
            raise ControlError("no more gates for processes with their children: 32 stand")
        mine = rules.descendants(rows, found.pid, found.first, np.zeros(len(rows), dtype=np.bool_))
        changes = _changes(state, rows.address[mine].tolist(), word[mine].tolist(), set_=bit)
        return replace(found, number=bit), changes

    def _unmark(self, state: State, bits: int) -> list[Change]:
        rows, word = self._words(state)
        marked = word & bits != 0
        return _changes(state, rows.address[marked].tolist(), word[marked].tolist(), clear=bits)

    def _words(self, state: State) -> tuple[Any, Any]:
        """All tasks that can be read, and their spare words (n,) uint32."""
        rows = rules.tasks(self.kernel)
        raw, ok = self.kernel.space.gather(rows.address + np.uint64(state.mark), _WORD)
        good = ok & ~rows.fault & (rows.address != 0)
        return rows.select(good), raw[good].view("<u4")[:, 0]

    def _mark_the_rest(self, state: State, subject: Subject, reason: str) -> None:
        """Tasks that were being made while their parents were marked, and were not on any list then."""
        rule = next(
            one for one in state.rules.values() if one.scope == Scope.MARKED and one.pid == subject.pid
        )  # fmt: skip

        def missing() -> list[Change]:
            rows, word = self._words(state)
            marked = word & rule.number != 0
            mine = rules.descendants(rows, rule.pid, rule.first, marked) & ~marked
            return _changes(state, rows.address[mine].tolist(), word[mine].tolist(), set_=rule.number)

        self._again(missing, f"{reason}: children made meanwhile")

    def _again(self, missing: Callable[[], list[Change]], reason: str) -> None:
        clean = 0
        for _ in range(_TRIES):
            time.sleep(_LOOK_AGAIN)
            if not missing():
                clean += 1
                if clean == _LOOKS:
                    return
                continue
            clean = 0
            with self.controls.transaction(reason, kind="gate") as change:
                change.apply([(one.address, one.new, one.old) for one in missing()])


def _changes(state: State, address: list[int], word: list[int], *, set_: int = 0, clear: int = 0) -> list[Change]:
    return [
        Change(
            at + state.mark, old.to_bytes(_WORD, "little"), (old & ~clear | set_).to_bytes(_WORD, "little"),
            "task_struct: a word that nothing uses",
        ) for at, old in zip(address, word, strict=True)
    ]  # fmt: skip


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
