"""Which container or unit a control group belongs to, by the names that container managers and systemd give them.

Knows paths only, of v1 and v2 alike: systemd's and cgroupfs's names for docker, containerd, CRI-O, podman, LXC,
systemd-nspawn and systemd-machined. What runs in a group is left to others. Names are the guest's own word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_ID: Final = r"(?P<id>[0-9a-f]{64})"
_UID: Final = r"(?P<pod>[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
#: A runtime, and what its groups are called: the last two names of a path, joined by a slash.
_RUNTIMES: Final = tuple(
    (runtime, re.compile(pattern))
    for runtime, pattern in (
        ("docker", rf".*/docker-{_ID}\.scope"),
        ("docker", rf"docker/{_ID}"),
        ("podman", rf".*/libpod-{_ID}(?:\.scope)?"),
        ("containerd", rf".*/(?:cri-containerd|nerdctl)-{_ID}\.scope"),
        ("containerd", rf"(?:k8s\.io|moby)/{_ID}"),
        ("cri-o", rf".*/crio-{_ID}(?:\.scope)?"),
        ("kubepods", rf"pod{_UID}/{_ID}"),
        ("lxc", r".*/lxc\.payload\.(?P<name>.+)"),
        ("lxc", r"lxc(?:\.payload)?/(?P<name>.+)"),
        ("systemd-nspawn", r".*/systemd-nspawn@(?P<name>.+)\.service"),
        ("machine", r".*/machine-(?P<name>.+)\.scope"),
    )
)
_POD: Final = re.compile(rf"(?:kubepods(?:-\w+)?-)?pod{_UID}(?:\.slice)?")
_UNIT: Final = re.compile(r".+\.(?:service|scope|socket|mount|swap)")
_ESCAPED: Final = re.compile(r"\\x([0-9a-f]{2})")
#: Containers in containers go no deeper.
_DEPTH_LIMIT: Final = 64
#: Letters of an id that docker and its like show.
_SHORT: Final = 12


@dataclass(frozen=True, slots=True)
class Container:
    """What a path says: whose container, its id and name, the pod, and the group (a path) that all of it is in."""

    runtime: str
    id: str
    name: str
    pod: str
    path: str


def container(path: str) -> Container | None:
    """The innermost container that a group of that path belongs to, or None."""
    parts = path.strip("/").split("/")
    for end in range(min(len(parts), _DEPTH_LIMIT), 0, -1):
        name = f"{parts[end - 2] if end > 1 else ''}/{parts[end - 1]}"
        for runtime, pattern in _RUNTIMES:
            hit = pattern.fullmatch(name)
            if hit:
                told = hit.groupdict()
                shown = _unescaped(told.get("name") or "")
                number = told.get("id") or shown
                pod = told.get("pod") or _pod(parts[: end - 1])
                whole = "/" + "/".join(parts[:end])
                return Container(runtime, number, shown or number[:_SHORT], pod.replace("_", "-"), whole)
    return None


def _pod(parts: list[str]) -> str:
    """The Kubernetes pod that a group of these names is in; empty where it is in none."""
    hits = (_POD.fullmatch(part) for part in reversed(parts))
    return next((hit["pod"] for hit in hits if hit), "")


def unit(path: str) -> str:
    """The system unit of systemd that a group belongs to (`systemctl status PID`); empty where it is none."""
    for part in path.strip("/").split("/"):
        if part.endswith(".slice"):
            continue
        return part if _UNIT.fullmatch(part) else ""
    return ""


def _unescaped(name: str) -> str:
    """A name without systemd's `\\x2d`; what makes no character stays as it is."""
    raw = _ESCAPED.sub(lambda hit: chr(int(hit[1], 16)), name)
    return raw if "\0" not in raw else name
