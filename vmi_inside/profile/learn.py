"""From guest RAM to a profile and a paging root: the order in which a kernel is found, decoded, checked and kept.

Knows which kernel to believe. Finding banners, symbols and types is left to `find`, `kallsyms` and `btf`, reading
memory to a driver.

What is found is believed only when everything agrees: the banner stands where the symbol `linux_banner` says, the
build id where `__start_notes` says, `init_uts_ns` holds the banner's release, `init_task` is called swapper, and the
page tables at `init_top_pgt` map the kernel's text to where it was found. That walk also tells the number of levels and
the address that the kernel runs at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vmi_inside.arch.paging import BY_LEVELS
from vmi_inside.errors import NoMember, UnknownKernel, WrongProfile
from vmi_inside.memory import PhysicalMemory
from vmi_inside.profile import btf, find, kallsyms, vmcoreinfo
from vmi_inside.profile.cache import Cache
from vmi_inside.profile.find import SLOT, Banner
from vmi_inside.profile.profile import Build, Profile
from vmi_inside.profile.symbols import Symbols
from vmi_inside.space import AddressSpace
from vmi_inside.types import align_down, align_up

if TYPE_CHECKING:
    from vmi_inside.profile.given import Given

#: The kernel's image is mapped somewhere in this gigabyte (KERNEL_IMAGE_SIZE, arch/x86/include/asm/page_64_types.h).
_IMAGE: Final = 0xFFFF_FFFF_8000_0000
_IMAGE_SIZE: Final = 1 << 30
_ROOTS: Final = ("init_top_pgt", "swapper_pg_dir")
_BANNER_REACH: Final = 64  # slots from the start of .rodata to the one with linux_banner
_TRIES: Final = 64  # banners that are looked behind: a guest may be full of them
_NOTES_LIMIT: Final = 1 << 16
_UTS_SIZE: Final = 1024  # a uts_namespace is smaller
_WINDOWS: Final = b"ntkrnlmp.pdb"
_WALL_CLOCK_LIMIT: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of the kernel that runs: `delta` is what to add to an address in its image to get the physical one.

    `root` is the physical address of the top-level page table, `levels` 4 or 5. `text` is the physical address of the
    image. `known` says whether the profile came from the cache.
    """

    profile: Profile
    delta: int
    root: int
    levels: int
    text: int
    known: bool
    warnings: tuple[str, ...] = ()


def learn(
    memory: PhysicalMemory, *, cache: Cache | None = None, hint: int | None = None, given: Given | None = None
) -> Learned:
    """Find the Linux kernel that runs in this memory. Raises `UnknownKernel`, and `WrongProfile`.

    `given` is a profile out of a file: what it says is taken, rather than what the memory says, and nothing is kept.
    `hint` is a physical address in the running kernel's text, where one is known: then nothing else is searched.
    """
    if not memory.runs:
        raise UnknownKernel("the guest has no memory to look at")
    search = _Search(memory, None if given else cache, given)
    found: list[Learned] = []
    if hint is not None:
        found = search.run(find.near(memory, hint))[:1]
    if not found:
        found = search.run(find.everywhere(memory))
    if not found:
        found = search.run(find.all_banners(memory))
    if not found and search.mismatch:
        raise WrongProfile(search.mismatch)
    if not found:
        raise UnknownKernel(search.why_not())
    best = max(found, key=lambda one: _wall_clock(memory, one))
    if len(found) > 1:
        others = ", ".join(f"{one.profile.release} at {one.text:#x}" for one in found if one is not best)
        search.warnings.append(
            f"several kernels lie in this memory, as after a reboot; took {best.profile.release} at {best.text:#x}, "
            f"whose clock is latest, not {others}"
        )
    return replace(best, warnings=(*search.warnings, *(cache.warnings if cache else ())))


