"""Fixtures that give tests real guests, booted when first asked for and shared.

A test that uses one of them is marked `lab`; `--no-lab` leaves such tests out. Where something that the lab needs is
missing they are skipped, and say why; with CI set they fail instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import Phase, settings

from tests.lab import missing_prerequisites
from tests.lab.guest import LabGuest, Shape
from tests.lab.kernels import SUITES
from tests.lab.xen.parts import XEN_HOSTS
from tests.replaced import REPLACED
from tests.xen.dom0 import lost_news

if TYPE_CHECKING:
    from tests.lab.libvirt import Daemon

Boot = Callable[..., LabGuest]
"""Gives a guest of the shape that the keyword arguments tell; see `tests.lab.guest.Shape`."""

_FIXTURES: Final = {"lab", "lab_guest", "lab_boot", "lab_fresh", "lab_qemu"}
#: What tests that run on one kernel after the other do without `--all-kernels`: an old one and the newest.
_USUAL_KERNELS: Final = {"6.1-cloud", "new-cloud"}
_MOST_VARIANTS: Final = 5  # guests kept running beside the shared one: an idle one costs some hundredths of a processor

#: For mutation testing (docs/mutation.md): the same examples each time, and one that fails is not made smaller.
settings.register_profile("mutation", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-lab", action="store_true", help="leave out the tests that need a guest in QEMU")
    parser.addoption("--no-xen", action="store_true", help="leave out the tests on a Xen host in QEMU: three minutes")
    parser.addoption(
        "--xen-long", action="store_true", help="on the Xen host also an HVM guest, and what takes minutes"
    )
    parser.addoption("--xen-version", default="4.17", choices=tuple(XEN_HOSTS), help="which Xen the Xen host has")
    parser.addoption("--torn", type=int, default=3, help="how often a busy guest is read (tests/test_torn_lab.py)")
    parser.addoption(
        "--debug-package", action="store_true", help="with kernels' debug packages, too: some 1.2 GB to fetch, once"
    )
    parser.addoption("--all-kernels", action="store_true", help="on all of the lab's kernels, not on the usual two")
    parser.addoption(
        "--lab-keep", action="store_true", help="use the guests of `python -m tests.lab`, and leave them running"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a cancelled run takes its guests down too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, whose children would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for trouble in config.stash.get(REPLACED, []):
        terminalreporter.section("a shared guest was replaced")
        terminalreporter.line(trouble)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("lab")
            # An emulated guest lives on while it is looked at, on processors that are shared: what fails is done once
            # more, and pytest says how many were.
            item.add_marker(pytest.mark.flaky(reruns=1))
        elif item.get_closest_marker("xen"):  # only where the emulated machine has lost a guest, by Xen's own word
            item.add_marker(pytest.mark.flaky(reruns=1, condition=partial(lost_news, config)))
    left_out = [
        item
        for item in items
        if (config.getoption("--no-lab") and item.get_closest_marker("lab"))
        or (_of_another_kernel(item) and not config.getoption("--all-kernels"))
        or (item.get_closest_marker("xen") and config.getoption("--no-xen"))
        or (item.get_closest_marker("xen_long") and not config.getoption("--xen-long"))
        or (item.get_closest_marker("debug_package") and not config.getoption("--debug-package"))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    items[:] = sorted((item for item in items if item not in left_out), key=_order)


def _order(item: pytest.Item) -> int:
    """The fast tests first: what they find need not wait for a guest to boot. Then those on the Xen host, which has the
    processors to itself then: guests of the other tests live on until the end."""
    if not item.get_closest_marker("lab"):
        return 0
    return 1 if item.get_closest_marker("xen") else 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What fails on a Xen host tells what that host and its guests said."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if report.failed and host is not None and item.get_closest_marker("xen"):
        report.sections.append(("the Xen host", host.report()))
    return report


def _of_another_kernel(item: pytest.Item) -> bool:
    """Whether a test that runs on one kernel after the other is about to run on one that is not among the usual."""
    params = getattr(item, "callspec", None)
    values = params.params.values() if params else ()
    return any(
        value in SUITES and value.endswith("-cloud") and value not in _USUAL_KERNELS
        for value in values
        if isinstance(value, str)
    )


@pytest.fixture(scope="session")
def _prerequisites() -> None:
    missing = missing_prerequisites()
    if missing and os.environ.get("CI"):
        pytest.fail(f"the lab cannot run here: {missing}")
    if missing:
        pytest.skip(f"the lab cannot run here: {missing}")


@pytest.fixture(scope="session")
def lab(_daemon: Daemon) -> Daemon:
    """A private libvirt daemon; `lab.boot(Shape(...))` boots a guest in it, which ends with the session."""
    return _daemon


@pytest.fixture(scope="session")
def _daemon(_prerequisites: None) -> Iterator[Daemon]:
    """The same for the fixtures here: a module may have a `lab` of its own."""
    from tests.lab.libvirt import Daemon

    daemon = Daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="session")
def lab_boot(request: pytest.FixtureRequest) -> Boot:
    """Boots guests of any shape, or gives the one that runs already. Tests leave them as they were.

    Few are kept: a guest not asked for lately may be gone, so ask in each test. One that has rebooted, faulted or hung
    is replaced, so that others' tests do not fail for it, and the run's summary tells what its console said.
    """
    if request.config.getoption("--lab-keep"):
        from tests.lab.__main__ import kept

        return lambda **shape: kept(Shape(**shape))
    lab: Daemon = request.getfixturevalue("_daemon")
    running: dict[Shape, LabGuest] = {}

    def boot(**shape: Any) -> LabGuest:
        wanted = Shape(**shape)
        guest = running.pop(wanted, None)
        if guest is not None and (trouble := guest.trouble()):
            request.config.stash.setdefault(REPLACED, []).append(trouble)
            guest.destroy()
            guest = None
        if guest is None:
            variants = [old for old in running if old != Shape()]
            if len(variants) >= _MOST_VARIANTS and wanted != Shape():
                running.pop(variants[0]).destroy()
            guest = lab.boot(wanted)
        running[wanted] = guest
        return guest

    return boot


@pytest.fixture
def lab_guest(lab_boot: Boot) -> LabGuest:
    """The guest that most tests share: 6.1 cloud kernel, 256 MiB, 2 vCPUs, five-level paging, anonymous RAM."""
    return lab_boot()


@pytest.fixture(scope="session", params=("6.1-cloud", "5.10-cloud", "6.12-cloud", "new-cloud"))
def lab_kernel(request: pytest.FixtureRequest) -> str:
    """The name of one kernel after the other; all tests that ask for it run on one before the next is booted."""
    name: str = request.param
    return name


@pytest.fixture
def lab_each(lab_boot: Boot, lab_kernel: str) -> LabGuest:
    """A guest of each kernel in turn, of the common shape."""
    return lab_boot(kernel=lab_kernel)


@pytest.fixture(scope="session", params=["6.1-cloud", "6.12-cloud", "new-cloud", "5.10-cloud"])
def watched_guest(lab_boot: Boot, request: pytest.FixtureRequest) -> LabGuest:
    """Guests of several kernels in which something watches the kernel; tests of all modules share each boot."""
    return lab_boot(kernel=request.param, workload="watched")


@pytest.fixture
def lab_fresh(_daemon: Daemon) -> Iterator[Boot]:
    """Boots guests for one test alone, which may stop, reboot or destroy them."""
    with ExitStack() as stack:

        def boot(**shape: Any) -> LabGuest:
            guest = _daemon.boot(Shape(**shape))
            stack.callback(guest.destroy)
            return guest

        yield boot


@pytest.fixture
def lab_qemu(_prerequisites: None) -> Iterator[Boot]:
    """Boots guests in a QEMU without libvirt, for one test."""
    from tests.lab import qemu

    with ExitStack() as stack:

        def boot(**shape: Any) -> LabGuest:
            guest = qemu.boot(Shape(**shape))
            stack.callback(guest.destroy)
            return guest

        yield boot
