"""Memory dumps: opens a file and tells its format by its content.

Knows the first bytes of dumps, and of files that are taken for dumps. The formats themselves are left to `elfcore`,
`lime`, `kdump` and `raw`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from vmi_inside.drivers import elfcore, kdump, lime, raw
from vmi_inside.drivers.dumpfile import Dump, DumpFile
from vmi_inside.errors import BadDump

# To add a format: its name, how its files begin, and what opens them. What begins like none of them may be raw.
FORMATS: Final[dict[str, tuple[tuple[bytes, ...], Callable[..., Dump]]]] = {
    "elf": ((b"\x7fELF",), elfcore.open_elf),
    "lime": ((lime.MAGIC,), lime.open_lime),
    "kdump": ((kdump.MAGIC, kdump.FLAT_MAGIC), kdump.open_kdump),
}

_DISK: Final = "a disk image, not a memory dump: it holds what the guest stored, not its RAM"
_PACKED: Final = "compressed; decompress it first: {tool} {path}"
_SAVED: Final = "not a memory dump: {what}. Restore the guest, then: virsh dump --memory-only DOMAIN FILE"

# Files that are no dump, by (offset, bytes), and what to tell their owner.
STRANGERS: Final[dict[tuple[int, bytes], str]] = {
    (0, b"QFI\xfb"): _DISK,
    (0, b"KDMV"): _DISK,
    (0, b"COWD"): _DISK,
    (0, b"conectix"): _DISK,
    (0, b"vhdxfile"): _DISK,
    (0, b"<<< Oracle VM"): _DISK,
    (512, b"EFI PART"): _DISK,
    (0, b"PAGEDU64"): "a Windows crash dump (64-bit), which cannot be read yet; use an ELF core: dump-guest-memory",
    (0, b"PAGEDUMP"): "a Windows crash dump (32-bit), which cannot be read yet; use an ELF core: dump-guest-memory",
    (0, b"LibvirtQemudSave"): _SAVED.format(what="it is an image of virsh save"),
    (0, b"LibvirtQemudPart"): _SAVED.format(what="it is an image of virsh save that was not finished"),
    (0, b"QEVM"): _SAVED.format(what="it is a QEMU migration stream, as virsh dump without --memory-only writes it"),
    (0, b"AVML"): "a compressed dump of AVML; convert it first: avml-convert --source-format lime_compressed "
    "--format lime {path} NEW",
    (0, b"\x28\xb5\x2f\xfd"): _PACKED.replace("{tool}", "zstd -d"),
    (0, b"\x1f\x8b\x08"): _PACKED.replace("{tool}", "gunzip"),
    (0, b"\xfd7zXZ\0"): _PACKED.replace("{tool}", "unxz"),
    (0, b"BZh"): _PACKED.replace("{tool}", "bunzip2"),
    (0, b"\x04\x22\x4d\x18"): _PACKED.replace("{tool}", "unlz4"),
    (0, b"PK\x03\x04"): _PACKED.replace("{tool}", "unzip"),
    (0, b"7z\xbc\xaf\x27\x1c"): _PACKED.replace("{tool}", "7z x"),
}


def open_dump(
    path: str | os.PathLike[str], *, file_format: str | None = None, raw_split: int | None = None, partial: bool = False
) -> Dump:
    """The guest's memory out of the file at `path`, read-only.

    `file_format` is a name of `FORMATS` or `raw`, where the content shall not decide: the first bytes of a raw dump
    were the guest's to write. `raw_split`, in bytes, says of a raw file that it has no hole and how much of it lies
    below 4 GiB (see `raw`, and `splits`). `partial` takes a truncated file for what it holds; what is missing is then
    said in `notices`.

    Raises `NoSuchDomain` (no such file), `PermissionDenied`, `BadDump`, `Unsupported`.
    """
    file = DumpFile(path)
    name = file_format or ("raw" if raw_split is not None else format_of(file))
    if name == "raw":
        return raw.open_raw(file, split=raw_split)
    if name not in FORMATS:
        raise BadDump(f"{file.path}: no such dump format: {name}; there are {', '.join([*FORMATS, 'raw'])}")
    return FORMATS[name][1](file, partial=partial)


def splits(path: str | os.PathLike[str], *, file_format: str | None = None) -> tuple[int | None, ...]:
    """Values of `raw_split` to try for the file at `path`, the likeliest first; (None,) where the format tells.

    Only what is found in the memory can decide between them: take the first with which a kernel is found.
    """
    file = DumpFile(path)
    return raw.splits(file.size) if (file_format or format_of(file)) == "raw" else (None,)


def format_of(file: DumpFile) -> str:
    """The name of the format that a file's first bytes tell; `raw` where they tell none. Raises `BadDump`."""
    start = file.data[:4096].tobytes()
    for name, (magics, _) in FORMATS.items():
        if start.startswith(magics):
            return name
    for (offset, magic), what in STRANGERS.items():
        if start[offset:].startswith(magic):
            raise BadDump(f"{file.path} is {what.format(path=file.path)}")
    return "raw"
