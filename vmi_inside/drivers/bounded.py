"""Work that may never end, such as a call to a daemon that hangs: done in a thread of its own, and waited for so long.

Knows threads, and that those which never come back must not keep this process. What is waited for is the caller's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Seconds for which work is waited for.
PATIENCE: Final = 10.0


class Bounded:
    """Does one piece of work after the other. One that has taken too long is waited for once more, by the next."""

    def __init__(self, seconds: float = PATIENCE) -> None:
        self._seconds = seconds
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._late: queue.SimpleQueue[Any] | None = None  # where what has taken too long will tell that it ended
        self._lost = False
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[..., T], *arguments: Any, seconds: float | None = None) -> T:
        """What `work` gives, or raises. Raises TimeoutError when it takes too long; it may still end later on."""
        seconds = self._seconds if seconds is None else seconds
        if self._late is not None:
            try:
                self._late.get(timeout=0 if self._lost else seconds)
            except queue.Empty:
                self._lost = True
                raise TimeoutError("it has not answered for long") from None
            self._late, self._lost = None, False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="bounded", daemon=True)
            self._thread.start()
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def one() -> None:
            try:
                done.put((work(*arguments), None))
            except BaseException as error:  # it is raised where it was asked for
                done.put((None, error))

        self._asked.put(one)
        try:
            made, error = done.get(timeout=seconds)
        except queue.Empty:
            self._late = done
            raise TimeoutError(f"no answer in {seconds:g} s") from None
        if error is not None:
            raise error
        return made  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread, when what it does has ended."""
        if self._thread is not None:
            self._asked.put(None)
            if self._late is None:
                self._thread.join()
            self._thread = None

    def keep(self, *objects: object) -> None:
        """Have these objects outlive this process: what their ends would ask for, nobody may answer."""
        threading.Thread(target=lambda *_: threading.Event().wait(), args=objects, daemon=True).start()

    def _work(self) -> None:
        while (one := self._asked.get()) is not None:
            one()
