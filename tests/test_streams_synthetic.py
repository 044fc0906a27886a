"""What there is to look through in made-up guests."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic.cache import CacheGuest, hidden
from tests.synthetic.guest import DIRECT, IMAGE
from tests.synthetic.ram import GIB
from vmi_inside.errors import NoProcess
from vmi_inside.linux.contents import streams
from vmi_inside.linux.contents.process_contents import ProcessContents

P = 4096
BASE = 0x5555_0000_0000
VMALLOC = 0xFFFF_C800_0000_0000


def test_processes_and_their_regions() -> None:
    guest = CacheGuest()
    for pid, word in ((1, b"one"), (7, b"seven")):
        task = guest.task(pid, f"name{pid}")
        guest.memory_of(task, b"x\0")
        user = guest.user_tables(task)
        user.map(BASE, guest.frame(word))
        user.map(BASE + 2 * P, guest.frame(b"after a gap"))
        guest.map(task, [guest.region(task, BASE, BASE + 4 * P, 3)])
    guest.task(2, "kthreadd", flags=0x200000)
    guest.task(3, "zombie")
    guest.link()
    guest.finish()
    found = [(each.kind, each.pid, each.name, [(at - BASE, data[:5]) for at, data in each.pieces])
             for each in streams.of_processes(guest.kernel)]  # fmt: skip
    assert found == [
        ("process", 1, "name1", [(0, b"one\0\0"), (2 * P, b"after")]),
        ("process", 7, "name7", [(0, b"seven"), (2 * P, b"after")]),
    ]
    assert [each.pid for each in streams.of_processes(guest.kernel, [7])] == [7]
    with pytest.raises(NoProcess):
        list(streams.of_processes(guest.kernel, [2]))
    assert ProcessContents(guest.kernel, 1).read(BASE, 3) == b"one"


def test_the_kernel_without_the_direct_map() -> None:
    guest = CacheGuest(scattered=True)
    guest.word(guest.global_("vmalloc_base", 8), VMALLOC)
    at = guest.alloc(64, "thing")
    guest.write(at, b"on the heap")
    guest.write(guest.global_("told", 64), b"in the image")
    guest.tables.put(VMALLOC, 1, hidden(guest.frame(b"never there")))
    guest.finish()
    pieces = [(each.path, at, data) for each in streams.of_kernel(guest.kernel) for at, data in each.pieces]
    assert {path for path, _, _ in pieces} == {"vmalloc", "image"}
    assert not any(DIRECT <= at < DIRECT + 64 * GIB for _, at, _ in pieces)
    everything = b"".join(data for _, _, data in pieces)
    assert b"on the heap" in everything
    assert b"in the image" in everything
    assert b"never there" not in everything
    assert min(at for path, at, _ in pieces if path == "image") == IMAGE
    assert max(len(data) for _, _, data in pieces) <= streams.PIECE


def test_all_of_ram() -> None:
    guest = CacheGuest()
    pa = guest.frame(b"somewhere")
    guest.finish()
    total, found = 0, []
    for each in streams.of_physical(guest.kernel):
        for at, data in each.pieces:
            total += len(data)
            if at <= pa < at + len(data):
                found.append(data[pa - at : pa - at + 9])
    assert (total, found) == (96 << 20, [b"somewhere"])


def test_files() -> None:
    guest = CacheGuest()
    for number, (name, mode) in enumerate((("a", 0o100644), ("b", 0o100600), ("link", 0o120777)), 11):
        guest.cache(guest.on_disk("ext4", number, 3 * P, mode, (name,)), {1: name.encode() * 9})
    guest.on_disk("ext4", 20, 5, names=("empty",))
    guest.link()
    guest.finish()
    found = {each.path: [(at, data[:9]) for at, data in each.pieces] for each in streams.of_files(guest.kernel)}
    assert found == {"/a": [(P, b"a" * 9)], "/b": [(P, b"b" * 9)]}
    few = [each.path for each in streams.of_files(guest.kernel, lambda path: path == "/b")]
    assert few == ["/b"]


def test_pages_that_cannot_be_read_are_left_out() -> None:
    guest = CacheGuest()
    guest.finish()
    memory = guest.space.memory

    class Torn:
        runs = memory.runs

        def read(self, pa: int, size: int) -> None:
            return None

        def gather(self, pa: np.ndarray, out: np.ndarray) -> np.ndarray:
            ok = memory.gather(pa, out)
            return ok & (pa % (3 * P) != 0)

    guest.space.memory = Torn()  # type: ignore[assignment]
    (first, *_) = streams.of_physical(guest.kernel)
    starts = [(at, len(data)) for at, data in first.pieces][:3]
    assert starts == [(P, 2 * P), (4 * P, 2 * P), (7 * P, 2 * P)]
