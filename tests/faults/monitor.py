"""Something between a command and QEMU's monitor that passes on what they say, until it is told to behave badly.

Knows QMP as lines of JSON, one client at a time, as QEMU serves them.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

#: What comes instead of an answer: what is said, or how many seconds later the true one, or nothing at all.
MISDEEDS: Final[dict[str, bytes | float | None]] = {
    "late": 2.0,
    "too late": 8.0,
    "silent": None,
    "rubbish": b"\x00\xff not JSON at all\r\n",
    "half a line": b'{"return": {',
    "a list": b"[1, 2, 3]\r\n",
    "another's answer": b'{"return": {"running": "perhaps"}, "id": "nobody"}\r\n',
    "no result": b'{"return": 12345678901234567890}\r\n',
    "endless": b"x" * (1 << 20),
}


class Proxy:
    """Listens at `path` and speaks for the QEMU at `behind`. `misdeed` is what the next answer becomes, once."""

    def __init__(self, path: Path, behind: Path) -> None:
        self.path = path
        self.misdeed = ""
        self.done = 0  # misdeeds
        self._behind = behind
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                with client, socket.socket(socket.AF_UNIX) as qemu, suppress(OSError):
                    qemu.connect(str(self._behind))
                    other = threading.Thread(target=self._pass_on, args=(client, qemu), daemon=True)
                    other.start()
                    self._answer(qemu, client)
                    client.shutdown(socket.SHUT_RDWR)
                    other.join(1)

    def _pass_on(self, client: socket.socket, qemu: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                qemu.sendall(data)
            qemu.shutdown(socket.SHUT_RDWR)

    def _answer(self, qemu: socket.socket, client: socket.socket) -> None:
        while data := qemu.recv(1 << 16):
            if self.misdeed and b'"return"' in data:
                deed, self.misdeed = MISDEEDS[self.misdeed], ""
                self.done += 1
                if isinstance(deed, float):
                    time.sleep(deed)
                else:
                    data = deed or b""
            client.sendall(data)
