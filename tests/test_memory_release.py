"""Pages that a mapping brought in can be given back, and be read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vmi_inside.drivers.mapped import MappedMemory, map_file
from vmi_inside.memory import Releasing, Run


def _resident() -> int:
    """Bytes of file pages mapped into this process (RssFile and RssShmem of proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssFile", "RssShmem")))


def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "ram"
    path.write_bytes(np.arange(size // 8, dtype=np.uint64).tobytes())
    with open(path, "rb") as file:
        memory = MappedMemory([(Run(0, size), map_file(file.fileno()))])
    assert isinstance(memory, Releasing)
    pages = np.arange(0, size, 4096, dtype=np.uint64)
    rows = np.empty((len(pages), 8), np.uint8)
    before = _resident()
    assert memory.gather(pages, rows).all()
    touched = _resident()
    assert touched - before > size // 2
    memory.release()
    assert _resident() - before < size // 8
    assert memory.gather(pages, rows).all()
    assert rows.view("<u8")[:, 0].tolist() == (pages // 8).tolist()


def test_arrays_that_are_no_mapping_keep_what_they_hold() -> None:
    array = np.full(1 << 20, 7, np.uint8)
    memory = MappedMemory([(Run(0, len(array)), array)])
    memory.release()
    assert bytes(memory.read(0, 4096) or b"") == b"\7" * 4096
