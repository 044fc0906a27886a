"""The memory of a Xen guest, seen from dom0: frames are mapped as they are asked for, many in one call.

Knows which domain is meant, and that a PVH or HVM guest's frames are its physical pages. What is
different in a PV guest is told by `xenpv`, which frames there are by `xenram`, how they are mapped by `xenframes`, the
libraries by `xenlib`.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.drivers.placement import Placement
from vmi_inside.drivers.xenframes import MOST, Frames, pages, split
from vmi_inside.drivers.xenlib import DYING, SHUTDOWN, Info, Xen, controls
from vmi_inside.drivers.xenram import ram
from vmi_inside.errors import GuestGone, NoMemory, NoSuchDomain, NotRunning, Unsupported
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_MASK, PAGE_SIZE, U8, U64, Mask

_ALIVE: Final = 0.2  # seconds for which a domain is taken to be there, when all its frames can be mapped


@dataclass(frozen=True, slots=True)
class Domain:
    """One guest of this host: `id`, `name`, and what the hypervisor says."""

    name: str
    info: Info

    @property
    def id(self) -> int:
        """Its domid: another one after each start."""
        return self.info.id


class XenMemory:
    """`PhysicalMemory` of a PVH or HVM guest: guest frames are guest-physical pages.

    Mappings are kept while one is in `hold()`, and no longer: the guest may give pages back. Closes `xen` when closed.
    """

    def __init__(self, xen: Xen, domain: Domain) -> None:
        self.domain = domain
        self.xen = xen
        self.how = f"Xen {domain.info.kind.upper()}, domain {domain.id}, foreign memory"
        self._frames = Frames(xen, domain.id)
        self._held = 0
        self._seen = time.monotonic()
        self.runs: tuple[Run, ...] = ()
        try:
            self.runs = self._find_runs()
        except BaseException:
            self.close()  # what is mapped would keep the domain from ending
            raise
        self._placement = Placement(self.runs, [run.start for run in self.runs])

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`. One call of the hypervisor for 4,096 pages that are not mapped yet."""
        with self.hold():
            page, offset = split(pa)
            frame, there = self._of_pages(page)
            if there.all():
                ok = self._frames.gather(frame, offset, out)
            else:
                some = np.empty((int(there.sum()), out.shape[1]), np.uint8)
                good = self._frames.gather(frame[there], offset[there], some)
                out[:] = 0
                out[there] = some
                ok = there.copy()
                ok[there] = good
            self._check()
            return ok

    def read(self, pa: int, size: int) -> bytes | None:
        """See `PhysicalMemory.read`. A copy."""
        if size <= 0 or self._placement.parts(pa, size) is None:
            return b"" if not size else None
        with self.hold():
            page = pages(pa, size)
            parts = []
            for first in range(0, len(page), MOST):
                some = page[first : first + MOST]
                frame, there = self._of_pages(some)
                rows = np.empty((len(some), PAGE_SIZE), np.uint8)
                fine = there.all() and self._frames.gather(frame, np.zeros(len(frame), np.uint64), rows).all()
                self._check()
                if not fine:
                    return None
                parts.append(rows)
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            start = pa & PAGE_MASK
            return whole.ravel()[start : start + size].tobytes()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Mappings are kept inside, and given back behind the outermost block."""
        self._held += 1
        if self._held == 1:
            self._begin()
        try:
            yield
        finally:
            self._held -= 1
            if not self._held:
                self._frames.release()

    def close(self) -> None:
        """Let go of the guest's memory and of the hypervisor."""
        self.runs = ()
        self._placement = Placement((), ())
        self._frames.release()
        self.xen.close()

    def _begin(self) -> None:
        """What is to be looked at anew before something is read."""

    def _of_pages(self, page: U64) -> tuple[U64, Mask]:
        """The frames that hold these pages, and which of them there are."""
        return page, np.ones(len(page), dtype=np.bool_)

    def _check(self) -> None:
        """Raise `GuestGone` when the domain is not there any more: mappings of it can outlive it."""
        now = time.monotonic()
        if not self._frames.failed and now - self._seen < _ALIVE:
            return
        self._frames.failed, self._seen = False, now
        self.check_alive()

    def check_alive(self) -> None:
        """Raise `GuestGone` when the domain is not there any more."""
        info = self.xen.domain(self.domain.id)
        if info is None or info.uuid != self.domain.info.uuid or info.flags & DYING:
            raise GuestGone(
                f"{self.domain.name}: the guest is gone (domain {self.domain.id} was destroyed, saved or shut down); "
                "attach again"
            )

    def _find_runs(self) -> tuple[Run, ...]:
        return ram(self.xen, self.domain.id)


