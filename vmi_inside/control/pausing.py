"""A guest held still, for as long as a block lasts, and let go on every way out of it.

Knows who may hold it (one controller at a time), that blocks nest, that what was found standing stays so, and what
becomes of a guest whose controller dies: a watching process lets it go, or else the next command does.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from vmi_inside.control.machine import Debugger, Machine, Steering
from vmi_inside.control.store import Store
from vmi_inside.errors import GuestGone, VmiError

_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@dataclass(slots=True)
class Pause:
    """One pause: `found` says that the guest stood already, `seconds` how long it was kept standing, in the end."""

    found: bool
    started: float
    seconds: float = 0.0


class Pausing:
    """Holds one machine. `recover` is called with what a dead controller had told, before anything else is done; also
    when it had told nothing, but `unfinished` says that it left something in the journal.

    `watch` starts the process that lets the guest go when this one dies; it reads `+` and `-` from its standard input.
    """

    def __init__(
        self,
        machine: Machine,
        store: Store,
        unfinished: Callable[[], bool],
        recover: Callable[[dict[str, Any]], None],
        watch: Callable[[], subprocess.Popen[bytes]] | None,
    ) -> None:
        self.machine = machine
        self.store = store
        self._unfinished = unfinished
        self._recover = recover
        self._watch = watch
        self._watcher: subprocess.Popen[bytes] | None = None
        self._thread = threading.RLock()
        self._locks = 0
        self._pause: Pause | None = None
        self._told: dict[str, Any] = {}
        self._freed = True
        self._ended = True
        self._connect: Callable[[], AbstractContextManager[Debugger]] | None = None
        self._own: Debugger | None = None  # the debugger by which the guest was stopped, and what hangs it up
        self._hanging = ExitStack()
        #: A debugger that is there for longer, and serves everybody meanwhile.
        self.shared: Debugger | None = None
        self._inner = 0  # blocks inside the outermost one
        #: While some vCPUs stand and others run: makes all stand, for the length of a block.
        self.still: Callable[[], AbstractContextManager[None]] | None = None

    @property
    def current(self) -> Pause | None:
        """The pause that lasts, if one does."""
        return self._pause

    @property
    def free_to_run(self) -> bool:
        """Whether the guest stands for nobody's sake but that of the innermost block, which may let it run a little."""
        return self._pause is not None and not self._pause.found and not self._inner

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other controller has the guest meanwhile; what a dead one left is recovered first. Nests."""
        with self._thread, ExitStack() as exits:
            if not self._locks:
                exits.enter_context(self.store.lock(self.machine.name))
            self._locks += 1
            try:
                if self._locks == 1:
                    unfinished, held = self._unfinished(), self.store.held()
                    if held is not None or unfinished:
                        same = held is not None and held.get("instance") == self.machine.instance
                        self._told = dict(held) if held is not None and same else {}
                        with self.paused(found=bool(self._told.get("found")) if same else None):
                            self._recover(self._told)
                yield
            finally:
                self._locks -= 1

    @contextmanager
    def paused(self, found: bool | None = None, *, debug: bool = False) -> Iterator[Pause]:
        """The guest stands still meanwhile. Nests. Raises `Busy`, `GuestGone`, `ControlError`.

        With `debug` all is ready for `debugger` when the pause begins, which makes it shorter. `found` says whether it
        stood before all this, where that is known better than by looking.
        """
        with self.locked():
            if self._pause is not None:
                self._inner += 1
                try:
                    with self.still() if self.still is not None else nullcontext():
                        yield self._pause
                finally:
                    self._inner -= 1
                return
            with _ending_raises(), ExitStack() as exits:
                self._start_watching()
                found = self.machine.paused if found is None else found
                pause = self._pause = Pause(found, time.monotonic())
                exits.callback(self._forget)
                self.tell(instance=self.machine.instance, found=found, **({"stub": True} if debug else {}))
                if debug:
                    self._connect = exits.enter_context(self._readiness())
                self._freed = False
                exits.callback(self._hang_up)
                exits.callback(self._let_go)
                pause.started = time.monotonic()
                if not found:
                    self._halt()
                yield pause

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside a pause that is `free_to_run`: the guest runs for the length of the block, and stands again behind."""
        self.machine.resume()
        try:
            yield
        finally:
            with uninterrupted():
                self.machine.pause()

    @contextmanager
    def debugger(self) -> Iterator[Debugger]:
        """A hold on the vCPUs. The guest must be paused. Raises `Busy`."""
        if self.shared is not None:
            yield self.shared
            return
        if self._own is not None:
            try:
                yield self._own
            finally:
                if isinstance(self._own, Steering):
                    self._own.release()
            return
        if self._connect is not None:
            with self._connect() as debugger:
                yield debugger
            return
        self.tell(stub=True)
        with self.machine.debugger() as connect, connect() as debugger:
            yield debugger

    def tell(self, **more: Any) -> None:
        """Write down how the guest is held, for who comes after us if we die."""
        self._told.update(more)
        self.store.hold(self._told)
        self._signal(b"+")

    def close(self) -> None:
        """End the watching process."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None and watcher.stdin is not None:
            with suppress(OSError):
                watcher.stdin.close()
            if self._freed and self._ended:
                watcher.wait()
            else:  # it has to see to the guest, which may take it minutes
                watcher.returncode = 0

    @contextmanager
    def _readiness(self) -> Iterator[Callable[[], AbstractContextManager[Debugger]]]:
        """What connects a debugger. Where it cannot be ended afterwards, whoever comes after us is told to."""
        with ExitStack() as exits:
            connect = exits.enter_context(self.machine.debugger())
            self._ended = False
            try:
                yield connect
            finally:
                exits.close()
                self._ended = True

    def _halt(self) -> None:
        if self._connect is not None and self.machine.debugger_stops:
            self._own = self._hanging.enter_context(self._connect())
        else:
            self.machine.pause()

    def _let_go(self) -> None:
        with uninterrupted():
            pause, self._connect = self._pause, None
            try:
                if pause is not None and not pause.found:
                    self._resume()
                self._freed = True
            except GuestGone:
                self._freed = True
                raise
            finally:
                if pause is not None:
                    pause.seconds = time.monotonic() - pause.started

    def _resume(self) -> None:
        """Let the guest run: if its manager does not do it, then by the debugger that stopped it."""
        try:
            self.machine.resume()
        except GuestGone:
            raise
        except VmiError as error:
            if not isinstance(self._own, Steering):
                raise
            self._own.cont()
            self.machine.notices.append(f"the guest was let go by its debugger: {error}")

    def _hang_up(self) -> None:
        with uninterrupted():
            self._own = None
            self._hanging.close()

    def _forget(self) -> None:
        with uninterrupted():
            self._pause = None
            self._told = {}
            # Where letting go, or ending the debugger, failed, the watching process and the next command try again.
            if self._freed and self._ended:
                self.store.let_go()
                self._signal(b"-")

    def _start_watching(self) -> None:
        if self._watch is not None and (self._watcher is None or self._watcher.poll() is not None):
            self.close()
            self._watcher = self._watch()

    def _signal(self, byte: bytes) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            with suppress(OSError):  # it is not what the guest's life hangs on while we live
                self._watcher.stdin.write(byte)
                self._watcher.stdin.flush()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end the block wait until it has ended."""
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    came: list[int] = []
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in _ENDING}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _ending_raises() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception, where they would have ended the process without a word."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in mine:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in mine:
            signal.signal(one, signal.SIG_DFL)