class _Search:
    """One call of `learn`: what was tried, and why what was found was not believed."""

    def __init__(self, memory: PhysicalMemory, cache: Cache | None, given: Given | None = None) -> None:
        self.memory = memory
        self.cache = cache
        self.given = given
        self.mismatch = ""
        self.warnings: list[str] = []
        self.reasons: list[str] = []
        self.decoded: dict[bytes, list[Build]] = {}
        self.tried: set[int] = set()
        self.seen = 0

    def run(self, banners: Iterator[Banner]) -> list[Learned]:
        """The kernels behind these banners that hold together."""
        found: list[Learned] = []
        for banner in banners:
            if banner.pa in self.tried or any(one.text <= banner.pa < one.text + _size(one) for one in found):
                continue
            self.tried.add(banner.pa)
            self.seen += 1
            if self.seen > _TRIES:
                self.warnings.append(f"there are more than {_TRIES} Linux banners in this memory; looked no further")
                break
            learned = self._remembered(banner) or self._decoded(banner)
            if learned is not None:
                found.append(learned)
        return found

    def _remembered(self, banner: Banner) -> Learned | None:
        """The kernel with this banner, by a profile that was kept: nothing is decoded."""
        for build in self._builds(banner):
            try:
                return _believe(self.memory, build, banner.pa - build.anchor, known=True)
            except (WrongProfile, _Doubt):
                continue  # another build with the same banner
        return None

    def _builds(self, banner: Banner) -> Iterator[Build]:
        yield from self.decoded.get(banner.text, ())  # what a reboot left behind is mostly the same build
        for entry in self.cache.entries(banner.text) if self.cache else ():
            try:
                yield Build.from_parts(entry.meta, entry.arrays)
            except WrongProfile:
                continue  # will be replaced

    def _decoded(self, banner: Banner) -> Learned | None:
        """The kernel with this banner, decoded from its image and kept."""
        what = f"Linux {banner.release} at {banner.pa:#x}"
        reason = "has no symbol table that we know (kallsyms; the kernel's CONFIG_KALLSYMS_ALL is needed)"
        for tables in self._tables(banner):
            try:
                own = _own_banner(self.memory, banner, tables)
                text = own.pa - _value(tables.symbols, "linux_banner")
                self._compare(own, tables.symbols, text)
                types = (self.given and self.given.types) or _types(self.memory, tables.symbols, text)
                build_id = _build_id(self.memory, tables.symbols, text)
                build = Build(own.text, build_id, banner.pa - text, tables.symbols, types)
                learned = _believe(self.memory, build, text, known=False)
                if tables.origin not in (None, learned.profile.origin):
                    raise _Doubt("is not where its symbol table says")
            except (WrongProfile, _Doubt) as doubt:
                reason = str(doubt)
                continue
            if build.build_id:
                self.decoded.setdefault(banner.text, []).append(build)
            if self.cache and build.build_id:
                self.cache.save(banner.text, build.build_id, build.meta(), build.arrays())
            return learned
        self.reasons.append(f"{what} {reason}")
        return None

    def _tables(self, banner: Banner) -> Iterator[kallsyms.Kallsyms]:
        """The kernel's own symbols; behind them, or alone where it has none, those of the profile that was given."""
        yield from kallsyms.find(self.memory, align_down(banner.pa, SLOT))
        if self.given and self.given.symbols is not None:
            if self.given.banner and not self.given.banner.startswith(f"Linux version {banner.release} ".encode()):
                self.mismatch = self.mismatch or self._differ(banner)
                return
            yield kallsyms.Kallsyms(self.given.symbols, None, None)

    def _compare(self, own: Banner, symbols: Symbols, text: int) -> None:
        """Raise `_Doubt` when the profile that was given is of another kernel than this one."""
        if self.given is None:
            return
        reason = "" if self.given.banner in (b"", own.text) else "the banners differ"
        if not reason:
            try:
                types = _types(self.memory, symbols, text)
            except (_Doubt, WrongProfile):
                types = None
            reason = self.given.differs(symbols, types)
        if reason:
            self.mismatch = self._differ(own, reason)
            raise _Doubt("is another kernel than the profile's")

    def _differ(self, banner: Banner, reason: str = "the banners differ") -> str:
        assert self.given is not None
        there, here = (text.decode("utf-8", "backslashreplace").strip() for text in (self.given.banner, banner.text))
        of = f"it is of {there!r}" if there else "it does not say of which"
        return f"{self.given.path} is of another kernel: {of}, and the guest runs {here!r} ({reason})"

    def why_not(self) -> str:
        """For people: what was looked for, what was there, what to do."""
        if self.reasons:
            return (
                "no kernel that can be read: "
                + "; ".join(self.reasons[:4])
                + ". If the guest is still booting, try again; if this is its running kernel, a profile of it is needed"
            )
        size = sum(run.size for run in self.memory.runs) >> 20
        if all(_empty(self.memory, run.start, run.end) for run in self.memory.runs):
            return f"all {size} MiB of the guest's memory are zero: has it been started?"
        if next(find.scan(self.memory, _WINDOWS), None):
            return "the guest runs Windows: only Linux guests can be read"
        copy = next(vmcoreinfo.scan(self.memory), None)
        if copy is not None:
            return (
                f"Linux {copy[1]['OSRELEASE']} left its VMCOREINFO at {copy[0]:#x}, but its image is not in memory: it "
                "may have been replaced by another system, or the dump is not complete"
            )
        return (
            f"no Linux kernel in {size} MiB of guest memory (looked for its banner everywhere): the guest may be in "
            "its firmware or boot loader, then try again when it has booted; or it runs another system"
        )


