"""What `make demo` shows: a guest that knows nothing of it, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.lab.guest import Shape

_SHAPE: Final = Shape(workload="tree=4,threads=4,zombie=1,owners,deleted,box,tcp,udp,unix")
_COMMANDS: Final = (
    ("guests",),
    ("info", "demo"),
    ("ps", "demo", "--tree"),
    ("ss", "demo", "--tcp", "--udp"),
)


def demo() -> int:
    """Boot a guest, run the commands on it, take it down; the first exit status that is not 0."""
    from tests.lab.libvirt import Daemon

    print(f"Booting Debian's {_SHAPE.kernel} kernel under QEMU and a libvirt of its own ...", flush=True)
    daemon = Daemon.start()
    try:
        daemon.boot(_SHAPE, "demo")
        environment = {**os.environ, "LIBVIRT_DEFAULT_URI": daemon.uri}
        program = Path(sys.executable).with_name("vmi-inside")
        for words in _COMMANDS:
            print(f"\n$ vmi-inside {' '.join(words)}", flush=True)
            status = subprocess.run([program, *words], env=environment, check=False).returncode
            if status:
                return status
    finally:
        daemon.stop()
    return 0