class Writing(XenMemory):
    """What may be written to: a mix-in, so that what was opened for reading has no such thing."""

    def write(self, pa: int, data: bytes) -> None:
        """See `WritableMemory.write`."""
        if self._placement.parts(pa, len(data)) is None:
            raise NoMemory(pa, len(data))
        with self.hold():
            page = pages(pa, len(data))
            frame, there = self._of_pages(page)
            room = np.empty((len(page), 1), np.uint8)
            if not there.all() or not self._frames.gather(frame, np.zeros(len(page), np.uint64), room).all():
                raise NoMemory(pa, len(data))
            at, done = pa & PAGE_MASK, 0
            for number in frame.tolist():
                step = min(PAGE_SIZE - at, len(data) - done)
                if not self._frames.write(number, at, data[done : done + step]):
                    self.check_alive()
                    raise NoMemory(pa + done, step)
                at, done = 0, done + step

    def scatter(self, pa: U64, data: U8) -> None:
        """See `WritableMemory.scatter`."""
        with self.hold():
            if not self.gather(pa, np.empty_like(data)).all():
                raise NoMemory(int(pa[0]), data.shape[1])
            for at, row in zip(pa.tolist(), data, strict=True):
                self.write(at, row.tobytes())


class WritableXenMemory(Writing):
    """`XenMemory` that may be written to."""


def open_xen(target: str, *, writable: bool = False) -> tuple[XenMemory, Domain]:
    """The memory of the guest of that name, UUID or domid, read-only unless `writable`; the guest goes on.

    Raises `NoSuchDomain`, `NotRunning`, `PermissionDenied`, `Unsupported`, `GuestGone`.
    """
    xen = Xen()
    try:
        domain = find(xen, target)
        if domain.info.kind == "pv":
            from vmi_inside.drivers import xenpv

            return (xenpv.WritablePvMemory if writable else xenpv.PvMemory)(xen, domain), domain
        return (WritableXenMemory if writable else XenMemory)(xen, domain), domain
    except BaseException:
        xen.close()
        raise


def find(xen: Xen, target: str) -> Domain:
    """The guest that is meant. Raises `NoSuchDomain`, `NotRunning`, `Unsupported` (dom0)."""
    every = domains(xen)
    found = [one for one in every if re.fullmatch("[0-9]{1,9}", target) and one.id == int(target)]
    found = found or [one for one in every if one.info.uuid == target.lower() and one.id]
    found = found or [one for one in every if one.name == target]
    if not found:
        near = difflib.get_close_matches(target, [one.name for one in every])
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; `xl list` shows what there is"
        raise NoSuchDomain(f"no Xen domain {target!r}{hint}")
    domain = found[0]
    if domain.id == 0:
        raise Unsupported(f"{target}: domain 0 is the system that this runs in; only its guests can be attached to")
    if domain.info.flags & (DYING | SHUTDOWN):
        state = domain.info.state
        hint = "it is being saved or migrated" if state == "suspended" else "start it again: xl create"
        raise NotRunning(f"{target}: the domain is {state}; {hint}")
    return domain


def is_dom0() -> bool:
    """Whether this is a Xen host's dom0."""
    return controls()


def list_domains() -> list[Domain]:
    """All domains of this host, dom0 first. Raises as `open_xen` does."""
    xen = Xen()
    try:
        return domains(xen)
    finally:
        xen.close()


def domains(xen: Xen) -> list[Domain]:
    """All domains of this host, dom0 first."""
    return [Domain(xen.name(info.id) or f"(domain {info.id})", info) for info in xen.domains()]
