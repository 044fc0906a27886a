"""Denying and allowing: rules put into a running guest and taken out again, each as one transaction.

Knows the order of things, and when it is safe. What stands is told by `standing`, whom a rule is for by `rules`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from vmi_inside.control.gates import marks, operations, rules
from vmi_inside.control.gates.aborting import Aborted, Aborting
from vmi_inside.control.gates.changes import KIND, Change, Plan
from vmi_inside.control.gates.folders import folders
from vmi_inside.control.gates.layout import Network, Rule, Scope
from vmi_inside.control.gates.rules import Subject
from vmi_inside.control.gates.standing import Site
from vmi_inside.control.journal import Write
from vmi_inside.control.sleepers import standing
from vmi_inside.errors import Conflict, ControlError, MemoryFault, Unsafe, Unsupported, VmiError
from vmi_inside.kernel import Kernel

if TYPE_CHECKING:
    from vmi_inside.control.controls import Controls
    from vmi_inside.control.journal import Entry

#: Errors that a refused call can end in.
ERRNOS: Final = {"EACCES": errno.EACCES, "EPERM": errno.EPERM}
LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_TRIES: Final = 40
_PLANNED_BEFORE: Final = 4
_WAIT: Final = 0.01
#: Tasks that were being made while others were marked are looked for so often, so many seconds apart.
_LOOKS: Final = 3
_LOOK_AGAIN: Final = 0.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the journal's entry (None for a dry run), seconds that the guest stood still, what was written.

    `aborted` is what became of open connections, where that was asked for. `notes` is what there is to say beside.
    """

    entry: Entry | None
    seconds: float
    changes: tuple[Change, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    aborted: Aborted | None = None


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
    abort: bool = False
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known(self.operation)
        if self.errno not in ERRNOS:
            raise ControlError(f"a refused call ends in {' or '.join(ERRNOS)}, not in {self.errno}")
        if self.operation != operations.NETWORK and (self.networks or self.unix or self.abort):
            raise ControlError(f"networks, unix sockets and connections have nothing to do with {self.operation}")

        if self.operation != operations.OPEN and self.paths:
            raise ControlError(f"paths have nothing to do with {self.operation}")

    def detail(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "gate": "deny", "operation": self.operation, "subject": str(self.subject), "errno": self.errno,
            "allow": [str(network) for network in self.networks], "unix": self.unix,
            "abort": self.abort, "paths": list(self.paths),
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


@dataclass(frozen=True, slots=True)
class _Planned:
    """One change of rules before it is made: all that is written, in that order, and the rules that come or go.

    `mark` is the offset of the spare word in task_struct.
    """

    plan: Plan
    changes: tuple[Change, ...]
    mark: int
    rules: tuple[Rule, ...]

    @property
    def bits(self) -> int:
        """The marks in tasks that come or go."""
        return _bits(self.rules)


class Placing:
    """Puts rules into one guest and takes them out."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.kernel: Kernel = controls.kernel
        self.site = Site(self.kernel)

    def deny(self, asked: Denial, *, dry: bool = False) -> Outcome:
        """Refuse the operation to the subject. Raises `Conflict` when that stands already, `ControlError`, `Unsafe`."""
        aborting = Aborting(self.controls, self.site.offsets) if asked.abort else None
        reason = _because(f"deny {asked.operation} to {asked.subject}", asked.reason)
        outcome, made = self._do(lambda entry: self._plan_denial(asked, entry), reason, asked.detail(), dry=dry)
        if dry:
            return outcome if aborting is None else replace(outcome, notes=(*outcome.notes, aborting.words()))
        (rule,) = made.rules
        if asked.subject.children:
            self._follow(lambda: marks.unmarked(self.kernel, made.mark, rule), reason)
        if aborting is not None:
            outcome = self._abort(aborting, outcome, rule, made.mark, reason)
        return outcome

    def allow(
        self, operation: str | None, subject: Subject | None, reason: str = "", *, dry: bool = False
    ) -> Outcome:  # fmt: skip
        """Take the rules out that deny this; None stands for any. Raises `ControlError` when there is none."""
        bit = known(operation).bit if operation is not None else 0
        words = f"{operation or 'anything'} to {subject or 'anybody'}"
        detail = {"gate": "allow", "operation": operation or "", "subject": str(subject or "")}
        outcome, made = self._do(
            lambda _: self._plan_allowing(bit, subject, words), _because(f"allow {words}", reason), detail, dry=dry
        )
        if made.bits and not dry:
            self._follow(lambda: marks.clear(self.kernel, made.mark, made.bits), f"allow {words}")
        return outcome

    def _plan_denial(self, asked: Denial, entry: str) -> _Planned:
        before, raw = self.site.read()
        found = rules.find(self.kernel, self.site.offsets, asked.subject, force=asked.force)
        limited = folders(self.kernel, asked.subject.pid, asked.paths)
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
            found, words = marks.mark(self.kernel, state, found)
            more += words
        slot = next(at for at in range(len(state.rules) + 1) if at not in state.rules)
        counter, begun = self.site.spare_counter(state)
        rule = Rule(
            bit, found.scope, operations.families(known(asked.operation), unix=asked.unix), ERRNOS[asked.errno],
            found.number, found.first, found.second, counter, asked.networks, found.pid,
            int(time.time()), found.name, entry, begun, limited,
        )  # fmt: skip
        after = replace(state, rules=dict(sorted({**state.rules, slot: rule}.items())))
        try:
            plan = self.site.plan(before, raw, after)
        except ValueError as error:
            raise ControlError(f"no more gates: {error}") from None
        return _Planned(plan, (*more, *plan.records, *plan.code), state.mark, (rule,))

    def _plan_allowing(self, bit: int, subject: Subject | None, words: str) -> _Planned:
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
        plan, going = self.site.plan(before, raw, after), tuple(gone.values())
        bits = _bits(going)
        more = (marks.clear(self.kernel, before.mark, bits) if bits else []) + self._uncount(going)
        return _Planned(plan, (*plan.code, *plan.records, *more), before.mark, going)

    def _abort(self, aborting: Aborting, outcome: Outcome, rule: Rule, mark: int, reason: str) -> Outcome:
        """Raises what went wrong, in which the gate is said to stand."""
        try:
            aborted = aborting.abort(rule, mark, reason)
        except VmiError as error:
            kind = type(error) if isinstance(error, ControlError | Unsupported) else ControlError
            raise kind(f"the gate stands, but not all connections could be ended: {error}") from error
        return replace(outcome, aborted=aborted, notes=(*outcome.notes, aborted.words()))

    def settle(self, entry: Entry) -> None:
        """After a change of gates was undone: who was born meanwhile bears the marks that stand, and no others."""
        mark, bits = entry.detail.get("mark"), entry.detail.get("bits")
        if not isinstance(mark, int) or not isinstance(bits, int) or not mark:
            return
        state, _ = self.site.read()
        listed = [rule for rule in state.rules.values() if rule.scope == Scope.MARKED] if state else []
        standing = [rule for rule in listed if rule.number & bits]
        stale = bits & ~_bits(listed)

        def missing() -> list[Change]:
            found = marks.clear(self.kernel, mark, stale) if stale else []
            return found + [one for rule in standing for one in marks.unmarked(self.kernel, mark, rule)]

        self._follow(missing, f"undo of {entry.id}")

    # -- one transaction ----------------------------------------------------------------------------------------------

    def _do(
        self, plan: Callable[[str], _Planned], reason: str, detail: Mapping[str, Any], *, dry: bool
    ) -> tuple[Outcome, _Planned]:
        """Plan, stop the guest, write. What changed in between is seen before anything is written, and planned anew.

        `plan` is told the journal's number of the change.
        """
        made = plan("")  # what is wrong with it is found before all else
        if dry:
            return Outcome(None, 0.0, made.changes, made.plan.notes), made
        refused: VmiError | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_WAIT)
            with self.controls.transaction_lock():
                number = max((entry.id for entry in self.controls.journal()), default=0) + 1
                # The guest stands shortest when all is planned before; one that changes faster than that stands longer.
                still = attempt >= _PLANNED_BEFORE
                planned: list[Write] = []
                if not still:
                    made = plan(str(number))
                    planned = _writes(made)
                    if made.plan.inside:  # once now, so that what it needs of the kernel's types is known in the pause
                        standing(self.kernel, [self.site.code_range], [])
                try:
                    with self.controls.transaction(
                        reason, kind=KIND, detail=detail, code=True, planned=planned
                    ) as change:
                        pause = change.pause
                        if still:
                            made = plan(str(number))
                        change.detail.update(mark=made.mark, bits=made.bits)
                        if made.plan.inside:
                            change.nobody_in([self.site.code_range])
                        change.make(
                            (
                                replace(one, old=b"") if of.moving else one
                                for one, of in zip(_writes(made), made.changes, strict=True)
                            ),
                            living=True,
                        )
                except (Conflict, Unsafe, MemoryFault) as error:
                    refused = error
                    continue
            return Outcome(change.entry, pause.seconds, made.changes, made.plan.notes), made
        raise refused or ControlError(f"{reason}: not done")

    def _uncount(self, gone: Iterable[Rule]) -> list[Change]:
        """Counts back to where they began, however far they are by then."""
        return [
            Change(
                rule.counter, self.kernel.space.read(rule.counter, 8), rule.base.to_bytes(8, "little"),
                "a word that nothing uses: refusals", moving=True,
            ) for rule in gone if rule.counter
        ]  # fmt: skip

    def _follow(self, missing: Callable[[], list[Change]], reason: str) -> None:
        """Tasks that were being made while others were marked, and were on no list then: until none is left."""
        clean = 0
        for _ in range(_TRIES):
            time.sleep(_LOOK_AGAIN)
            if missing():
                clean = 0
                with (
                    suppress(Conflict, MemoryFault),  # tasks come and go
                    self.controls.transaction(f"{reason}: children made meanwhile", kind=KIND) as change,
                ):
                    writes = [Write(one.address, one.old, one.new, space=one.space) for one in missing()]
                    change.make(writes, living=True)
            elif (clean := clean + 1) == _LOOKS:
                return


def _writes(made: _Planned) -> list[Write]:
    """What is planned, as the journal has it."""
    code = set(made.plan.code)
    return [Write(one.address, one.old, one.new, one in code, one.space) for one in made.changes]


def _bits(listed: Iterable[Rule]) -> int:
    """The marks of those rules that are for marked tasks."""
    return sum({rule.number for rule in listed if rule.scope == Scope.MARKED})


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
