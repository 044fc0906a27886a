"""A guest that changes at one moment of a reading, for every moment there is: a row was so, is so, or is marked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.files import FilesGuest
from tests.synthetic.linux import Task
from tests.synthetic.stacks import StackGuest
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.namespaces import process_namespaces
from vmi_inside.linux.processes.open_files import process_open_files
from vmi_inside.linux.processes.processes import processes
from vmi_inside.linux.sockets import process_open_sockets
from vmi_inside.memory import PhysicalMemory, Run
from vmi_inside.table import Table
from vmi_inside.types import U8, U64, Mask


class Changing:
    """A memory in which `change` happens before the reading of number `moment`."""

    def __init__(self, memory: PhysicalMemory, moment: int, change: Callable[[], None]) -> None:
        self.memory = memory
        self.runs: tuple[Run, ...] = memory.runs
        self.moment = moment
        self.change = change
        self.count = 0

    def _tick(self) -> None:
        if self.count == self.moment:
            self.change()
        self.count += 1

    def gather(self, pa: U64, out: U8) -> Mask:
        self._tick()
        return self.memory.gather(pa, out)

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        self._tick()
        return self.memory.read(pa, size)

    def close(self) -> None:
        pass


Made = tuple[LinuxGuest, Callable[[], None]]


def at_every_moment(make: Callable[[], Made], read: Callable[[Kernel], Table]) -> list[Table]:
    """What is read of a guest, changed before the first reading of memory, before the second, ... and never."""
    found: list[Table] = []
    for moment in range(1000):
        guest, change = make()
        memory = Changing(guest.ram.memory, moment, change)
        found.append(read(Kernel(guest.space.over(memory), guest.kernel.profile)))
        if memory.count <= moment:
            assert moment > 10
            return found
    raise AssertionError("a reading of a thousand rounds")


def holder() -> tuple[FilesGuest, Task, Task, int]:
    """A guest with two processes, of which the first has a file open, and where that stands."""
    guest = FilesGuest(scattered=True)
    guest.task(1, "init")
    first, second = guest.task(50, "first", 1, uid=50), guest.task(60, "second", 1, uid=60)
    file = guest.regular("of-50")
    guest.open(first, {3: file})
    guest.open(second, {})
    guest.finish()
    return guest, first, second, file


def slot(guest: LinuxGuest, task: Task, number: int) -> int:
    table = guest.space.read_u64(task.files + guest.offset("files_struct", "fdt"))
    return guest.space.read_u64(table + guest.offset("fdtable", "fd")) + 8 * number


def closed_and_used_again() -> Made:
    """The file is closed, and the next one, another process's, is made where it stood."""
    guest, first, second, file = holder()

    def change() -> None:
        other = guest.regular("of-60")
        guest.put("file", file, f_path__dentry=guest.space.read_u64(other + guest.offset("file", "f_path.dentry")))
        guest.word(slot(guest, first, 3), 0)
        guest.word(slot(guest, second, 3), file)

    return guest, change


def ended_and_used_again() -> Made:
    """The process ends; its table of descriptors, and its place in the slab, are the next one's."""
    guest, first, _, file = holder()

    def change() -> None:
        other = guest.regular("of-70")
        guest.put("file", file, f_path__dentry=guest.space.read_u64(other + guest.offset("file", "f_path.dentry")))
        guest.put("task_struct", first.task, tgid=70, pid=70, comm=b"third".ljust(16, b"\0"))

    return guest, change


@pytest.mark.parametrize("make", [closed_and_used_again, ended_and_used_again])
def test_files_are_never_put_to_another(make: Callable[[], Made]) -> None:
    tables = at_every_moment(make, process_open_files)
    told = {(row.pid, row.path.strip("/")) for table in tables for row in table if not row.fault and row.fd >= 0}
    assert (50, "of-50") in told
    assert told <= {(50, "of-50"), (60, "of-60")}
    assert any("meanwhile" in row.fault for table in tables for row in table)


