"""The command `vmi-inside`.

Each command is one small file: arguments, one call of the library, rendering. This file only starts; `app` has the
list of commands, and nothing is imported before it is needed, so that a command starts at once.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line of this process. Always ends in `SystemExit`; `exits` has the codes."""
    # NumPy's linear algebra is not used; the threads that it would start at import are time for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from vmi_inside.cli import messages

        messages.install()
        from vmi_inside.cli.app import cli

        cli(prog_name="vmi-inside")
    except KeyboardInterrupt:  # while modules are still being loaded; later, `app` sees it first
        sys.exit(130)
