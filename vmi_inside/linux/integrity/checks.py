"""All detectors by name, and how they are run: what is alarming is looked for again before it is told.

To add a detector: a file with a function `kernel, reading -> findings`, and one line in `DETECTORS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from vmi_inside.errors import MemoryFault, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity import (
    compared,
    credentials,
    disguises,
    functions,
    hidden_modules,
    hidden_sockets,
    hidden_tasks,
    hooks,
    interrupts,
    operations,
    permissions,
    pointers,
    syscalls,
    user_code,
)
from vmi_inside.linux.integrity.compared import Expected
from vmi_inside.linux.integrity.findings import SEVERITIES, Finding, Findings, table
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.profile.image import read_image

#: A guest lives on while it is read: what is found is believed when it is still there after these many seconds, each.
_AGAIN: Final = (0.02, 0.1, 0.2)
#: Findings of one check: who plants more is found out anyway.
ROW_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Detector:
    """One check: its function, and what it looks for, in words."""

    function: Callable[[Kernel, Reading], Iterable[Finding]]
    words: str


DETECTORS: Final = {
    "processes": Detector(hidden_tasks.hidden_tasks, "processes and threads that some lists leave out"),
    "modules": Detector(hidden_modules.hidden_modules, "kernel modules that some lists leave out; code of nobody"),
    "sockets": Detector(hidden_sockets.hidden_sockets, "sockets that processes hold and hash tables leave out"),
    "syscalls": Detector(syscalls.system_calls, "system-call tables: entries that are no system call's function"),
    "interrupts": Detector(interrupts.interrupt_gates, "interrupt gates that lead out of the kernel's code"),
    "pointers": Detector(pointers.data_pointers, "words of the kernel's data that lead to code of nobody"),
    "operations": Detector(operations.operation_tables, "tables of operations of files, /proc, sockets, protocols"),
    "functions": Detector(functions.function_entries, "functions of the kernel that begin with a jump away"),
    "image": Detector(compared.compared, "code and constants that differ from the kernel's image, where one is given"),
    "hooks": Detector(hooks.hooks, "kprobes, ftrace, eBPF, security and netfilter hooks whose function is nobody's"),
    "credentials": Detector(credentials.forged_credentials, "credentials that no honest way leads to"),
    "disguises": Detector(disguises.disguised_processes, "processes that look like kernel threads or run from no file"),
    "user-code": Detector(user_code.user_code, "code in processes that no file came with"),
    "rights": Detector(permissions.page_rights, "kernel pages that are writable and executable; code that is writable"),
}


def chosen(only: Iterable[str] = (), skip: Iterable[str] = ()) -> list[str]:
    """Names of detectors, in their order: those in `only`, or all, without those in `skip`.

    Raises `Unsupported` for a name that none has, with the names there are.
    """
    only, skip = list(only), list(skip)
    for name in (*only, *skip):
        if name not in DETECTORS:
            raise Unsupported(f"there is no check {name!r}; there are {', '.join(DETECTORS)}")
    return [name for name in DETECTORS if (not only or name in only) and name not in skip]


def check(
    kernel: Kernel,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    *,
    severity: str = SEVERITIES[0],
    image: str | None = None,
    live: bool = True,
) -> Findings:
    """Run the detectors in `only` (all), but those in `skip`; give what is of this severity or graver.

    `image` is the path of a vmlinuz of the same build, for the check of that name. What is alarming in a `live` guest
    is looked for again, and told if it lasts. A detector that cannot run on this kernel gives one row that says why,
    and the others go on.

    Raises `Unsupported` for a name that no detector has, for a severity that there is not, and for a file that is no
    image of this kernel; `NoSuchDomain` and `PermissionDenied` for one that cannot be read.
    """
    if severity not in SEVERITIES:
        raise Unsupported(f"there is no severity {severity!r}; there are {', '.join(SEVERITIES)}")
    names = chosen(only, skip)
    expected = Expected(kernel, read_image(image)) if image is not None else None
    found = _run(kernel, names, expected)
    for pause in _AGAIN if live else ():
        doubtful = [name for name in names if any(each.alarming for each in found[name])]
        if not doubtful:
            break
        time.sleep(pause)
        for name, again in _run(kernel, doubtful, expected).items():
            before = {each.key for each in found[name]}
            found[name] = [each for each in again if not each.alarming or each.key in before]
    return table((name, each) for name in names for each in found[name]).at_least(severity)


def _run(kernel: Kernel, names: Iterable[str], expected: Expected | None = None) -> dict[str, list[Finding]]:
    """What these detectors find now, by their names."""
    found: dict[str, list[Finding]] = {}
    with kernel.operation():
        reading = Reading(kernel, expected)
        for name in names:
            rows: list[Finding] = []
            try:
                for row in DETECTORS[name].function(kernel, reading):
                    if len(rows) == ROW_LIMIT:
                        rows.append(
                            Finding("info", name, detail=f"cut after {ROW_LIMIT} findings", fault="not all told")
                        )
                        break
                    rows.append(row)
            except (ProfileError, MemoryFault, Unsupported) as error:
                rows.append(Finding("info", name, detail=f"this check could not run: {error}", fault="not checked"))
            found[name] = list(dict.fromkeys(rows))
    return found
