"""The parts in which volatility3 takes a guest of ours: layers, a symbol table, an automagic that hands them over.

Knows volatility3's interfaces. Imported only where volatility3 is: by `bridges.volatility3`, or by the file in
`bridges/volatility3_plugins` when volatility3 itself was told to look there.

Nothing is scanned for and nothing is kept. Where the kernel is and how it is paged was learned when the guest was
attached; every read goes to the guest's memory anew, and page tables are walked anew after a tenth of a second, five
levels of them where the kernel has five. The symbol table is made in memory of the kernel's own types and symbols.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from volatility3.framework import class_subclasses, constants, exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.interfaces.configuration import parent_path, path_join
from volatility3.framework.layers import intel
from volatility3.framework.symbols import intermed, linux, metadata

from vmi_inside import __version__
from vmi_inside.guest import Guest, attach
from vmi_inside.linux.symbols.symbol_tables import symbol_tables
from vmi_inside.memory import PhysicalMemory
from vmi_inside.profile.isf import FORMAT, isf
from vmi_inside.types import PAGE_SIZE

#: What a guest's location begins with: `vol -f vmi-inside://web01`.
SCHEME: Final = "vmi-inside:"
_LOCATION: Final = "automagic.LayerStacker.single_location"
#: The names of the parts in a context, and where in it their configuration lies.
_MEMORY, _SPACE, _SYMBOLS = "guest_memory", "guest_space", "guest_symbols"
_HOME: Final = "vmi_inside"
_READ_LIMIT: Final = 1 << 30
#: Seconds for which page tables are remembered: plugins read byte by byte, and walking tables takes most of the time.
_MOMENT: Final = 0.1
#: Symbols that volatility3 knows by a former name only, under which they are given as well.
_RENAMED: Final = {
    "timekeeper_data": "tk_core"
}  # since 6.17 (kernel/time/timekeeping.c); what is asked for comes first
#: The release of dwarf2json whose tables have all that plugins ask the release for.
_AS_GOOD_AS: Final = "0.8.0"

#: Guests that are attached already, by location.
guests: dict[str, Guest] = {}


class GuestMemory(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Guest-physical memory, read through the driver that the guest was attached with."""

    provides: ClassVar[dict[str, str]] = {"type": "physical"}

    def __init__(
        self, context: interfaces.context.ContextInterface, config_path: str, name: str, memory: PhysicalMemory
    ) -> None:
        super().__init__(context, config_path, name)
        self._memory = memory
        self._runs = memory.runs

    @property
    def minimum_address(self) -> int:
        """The first address of RAM."""
        return self._runs[0].start

    @property
    def maximum_address(self) -> int:
        """The last address of RAM."""
        return self._runs[-1].end - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Whether all of it is RAM."""
        return any(run.start <= offset and offset + length <= run.end for run in self._runs)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Bytes as they are now. Raises volatility3's `InvalidAddressException`, unless `pad`: then holes are zeros."""
        if length <= 0:
            return b""
        if length > _READ_LIMIT:
            raise exceptions.InvalidAddressException(self.name, offset, f"{length} bytes at once are too many")
        raw = self._memory.read(offset, length) if offset >= 0 else None
        if raw is not None:
            return bytes(raw)
        if not pad:
            raise exceptions.InvalidAddressException(self.name, offset, f"no RAM at {offset:#x}")
        parts = []
        end = offset + length
        while offset < end:
            step = min(0x1000 - offset % 0x1000, end - offset)
            part = self._memory.read(offset, step)
            parts.append(bytes(step) if part is None else bytes(part))
            offset += step
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Refused: what volatility3 does to a guest is reading it."""
        raise exceptions.LayerException(self.name, "vmi-inside lets volatility3 read guests, not write to them")

    def scan(
        self,
        context: interfaces.context.ContextInterface,
        scanner: interfaces.layers.ScannerInterface,
        progress_callback: constants.ProgressCallback = None,
        sections: Iterable[tuple[int, int]] | None = None,
    ) -> Iterable[Any]:
        """As any layer's, but only where there is RAM: a piece with a hole in it would be passed over whole."""
        there = [(run.start, run.size) for run in self._runs] if sections is None else sections
        return super().scan(context, scanner, progress_callback, there)  # type: ignore[no-any-return]


class GuestSpace(intel.LinuxIntel32e):  # type: ignore[misc]
    """An address space of the guest with four levels of page tables: kept for a moment, what they lead to never is."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._entries: dict[int, tuple[int, int]] = {}
        self._since = 0.0

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Bytes as they are now: nothing that was read before is given again."""
        parts: list[bytes] = []
        at = offset
        for start, size, mapped, _, layer in self.mapping(offset, length, ignore_errors=pad):
            if start > at:
                if not pad:
                    raise exceptions.InvalidAddressException(self.name, at, f"{at:#x} is not mapped")
                parts.append(bytes(start - at))
            if size:
                parts.append(self._context.layers.read(layer, mapped, size, pad))
            at = start + size
        found = b"".join(parts)
        return found + bytes(length - len(found))

    def _translate_entry(self, page_address: int) -> tuple[int, int]:
        """The entry that maps this page, and the highest bit of an offset in it.

        Raises volatility3's `PagedInvalidAddressException`.
        """
        now = time.monotonic()
        if now - self._since > _MOMENT:
            self._entries.clear()
            self._since = now
        page = page_address & self.address_mask & ~(PAGE_SIZE - 1)
        found = self._entries.get(page)
        if found is None:
            found = self._entries[page] = self._walk(page)
        return found

    def _walk(self, page_address: int) -> tuple[int, int]:
        memory = self._context.layers[self._base_layer]
        entry, position = self._initial_entry, self._initial_position
        for name, bits, large in self._structure:
            if not self._page_is_valid(entry):
                break
            table = entry & self._pte_pfn_mask
            position -= bits
            index = (page_address >> (position + 1)) & ((1 << bits) - 1)
            try:
                (entry,) = struct.unpack("<Q", memory.read(table + 8 * index, 8))
            except exceptions.InvalidAddressException:
                raise exceptions.PagedInvalidAddressException(
                    self.name, page_address, position + 1, entry, f"the {name} at {table:#x} is no RAM"
                ) from None
            if large and entry & self._PAGE_PSE and entry & self._PAGE_PRESENT:
                return entry & ~self._PAGE_PAT_LARGE, position
        if not self._page_is_valid(entry):
            raise exceptions.PagedInvalidAddressException(
                self.name, page_address, position + 1, entry, f"{page_address:#x} is not mapped"
            )
        return entry, position


