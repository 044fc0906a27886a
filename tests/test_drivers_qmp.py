from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmi_inside.drivers.qmp import Qmp, open_qmp
from vmi_inside.errors import AttachError, GuestGone, NoSuchDomain, NotRunning, PermissionDenied, Unsupported

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
Say = Callable[[bytes], bytes]


@contextmanager
def server(path: Path, greeting: bytes, say: Say) -> Iterator[str]:
    """Something that listens at `path`: greets, then answers each line with what `say` makes of it; b"" hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                try:
                    connection.sendall(greeting)
                    for line in lines:
                        answer = say(line)
                        if not answer:
                            return
                        connection.sendall(answer)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(path)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answers(returned: object) -> Say:
    def say(line: bytes) -> bytes:
        command = json.loads(line)["execute"]
        value = {} if command == "qmp_capabilities" else returned
        return b'{"event": "RESUME", "data": {}}\r\n' + json.dumps({"return": value}).encode() + b"\r\n"

    return say


def test_events_are_passed_over(tmp_path: Path) -> None:
    with server(tmp_path / "s", GREETING, answers("one\r\ntwo\r\n")) as path, Qmp(path, 10) as qmp:
        assert qmp.hmp("info status") == "one\ntwo\n"
        assert qmp.pid == os.getpid()


def test_an_error_is_told_in_qemus_words(tmp_path: Path) -> None:
    def say(line: bytes) -> bytes:
        return b'{"return": {}}\n' if b"qmp_cap" in line else b'{"error": {"class": "X", "desc": "not so"}}\n'

    with (
        server(tmp_path / "s", GREETING, say) as path,
        Qmp(path, 10) as qmp,
        pytest.raises(AttachError, match="query-name: not so"),
    ):
        qmp.execute("query-name")


def test_silence_ends(tmp_path: Path) -> None:
    with server(tmp_path / "s", b"", lambda line: b"") as path, pytest.raises(AttachError, match="another client"):
        Qmp(path, 0.1)
    with (
        server(tmp_path / "t", GREETING, lambda line: b" ") as path,
        pytest.raises(AttachError, match="no answer to qmp_cap"),
    ):
        Qmp(path, 0.1)


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH\r\n", b'{"hello": 1}\n', b"[" * 5000 + b"\n", b"[1]\n{}\n", b"\xff\n"]
)
def test_other_protocols_are_told(tmp_path: Path, greeting: bytes) -> None:
    with server(tmp_path / "s", greeting, lambda line: b"") as path, pytest.raises(AttachError, match="speak QMP"):
        Qmp(path, 10)


def test_a_connection_that_breaks_is_a_guest_gone(tmp_path: Path) -> None:
    with server(tmp_path / "s", GREETING, lambda line: b"") as path, pytest.raises(GuestGone):
        Qmp(path, 10)


def test_what_can_be_wrong_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(NoSuchDomain, match="no such socket"):
        open_qmp(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotRunning):
        open_qmp(str(tmp_path / "file"))
    with pytest.raises(AttachError, match="too long"):
        open_qmp("x" * 200)
    with pytest.raises(Unsupported, match="UNIX"):
        open_qmp("localhost:4444")
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(0)
        with pytest.raises(PermissionDenied):
            open_qmp(str(tmp_path / "shut" / "s"))


def test_a_socket_that_qemu_did_not_make_is_refused(tmp_path: Path) -> None:
    """As libvirt does: it makes the socket and hands it to QEMU, and is itself the peer that the kernel tells."""
    with (
        server(tmp_path / "s", GREETING, answers({})) as path,
        pytest.raises(Unsupported, match=rf"pid {os.getpid()}\), not by QEMU"),
    ):
        open_qmp(path)