class _Doubt(Exception):
    """What was found does not hold together; the text goes on from "Linux 6.1 at 0x1000 "."""


def _own_banner(memory: PhysicalMemory, banner: Banner, tables: kallsyms.Kallsyms) -> Banner:
    """The banner that the symbol `linux_banner` means: whole slots behind the one that was found, of the same release.

    They differ in what comes last: the spare one has no build number.
    """
    value = _value(tables.symbols, "linux_banner")
    first = align_down(banner.pa, SLOT) + value % SLOT
    offsets = tables.tables.get("kallsyms_offsets", 0)
    for pa in range(first, first + _BANNER_REACH * SLOT, SLOT):
        for own in find.match(_bytes(memory, pa, find.BANNER_LIMIT), pa):
            if own.pa == pa and own.release == banner.release and tables.place in (None, offsets - pa + value):
                return own
    raise _Doubt("has a symbol table that is not its own")


def _believe(memory: PhysicalMemory, build: Build, text: int, known: bool) -> Learned:
    """Check everything that is cheap to check. Raises `_Doubt`, and `WrongProfile` where the types are damaged."""
    symbols = build.symbols
    if text % SLOT or _bytes(memory, text + _value(symbols, "linux_banner"), len(build.banner)) != build.banner:
        raise _Doubt("is not where its symbols say")
    if known and _build_id(memory, symbols, text) != build.build_id:
        raise _Doubt("is another build")
    release = build.release.encode("ascii", "ignore") + b"\0"
    if release not in _bytes(memory, text + _value(symbols, "init_uts_ns"), _UTS_SIZE):
        raise _Doubt("does not call itself so (init_uts_ns)")
    task = build.types.struct("task_struct")
    if task is None or not task.has("comm"):
        raise _Doubt("has no type task_struct")
    if _bytes(memory, text + _value(symbols, "init_task") + task.member("comm").offset, 7) != b"swapper":
        raise _Doubt("has no init_task: its data are not initialised, or were overwritten")
    root = text + _value(symbols, *_ROOTS)
    for levels in BY_LEVELS:
        origin = _origin(memory, root, levels, text)
        if origin is not None:
            return Learned(Profile(build, origin), text - origin, root, levels, text, known)
    raise _Doubt("has no page tables that map it")


def _origin(memory: PhysicalMemory, root: int, levels: int, text: int) -> int | None:
    """The virtual address that these page tables map to the physical address `text`, in the kernel image's gigabyte."""
    va = np.arange(_IMAGE, _IMAGE + _IMAGE_SIZE, SLOT, dtype=np.uint64)
    pa, mapped = AddressSpace(memory, BY_LEVELS[levels], root).translate(va)
    hits = va[mapped & (pa == np.uint64(text))]
    return int(hits[0]) if len(hits) == 1 else None


