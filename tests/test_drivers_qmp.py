from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from vmi_inside.drivers import qmp as driver
from vmi_inside.drivers.qmp import Qmp, open_qmp
from vmi_inside.errors import AttachError, GuestGone, NoSuchDomain, NotRunning, PermissionDenied, Unsupported

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
LINE = 24 << 20  # more than a client holds of one line
Say = Callable[[bytes], bytes]


@contextmanager
def server(path: Path, greeting: bytes, say: Say) -> Iterator[str]:
    """Something that listens at `path`: greets, then answers each command with what `say` makes of it; b"" hangs up.

    For the `ID` in an answer stands the id of its command: what has another is nobody's answer.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(greeting)
                    while line := connection.recv(1 << 16):  # a client has one command at a time on its way
                        answer = say(line)
                        if not answer:
                            return
                        told = b'"id": ' + json.dumps(json.loads(line).get("id")).encode()
                        connection.sendall(answer.replace(b'"id": ID', told))
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(path)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answers(**returned: object) -> Say:
    """A `say` that has an answer to each of some commands, underscores for hyphens, after an event and a stray one."""

    def say(line: bytes) -> bytes:
        command = json.loads(line)["execute"]
        if command == "qmp_capabilities":
            return b'{"return": {}, "id": ID}\r\n'
        value = json.dumps(returned[command.replace("-", "_")]).encode()
        stray = b'{"event": "RESUME", "data": {}}\r\n{"return": "stray", "id": "other"}\r\n'
        return stray + b'{"return": ' + value + b', "id": ID}\r\n'

    return say


def then(answer: bytes) -> Say:
    """A `say` that lets a client in and has one answer to every command."""
    return lambda line: b'{"return": {}, "id": ID}\n' if b"qmp_cap" in line else answer


def test_events_are_passed_over(tmp_path: Path) -> None:
    with (
        server(tmp_path / "s", GREETING, answers(human_monitor_command="one\r\ntwo\r\n")) as path,
        Qmp(path, 10) as qmp,
    ):
        assert qmp.hmp("info status") == "one\ntwo\n"
        assert qmp.pid == os.getpid()


def test_an_error_is_told_in_qemus_words(tmp_path: Path) -> None:
    say = then(b'{"error": {"class": "X", "desc": "not so"}, "id": ID}\n')
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
    with (
        server(tmp_path / "u", GREETING, then(b'{"return": {}}\n')) as path,
        Qmp(path, 0.1) as qmp,
        pytest.raises(AttachError, match="no answer to query-name"),
    ):
        qmp.execute("query-name")


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH\r\n", b'{"hello": 1}\n', b"[" * 5000 + b"\n", b"[1]\n{}\n", b"\xff\n", b"x" * LINE]
)
def test_other_protocols_are_told(tmp_path: Path, greeting: bytes) -> None:
    with server(tmp_path / "s", greeting, lambda line: b"") as path, pytest.raises(AttachError, match="speak QMP"):
        Qmp(path, 10)


def test_a_connection_that_breaks_is_a_guest_gone(tmp_path: Path) -> None:
    with server(tmp_path / "s", GREETING, lambda line: b"") as path, pytest.raises(GuestGone):
        Qmp(path, 10)
    with server(tmp_path / "t", GREETING, then(b"")) as path, Qmp(path, 10) as qmp:
        for _ in range(2):  # the second finds the session broken
            with pytest.raises(GuestGone, match="closed the connection"):
                qmp.execute("query-name")


@pytest.mark.parametrize(
    "answer",
    [
        b"rubbish\n",
        b"[" * 5000 + b"\n",
        b"x" * LINE,
        b'{"id": ID}\n',
        b'{"id": []}\n',
        b'{"error": 1, "id": ID}\n',
        b'{"error": {"desc": []}, "id": ID}\n',
        b'{"error": {"class": "X", "desc": "not JSON"}}\n',
    ],
)
def test_damaged_answers(tmp_path: Path, answer: bytes) -> None:
    with server(tmp_path / "s", GREETING, then(answer)) as path, Qmp(path, 10) as qmp:
        with pytest.raises(AttachError, match="speak QMP") as caught:
            qmp.execute("query-name")
        assert not isinstance(caught.value, GuestGone)


def test_events_without_end(tmp_path: Path) -> None:
    """They are not kept: of 65,536 none is left."""
    event = b'{"event": "RESUME", "data": "' + b"x" * 1000 + b'"}\n'
    say = then(event * (64 << 10) + b'{"return": 1, "id": ID}\n')
    with server(tmp_path / "s", GREETING, say) as path, Qmp(path, 60) as qmp:
        before = sys.getallocatedblocks()
        assert qmp.execute("query-name") == 1
        assert sys.getallocatedblocks() - before < 64 << 10


def test_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def notebook(path: str) -> object:
        with Qmp(path, 10) as qmp:
            return qmp.execute("query-name")

    with server(tmp_path / "s", GREETING, answers(query_name={"name": "web01"})) as path:
        assert asyncio.run(notebook(path)) == {"name": "web01"}


def test_nothing_is_left_at_exit(tmp_path: Path) -> None:
    """No loop, thread, task or socket, and not a word logged, be it a good end, a broken one or a time-out."""
    program = (
        "import sys; from contextlib import suppress\n"
        "from vmi_inside.drivers.qmp import Qmp; from vmi_inside.errors import AttachError\n"
        "with suppress(AttachError), Qmp(sys.argv[1], 1) as qmp: qmp.execute('query-name')"
    )
    for number, (greeting, say) in enumerate(
        [(GREETING, answers(query_name={})), (GREETING, then(b"")), (b"", then(b"")), (b"no\n", then(b""))]
    ):
        with server(tmp_path / f"s{number}", greeting, say) as path:
            words = [sys.executable, "-X", "dev", "-W", "error", "-c", program, path]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_more_clients_than_may_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)
        with pytest.raises(AttachError, match="another client"):
            Qmp(path, 0.1)


def test_room_among_the_clients_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with ExitStack() as exits:
        listener, left = (exits.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        listener.bind(path)
        listener.listen(0)
        left.connect(path)
        left.close()

        def serve() -> None:
            time.sleep(0.2)  # meanwhile the queue is full
            for _ in range(2):
                connection = exits.enter_context(listener.accept()[0])
            connection.sendall(GREETING + b'{"return": {}}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        with Qmp(path, 10) as qmp:
            assert qmp.pid == os.getpid()
        thread.join()


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    monkeypatch.delattr("qemu.qmp")
    with pytest.raises(Unsupported, match=r"pip install 'vmi-inside\[qmp\]'"):
        Qmp(str(tmp_path / "s"))


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


@pytest.mark.parametrize("answer", [1, [], {"name": 1}, None])
def test_answers_that_are_not_qemus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    monkeypatch.setattr(driver, "_check_program", lambda path, pid: None)
    with (
        server(tmp_path / "s", GREETING, answers(query_name=answer)) as path,
        pytest.raises(AttachError, match="answer to query-name is not QEMU's"),
    ):
        open_qmp(path)


@pytest.mark.parametrize("answer", [1, [], "x", {"UUID": 1, "running": 1}, None])
def test_a_machine_whose_answers_are_not_qemus(tmp_path: Path, answer: object) -> None:
    guest = driver.QmpGuest(str(tmp_path / "s"), "web01", "running", 1)
    with (
        server(tmp_path / "s", GREETING, answers(query_uuid=answer)),
        pytest.raises(AttachError, match="answer to query-uuid is not QEMU's"),
    ):
        driver.open_machine(guest)
    with (
        server(tmp_path / "t", GREETING, answers(query_status=answer)) as path,
        pytest.raises(AttachError, match="answer to query-status is not QEMU's"),
    ):
        driver.QmpLevers(path).paused()


def test_a_socket_that_qemu_did_not_make_is_refused(tmp_path: Path) -> None:
    """As libvirt does: it makes the socket and hands it to QEMU, and is itself the peer that the kernel tells."""
    with (
        server(tmp_path / "s", GREETING, answers()) as path,
        pytest.raises(Unsupported, match=rf"pid {os.getpid()}\), not by QEMU"),
    ):
        open_qmp(path)