def test_names_are_never_put_to_another() -> None:
    tables = at_every_moment(ended_and_used_again, processes)
    told = {(row.pid, row.name) for table in tables for row in table if not row.fault}
    assert told <= {(1, "init"), (50, "first"), (60, "second"), (70, "third")}
    assert any("meanwhile" in row.fault for table in tables for row in table)


def test_users_are_never_put_to_another() -> None:
    """A process changes its user, and its old credentials are used again by another."""

    def make() -> Made:
        guest, first, _, _ = holder()

        def change() -> None:
            guest.put("cred", first.cred, uid__val=777)
            guest.put("task_struct", first.task, real_cred=guest.new("cred", uid__val=51))

        return guest, change

    tables = at_every_moment(make, processes)
    told = {(row.pid, row.uid) for table in tables for row in table if not row.fault and row.pid == 50}
    assert told == {(50, 50), (50, 51)}


def test_sockets_are_never_put_to_another() -> None:
    def make() -> Made:
        guest = LinuxGuest(scattered=True)
        guest.task(1, "init")
        first, second = guest.task(50, "first", 1), guest.task(60, "second", 1)
        sock = guest.sock(2, 1, 6, 1, local=("10.0.0.1", 50), remote=("10.0.0.2", 9), inode=9)
        guest.hash_tcp(sock, 3)
        file = guest.socket_file(sock)
        guest.open(first, {3: file})
        guest.open(second, {})
        guest.finish()

        def change() -> None:
            guest.put("sock_common", sock, skc_num=60)
            guest.word(slot(guest, first, 3), 0)
            guest.word(slot(guest, second, 3), file)

        return guest, change

    tables = at_every_moment(make, process_open_sockets)
    told = {(row.pid, row.local_port) for table in tables for row in table if not row.fault and row.pid > 0}
    assert (50, 50) in told
    assert told <= {(50, 50), (60, 60)}


def released() -> Made:
    """The process is released: its task lies there as it was, but for its pid; that and its credentials are others'."""
    guest, first, _, _ = holder()

    def change() -> None:
        guest.put("task_struct", first.task, thread_pid=0)
        guest.word(first.pid + guest.offset("pid", "tasks[1]"), 0)
        guest.put("upid", first.pid + guest.offset("pid", "numbers"), nr=78)
        guest.put("cred", first.cred, uid__val=777)

    return guest, change


@pytest.mark.parametrize("read", [processes, process_namespaces])
def test_what_was_released_is_nobodys(read: Callable[[Kernel], Table]) -> None:
    tables = at_every_moment(released, read)
    rows = [row for table in tables for row in table if row.pid == 50 and not row.fault]
    assert rows
    assert {getattr(row, "uid", 50) for row in rows} == {50}
    assert {getattr(row, "pid_in_namespace", 50) for row in rows} == {50}
    assert any("meanwhile" in row.fault for table in tables for row in table)


def test_a_name_that_is_being_written_is_marked() -> None:
    """The kernel copies it in words of eight bytes."""

    def make() -> Made:
        guest, first, _, _ = holder()
        guest.put("task_struct", first.task, comm=b"of-eight".ljust(16, b"\0"))
        return guest, lambda: guest.put("task_struct", first.task, comm=b"of-eight-and-mo\0")

    tables = at_every_moment(make, lambda kernel: processes(kernel, ["pid", "name", "uid", "path"]))
    told = {row.name for table in tables for row in table if not row.fault and row.pid == 50}
    assert told == {"of-eight", "of-eight-and-mo"}
    assert any("meanwhile" in row.fault for table in tables for row in table)


def test_what_runs_meanwhile_waits_nowhere() -> None:
    """A task goes on, uses its stack for something else, and sleeps again elsewhere."""

    def make() -> Made:
        guest = StackGuest()
        task = guest.task(10, "goes-on")
        sp = guest.asleep(task, "plain")
        guest.finish()

        def change() -> None:
            for at in range(sp, sp + 512, 8):
                guest.word(at, 0x1234_5678)
            guest.asleep(task, "framed")

        return guest, change

    tables = at_every_moment(make, lambda kernel: processes(kernel, ["pid", "wchan"]))
    assert {row.wchan for table in tables for row in table if not row.fault} == {"plain", "framed", ""}
