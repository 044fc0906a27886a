"""What of gates stands in a guest, told from its memory alone; and what must change for other rules to stand.

Knows how records, code and jumps go together. Writing is left to `placing`, what rules say to `rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from vmi_inside.control.gates import layout, marks
from vmi_inside.control.gates.changes import Change, Plan
from vmi_inside.control.gates.entries import SIZE, Entry, find_entry
from vmi_inside.control.gates.holes import spare_words
from vmi_inside.control.gates.layout import CODE_AT, Hook, NotOurs, State
from vmi_inside.control.gates.offsets import Offsets, find_offsets
from vmi_inside.control.gates.operations import OPERATIONS, Operation
from vmi_inside.control.gates.stub import Code, Numbers, Target, assemble
from vmi_inside.control.gates.tracing import Records
from vmi_inside.control.padding import PADDING, is_padding, padding
from vmi_inside.errors import Conflict, Unsafe, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.gated import AREA_SIZE

_EMPTY: Final = bytes([PADDING]) * AREA_SIZE
#: Bytes that differ are written as one when they are so close.
_NEARBY: Final = 64


class Site:
    """The place for gates in one kernel. Nothing in it changes while the kernel runs.

    Raises `Unsupported` where the kernel has no room for gates, or lacks what they need.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.base = padding(kernel, AREA_SIZE)
        self.offsets: Offsets = find_offsets(kernel)
        self._codes: dict[int, Code] = {}
        self._records: Records | None = None

    @property
    def code_range(self) -> tuple[int, int]:
        """First and last address of the room for code."""
        return self.base + CODE_AT, self.base + AREA_SIZE - 1

    def code(self, mark: int) -> Code:
        """The code for this kernel, with the spare word in task_struct that it looks at."""
        if mark not in self._codes:
            targets = tuple(
                Target(entry.symbol, entry.behind, hooked.kind, operation.bit)
                for operation in OPERATIONS.values()
                for hooked in operation.hooks
                if (entry := find_entry(self.kernel, *hooked.symbols)) is not None
            )
            numbers = Numbers(
                *(self.kernel.profile.enumerator(name) or 0 for name in ("READING_MODULE", "LOADING_MODULE"))
            )
            self._codes[mark] = assemble(self.base, self.offsets, mark, targets, numbers)
        return self._codes[mark]

    def read(self) -> tuple[State | None, bytes]:
        """What stands: the records, None where there is nothing; and the area's bytes.

        Raises `Conflict` where something stands that is not ours, `MemoryFault`.
        """
        raw = self.kernel.space.read(self.base, AREA_SIZE)
        try:
            return layout.decode(self.base, raw), raw
        except NotOurs as error:
            if raw == _EMPTY and is_padding(self.kernel, self.base, AREA_SIZE):
                return None, raw
            raise Conflict(
                f"the room for gates at {self.base:#x} holds something else ({error}); nothing was changed"
            ) from None

    def fresh(self) -> State:
        """The records of no rule at all."""
        mark = marks.choose(self.kernel)
        raw = self.code(mark).raw
        return State(len(raw), code_id(raw), mark)

    def ours(self, state: State) -> bool:
        """Whether the code that stands is the one that this version would write."""
        return state.code_id == code_id(self.code(state.mark).raw)

    def rule_address(self, slot: int) -> int:
        """Where a rule lies in the guest."""
        return self.base + layout.RULES_AT + slot * layout.RULE_SIZE

    def spare_counter(self, state: State) -> tuple[int, int]:
        """The address of a word to count in, and what it holds; 0 where the kernel has none left."""
        used = {rule.counter for rule in state.rules.values()}
        return next(((va, value) for va, value in spare_words(self.kernel) if va not in used), (0, 0))

    def plan(self, before: State | None, raw: bytes, after: State) -> Plan:
        """From what stands to other rules; without rules to nothing at all. `raw` are the area's bytes.

        Raises `Unsafe` when a function is somebody else's, `Unsupported` when the kernel lacks one that is needed.
        """
        notes: list[str] = []
        hooks = {hook.at: hook for hook in before.hooks} if before else {}
        targets = {hook.at: self._target(hook) for hook in hooks.values()}
        wanted: dict[int, Hook] = {}
        jumps: dict[int, bytes] = {}
        if after.rules:
            for entry in self._entries(_needed(after), notes):
                jump = layout.hook(entry.at, self.code(after.mark).entry[entry.symbol])
                if entry.at in hooks and entry.found == targets[entry.at]:
                    wanted[entry.at] = hooks[entry.at]
                elif entry.state == "free":
                    wanted[entry.at] = Hook(entry.at, entry.found)
                else:
                    raise Unsafe(f"{entry.words()}; nothing was changed")
                jumps[entry.at] = jump
        image = bytearray(_EMPTY)
        if after.rules:
            code = raw[CODE_AT : CODE_AT + before.code_size] if before else self.code(after.mark).raw
            image[CODE_AT : CODE_AT + len(code)] = code
            for at, piece in layout.encode(self.base, replace(after, hooks=tuple(wanted.values()))).items():
                image[at : at + len(piece)] = piece
        records = [change for at in wanted if at not in hooks for change in self._leave_alone(at, True)]
        records += [change for at in hooks if at not in wanted for change in self._leave_alone(at, False)]
        code_changes: list[Change] = []
        for start, end in _differences(raw, bytes(image)):
            where = records if start < CODE_AT else code_changes
            what = "code of gates" if start >= CODE_AT else "records of gates"
            where.append(Change(self.base + start, raw[start:end], bytes(image[start:end]), what))
        for at, hook in wanted.items():
            if at not in hooks:
                code_changes.append(Change(at, hook.found, jumps[at], self._named(at)))
        gone = [
            Change(at, targets[at], hook.found, self._named(at)) for at, hook in hooks.items() if at not in wanted
        ]  # fmt: skip
        return Plan(tuple(records), (*gone, *code_changes), before is not None, tuple(notes))

    def broken(self, state: State) -> list[str]:
        """Which functions that should lead here do not, in words."""
        found = []
        for hook in state.hooks:
            if self.kernel.space.read(hook.at, SIZE) != self._target(hook):
                found.append(f"{self._named(hook.at)} does not lead to the gates any more")
        return found

    def leads_here(self, at: int, raw: bytes) -> bool:
        """Whether 5 bytes at an address are a jump into the room for gates."""
        low, high = self.code_range
        return raw[0] == 0xE9 and low <= at + SIZE + int.from_bytes(raw[1:5], "little", signed=True) <= high

    def _leave_alone(self, at: int, alone: bool) -> Iterable[Change]:
        """What tells the kernel's tracer to leave a function alone, or no more to."""
        if self._records is None:
            self._records = Records(self.kernel)
        where, disabled = self._records.flags(at), self._records.disabled
        if not where:
            return
        flags = self.kernel.space.read_u64(where)
        new = flags | disabled if alone else flags & ~disabled
        if new != flags:
            what = f"tracing record of {self._named(at)}"
            yield Change(where, flags.to_bytes(8, "little"), new.to_bytes(8, "little"), what)

    def _target(self, hook: Hook) -> bytes:
        """What stands at a function that was hooked, if it is as it was left."""
        raw = self.kernel.space.read(hook.at, SIZE)
        # Of another version's code we do not know where each stub begins: any jump into it is its.
        return raw if self.leads_here(hook.at, raw) else layout.hook(hook.at, self.base + CODE_AT)

    def _entries(self, operations: Iterable[Operation], notes: list[str]) -> Iterable[Entry]:
        for operation in operations:
            for hooked in operation.hooks:
                entry = find_entry(self.kernel, *hooked.symbols)
                if entry is not None:
                    yield entry
                elif hooked.needed:
                    raise Unsupported(f"{operation.name}: this kernel has no {' or '.join(hooked.symbols)}")
            if operation.name == "module" and None in (
                self.kernel.profile.enumerator("READING_MODULE"), self.kernel.profile.enumerator("LOADING_MODULE")
            ):  # fmt: skip
                raise Unsupported("module: this kernel's types do not tell what it reads and loads files for")

    def _named(self, address: int) -> str:
        found = self.kernel.profile.symbol_at(address)
        return found[0] if found else f"{address:#x}"


def code_id(raw: bytes) -> bytes:
    """Names a piece of code: 8 bytes."""
    return hashlib.sha256(raw).digest()[:8]


def _needed(state: State) -> list[Operation]:
    bits = 0
    for rule in state.rules.values():
        bits |= rule.operations
    return [operation for operation in OPERATIONS.values() if operation.bit & bits]


def _differences(old: bytes, new: bytes) -> Iterable[tuple[int, int]]:
    """Where two areas differ: from, to; none crosses from records to code, nearby ones are one."""
    at = np.flatnonzero(np.frombuffer(old, dtype=np.uint8) != np.frombuffer(new, dtype=np.uint8))
    if not len(at):
        return
    cut = (np.diff(at) > _NEARBY) | ((at[:-1] < CODE_AT) & (at[1:] >= CODE_AT))
    first = np.concatenate((at[:1], at[1:][cut])).tolist()
    last = np.concatenate((at[:-1][cut], at[-1:])).tolist()
    yield from zip(first, (one + 1 for one in last), strict=True)