class GuestSpace5(GuestSpace):
    """The same with five levels (LA57), which volatility3 has no layer for."""

    _maxvirtaddr = 57
    _structure: ClassVar[list[tuple[str, int, bool]]] = [
        ("page map layer 5", 9, False), *intel.LinuxIntel32e._structure
    ]  # fmt: skip


class _InMemory(intermed.IntermediateSymbolTable):  # type: ignore[misc]
    """A symbol table from what an ISF file would hold, without the file."""

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        table: dict[str, Any],
        mask: int,
    ) -> None:
        context.config[path_join(config_path, "isf_url")] = SCHEME
        context.config[path_join(config_path, "symbol_mask")] = mask
        self._versions = {form.version: form for form in class_subclasses(intermed.ISFormatTable)}
        form = self._closest_version(FORMAT, self._versions)
        self._delegate = form(context, config_path, name, table, None, None)
        interfaces.symbols.SymbolTableInterface.__init__(self, context, config_path, name, self._delegate.natives)


class GuestSymbols(linux.LinuxKernelIntermedSymbols, _InMemory):  # type: ignore[misc]
    """The kernel's types and symbols, made of what its memory says, with volatility3's Linux classes on them."""

    @property
    def producer(self) -> metadata.ProducerMetadata:
        """Whose table this is as good as: linux.malware.hidden_modules refuses those of any other producer's."""
        return metadata.ProducerMetadata({"name": "dwarf2json", "version": _AS_GOOD_AS})


class VmiInside(interfaces.automagic.AutomagicInterface):  # type: ignore[misc]
    """Hands a guest of ours to plugins, where the location says `vmi-inside://NAME`; else does nothing."""

    priority = -1  # before anything is looked for
    exclusion_list: ClassVar[list[str]] = ["windows", "mac"]

    def __call__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        requirement: interfaces.configuration.RequirementInterface,
        progress_callback: constants.ProgressCallback = None,
    ) -> list[Any]:
        """Satisfy what the plugin requires: layers, symbols, the kernel."""
        location = context.config.get(_LOCATION, None)
        if not isinstance(location, str) or not location.startswith(SCHEME):
            return []
        if _SPACE not in context.layers:
            _enter(context, guests[location] if location in guests else attach(target(location)))
        slide = context.config[path_join(_HOME, _SPACE, "kernel_virtual_offset")]
        wanted = (requirements.ModuleRequirement, requirements.TranslationLayerRequirement)
        for path, one in self.find_requirements(context, config_path, requirement, wanted):
            if isinstance(one, requirements.TranslationLayerRequirement):
                context.config[path] = _SPACE
                continue
            context.config[path_join(path, "class")] = "volatility3.framework.contexts.Module"
            context.config[path_join(path, "layer_name")] = _SPACE
            context.config[path_join(path, "symbol_table_name")] = _SYMBOLS
            context.config[path_join(path, "offset")] = slide
            one.construct(context, parent_path(path))
        return []


def target(location: str) -> str:
    """What `attach` takes, of a location: vmi-inside://web01, vmi-inside:file:/tmp/web01.core."""
    return location.removeprefix(SCHEME).removeprefix("//")


def _enter(context: interfaces.context.ContextInterface, guest: Guest) -> None:
    """Put the guest's memory, its kernel's address space and its symbols into the context."""
    space, profile = guest.kernel.space, guest.kernel.profile
    context.add_layer(GuestMemory(context, path_join(_HOME, _MEMORY), _MEMORY, guest.memory))
    where = path_join(_HOME, _SPACE)
    context.config[path_join(where, "memory_layer")] = _MEMORY
    context.config[path_join(where, "page_map_offset")] = space.root
    context.config[path_join(where, "kernel_virtual_offset")] = profile.slide
    context.config[path_join(where, "kernel_banner")] = profile.build.banner.decode("latin-1")
    kind = {4: GuestSpace, 5: GuestSpace5}[space.paging.levels]
    layer = kind(context, where, _SPACE, {"os": "Linux"})
    context.add_layer(layer)
    # Addresses without their sign extension, as everywhere in volatility3.
    told = isf(profile, __version__, symbol_tables(guest.kernel))
    for name, former in _RENAMED.items():
        if name in told["symbols"]:
            told["symbols"].setdefault(former, told["symbols"][name])
    table = GuestSymbols(context, path_join(_HOME, _SYMBOLS), _SYMBOLS, told, layer.address_mask)
    context.symbol_space.append(table)