def _types(memory: PhysicalMemory, symbols: Symbols, text: int) -> btf.Btf:
    """The kernel's BTF, which lies where its symbols say: a kernel that has one names its ends."""
    start, stop = symbols.find("__start_BTF"), symbols.find("__stop_BTF")
    if start is not None and stop is not None:
        at, end = int(symbols.values[start]), int(symbols.values[stop])
        size = btf.size(_bytes(memory, text + at, btf.HEADER_SIZE))
        if size is None or size > end - at:
            raise _Doubt("has type information (BTF) that is damaged")
        return btf.Btf(_bytes(memory, text + at, size))
    raise _Doubt("has no type information (CONFIG_DEBUG_INFO_BTF); a profile of this kernel is needed")


def _build_id(memory: PhysicalMemory, symbols: Symbols, text: int) -> str:
    """The GNU build id among the image's ELF notes, in hexadecimal; empty where there is none."""
    start, stop = symbols.find("__start_notes"), symbols.find("__stop_notes")
    if start is None or stop is None:
        return ""
    at = int(symbols.values[start])
    notes = _bytes(memory, text + at, min(max(int(symbols.values[stop]) - at, 0), _NOTES_LIMIT))
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = (int.from_bytes(notes[at + i : at + i + 4], "little") for i in (0, 4, 8))
        body = at + 12 + align_up(name_size, 4)
        if kind == 3 and notes[at + 12 : body] == b"GNU\0" and 0 < size <= 64:
            return notes[body : body + size].hex()
        at = body + align_up(size, 4)
    return ""


def _wall_clock(memory: PhysicalMemory, one: Learned) -> int:
    """The seconds since the epoch that this kernel's timekeeper last saw; 0 where it cannot be told."""
    at = one.profile.find_symbol("timekeeper_data", "tk_core")  # tk_core became timekeeper_data[0] in 6.17
    try:
        keeper = one.profile.struct("timekeeper").member("xtime_sec").offset
        holder = one.profile.types.struct("tk_data")  # named since 6.13; before, a counter and the timekeeper
        inner = align_up(one.profile.struct("seqcount_raw_spinlock", "seqcount").size, 8)
        inner = holder.member("timekeeper").offset if holder else inner
    except (NoMember, WrongProfile):
        return 0
    seconds = int.from_bytes(_bytes(memory, at + one.delta + inner + keeper, 8), "little") if at is not None else 0
    return seconds if seconds < _WALL_CLOCK_LIMIT else 0


def begun(memory: PhysicalMemory, one: Learned) -> bool:
    """Whether this kernel has run at all: a Xen guest's lies in its memory, unpacked, before it does."""
    at = one.profile.find_symbol("system_state")  # 0 while booting (include/linux/kernel.h)
    return at is None or _bytes(memory, at + one.delta, 4) != bytes(4) or _wall_clock(memory, one) > 0


def _size(one: Learned) -> int:
    row = one.profile.symbols.find("_end")
    return int(one.profile.symbols.values[row]) if row is not None else 0


def _value(symbols: Symbols, *names: str) -> int:
    for name in names:
        row = symbols.find(name)
        if row is not None and row >= symbols.fixed:
            return int(symbols.values[row])
    raise _Doubt(f"has no symbol {' or '.join(names)}; CONFIG_KALLSYMS_ALL is needed")


def _bytes(memory: PhysicalMemory, pa: int, size: int) -> bytes:
    """What stands there; empty where it cannot be read."""
    raw = memory.read(pa, size) if pa >= 0 else None
    return bytes(raw) if raw is not None else b""


def _empty(memory: PhysicalMemory, start: int, end: int) -> bool:
    for at in range(start, end, SLOT):
        raw = memory.read(at, min(SLOT, end - at))
        if raw is not None and np.frombuffer(raw, np.uint8).any():
            return False
    return True
