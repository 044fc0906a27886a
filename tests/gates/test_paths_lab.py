"""Files that a process may not open: told by what they are, under whatever name, in whatever mount."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.gates.arena import Arena
from vmi_inside.errors import ControlError, Unsupported

FILES = ("/srv/data/deep/f", "/srv/out", "/mnt/bind/deep/f", "/srv/over/g", "/run/h")


@pytest.fixture(params=["6.1", "new"])
def reader(arenas: Callable[[str], Arena], request: pytest.FixtureRequest) -> Iterator[tuple[Arena, int]]:
    """A shell that opens these files, over and over, and its pid: /srv/data is /mnt/bind too, and /srv/over a mount."""
    here = arenas(request.param)
    lab = here.lab
    lab.ask(
        "mkdir -p /srv/data/deep /srv/over /mnt/bind; mount --bind /srv/data /mnt/bind; mount -t tmpfs t /srv/over; "
        f"for f in {' '.join(FILES)}; do echo hi >$f; done; ln -sf ../srv/data/deep /srv/link; cat /srv/link/f"
    )
    lab.ask("(sh -c 'echo $$ >/run/reader; while :; do "
            f"for f in {' '.join(FILES)}; do read x <$f && echo ok $f || echo no $f; done; sleep 0.05; done' "
            ">/run/said 2>/dev/null &); sleep 0.3")  # fmt: skip
    yield here, int(lab.ask("cat /run/reader"))
    lab.ask("kill $(cat /run/reader); sleep 0.1; umount /mnt/bind /srv/over; rm -r /srv /mnt/bind /run/said /run/h")


def opened(here: Arena) -> set[str]:
    """Which of the files are opened now, and each of them is tried."""
    here.lab.ask(": >/run/said")
    deadline = time.monotonic() + 20
    said: dict[str, set[str]] = {}
    while not all(said.get(name) for name in FILES) and time.monotonic() < deadline:
        time.sleep(0.3)
        lines = here.lab.ask("cat /run/said").splitlines()[1:]
        said = {name: {line[:2] for line in lines if line.endswith(f" {name}")} for name in FILES}
    assert all(len(each) == 1 for each in said.values()), said
    return {name for name, each in said.items() if each == {"ok"}}


def test_directories_are_the_same_by_every_name(reader: tuple[Arena, int]) -> None:
    here, pid = reader
    assert opened(here) == set(FILES)
    for paths, left in (
        (("/srv/data",), {"/srv/out", "/srv/over/g", "/run/h"}),
        (("/srv/link", "/run/h"), {"/srv/out", "/srv/over/g"}),  # where the link leads
        (("/srv",), {"/run/h"}),  # what is mounted within, too
        (("/mnt",), {"/srv/data/deep/f", "/srv/out", "/srv/over/g", "/run/h"}),
        (("/mnt/bind/deep",), {"/srv/out", "/srv/over/g", "/run/h"}),
        (("/srv/over",), set(FILES) - {"/srv/over/g"}),
        (("/",), set()),
    ):
        here.guest.deny("open", pid=pid, paths=paths)
        assert opened(here) == left, paths
        assert here.guest.gates()[0].paths == ",".join(paths)
        here.guest.allow("open", pid=pid)
    # Another name that it gets later changes nothing.
    here.guest.deny("open", pid=pid, paths=("/srv/out",))
    here.lab.ask("mv /srv/out /srv/over/../moved; ln /srv/moved /srv/out")
    assert opened(here) == set(FILES) - {"/srv/out"}
    here.guest.allow("open", pid=pid)
    assert opened(here) == set(FILES)


def test_paths_are_the_process_s_own(reader: tuple[Arena, int]) -> None:
    here, _ = reader
    here.lab.ask(
        "mkdir -p /srv/jail/data /srv/jail/bin /srv/jail/run; cp /bin/busybox /srv/jail/bin/sh; "
        "echo hi >/srv/jail/data/f; "
        "(chroot /srv/jail /bin/sh -c 'echo $$ >/run/jailed; "
        "while :; do read x </data/f && echo ok >/run/heard || echo no >/run/heard; done' >/dev/null 2>&1 &); sleep 0.4"
    )
    pid = int(here.lab.ask("cat /srv/jail/run/jailed"))
    heard = 'sleep 0.3; until x=$(cat /srv/jail/run/heard); [ -n "$x" ]; do :; done; echo $x'  # it is empty at times
    here.guest.deny("open", pid=pid, paths=("/data",))
    assert here.lab.ask(heard) == "no\n"
    here.guest.allow("open", pid=pid)
    assert here.lab.ask(heard) == "ok\n"
    here.lab.ask(f"kill {pid}")


def test_what_cannot_be_told_for_sure_is_refused(reader: tuple[Arena, int]) -> None:
    here, pid = reader
    here.lab.ask("mkdir -p /srv/l /srv/u /srv/w /srv/merged; mkdir /srv/l/d; "
                 "mount -t overlay -o lowerdir=/srv/l,upperdir=/srv/u,workdir=/srv/w o /srv/merged 2>/dev/null && "
                 "ls /srv/merged/d", check=False)  # fmt: skip
    for error, words, path in (
        (ControlError, "'none' of '/srv/none' is not there, or", "/srv/none"),
        (ControlError, "no path from the root", "srv"),
        (Unsupported, "on proc, which may number its files anew", "/proc/1"),
    ):
        with pytest.raises(error, match=words):
            here.guest.deny("open", pid=pid, paths=(path,))
    with pytest.raises(ControlError, match="nothing to do with exec"):
        here.guest.deny("exec", pid=pid, paths=("/srv",))
    with pytest.raises(ControlError, match="names of directories"):
        here.guest.deny("open", pid=pid, paths=["/srv" + "/." * at for at in range(60)])
    if "overlay" in here.lab.ask("cat /proc/mounts"):
        with pytest.raises(Unsupported, match="on overlay"):
            here.guest.deny("open", pid=pid, paths=("/srv/merged/d",))
        here.guest.deny("open", pid=pid, paths=("/srv/merged",))  # its root is one and the same
        here.guest.allow()
        here.lab.ask("umount /srv/merged")
    assert not len(here.guest.gates())
