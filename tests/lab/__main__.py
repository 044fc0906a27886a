"""`python -m tests.lab`: boot guests by hand, ask them, stop them.

One daemon is kept between calls; what it is, stands in `.cache/lab/sessions`. `LAB_SESSION=NAME` in the environment
keeps another one, for somebody who wants guests of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.lab import CACHE, LabError, missing_prerequisites
from tests.lab.demo import demo
from tests.lab.guest import LabGuest, Shape
from tests.lab.kernels import SUITES, kernel, locked

if TYPE_CHECKING:
    from tests.lab.libvirt import Daemon

_SESSION: Final = CACHE / "sessions" / os.environ.get("LAB_SESSION", "usual")


def main() -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Lab guests, by hand.")
    commands = parser.add_subparsers(dest="command", required=True)
    boot = commands.add_parser("boot", help="boot a guest, leave it running, print its URI and name")
    boot.add_argument("--name")
    for field in dataclasses.fields(Shape):
        boot.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help="%(default)s")
    ask = commands.add_parser("ask", help="run a shell command in a guest")
    ask.add_argument("name")
    ask.add_argument("shell")
    stop = commands.add_parser("stop", help="end one guest, or all of them and the daemon")
    stop.add_argument("name", nargs="?")
    commands.add_parser("list", help="the guests that run")
    fetch = commands.add_parser("fetch", help="fetch kernels")
    fetch.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(SUITES))
    commands.add_parser("demo", help="boot a guest, look into it with vmi-inside, take it down")
    arguments = parser.parse_args()
    try:
        with locked(_SESSION) if arguments.command in ("boot", "stop") else nullcontext():
            return _run(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "fetch":
        for name in arguments.kernels or SUITES:
            print(name, kernel(name).release, flush=True)
        return 0
    if arguments.command == "demo":
        _check()
        return demo()
    daemon = _daemon()
    if arguments.command == "boot":
        daemon = daemon or _start()
        shape = Shape(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Shape)})
        guest = daemon.boot(shape, arguments.name)
        print(f"{guest.uri} {guest.name} pid={guest.pid}")
        return 0
    if daemon is None:
        if arguments.command == "ask":
            raise LabError("no lab is running; start a guest with: python -m tests.lab boot")
        return 0
    if arguments.command == "ask":
        sys.stdout.write(daemon.guest(arguments.name).ask(arguments.shell))
    elif arguments.command == "list":
        with daemon.connection() as connection:
            for domain in connection.listAllDomains():
                print(daemon.uri, domain.name())
    elif arguments.name:
        daemon.guest(arguments.name).domain.destroy()
    else:
        daemon.stop()
        _SESSION.unlink(missing_ok=True)
    return 0


def kept(shape: Shape) -> LabGuest:
    """The guest of that shape, and of the workload as it is now, in the daemon that is kept; booted when not there."""
    told = f"{shape} {_workload_id()}"
    name = f"kept-{shape.kernel}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    with locked(_SESSION):
        daemon = _daemon() or _start()
        with daemon.connection() as connection:
            there = {domain.name() for domain in connection.listAllDomains()}
        if name not in there:
            return daemon.boot(shape, name)
        guest = daemon.guest(name)
        guest.shape = shape
        return guest


def _workload_id() -> str:
    from tests.lab import initramfs

    sources = sorted(path for path in Path(initramfs.__file__).parent.rglob("*") if path.suffix in (".c", ".h", ""))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources if path.is_file())).hexdigest()


def _start() -> Daemon:
    """A daemon that is kept between calls."""
    from tests.lab.libvirt import Daemon

    _check()
    daemon = Daemon.start().keep()
    _SESSION.parent.mkdir(parents=True, exist_ok=True)
    _SESSION.write_text(json.dumps({"root": str(daemon.root), "pid": daemon.pid}))
    return daemon


def _check() -> None:
    missing = missing_prerequisites()
    if missing:
        raise LabError(f"cannot run here: {missing}")


def _daemon() -> Daemon | None:
    """The daemon of an earlier call, if it still runs."""
    from tests.lab.libvirt import Daemon

    try:
        session = json.loads(_SESSION.read_text())
    except FileNotFoundError:
        return None
    daemon = Daemon(Path(session["root"]), session["pid"])
    try:
        with daemon.connection():
            return daemon
    except LabError:
        daemon.stop()
        _SESSION.unlink()
        return None


if __name__ == "__main__":
    sys.exit(main())
