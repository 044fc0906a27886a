"""What a guest says of itself: /proc as read by a shell inside, parsed into plain dicts."""

from __future__ import annotations

import re
import socket
import struct
from typing import Any

from tests.lab.guest import LabGuest

#: Few programs for all processes: starting one takes an emulated guest milliseconds.
_PROCESSES = r"""
cd /proc
echo "@stat"; grep -aH "" [0-9]*/stat 2>/dev/null
echo "@status"; grep -aHE "^(Uid|Gid|Threads):" [0-9]*/status 2>/dev/null
echo "@cgroup"; grep -aH "^0::" [0-9]*/cgroup 2>/dev/null
echo "@links"; ls -ld [0-9]*/exe [0-9]*/ns/pid [0-9]*/ns/net 2>/dev/null
echo "@cmdline"; head -v -c 200000 [0-9]*/cmdline 2>/dev/null
true
"""


def processes(guest: LabGuest) -> dict[int, dict[str, Any]]:
    """One dict a process, with the names that `Processes` has."""
    parts = dict(re.findall(r"^@(stat|status|cgroup|links|cmdline)\n(.*?)(?=^@(?:status|cgroup|links|cmdline)\n|\Z)",
                            guest.ask(_PROCESSES, timeout=300), re.MULTILINE | re.DOTALL))  # fmt: skip
    stats: dict[int, str] = {}
    for pid, line in re.findall(r"^(\d+)/stat:(.*)$", parts["stat"], re.MULTILINE):
        stats[int(pid)] = f"{stats[int(pid)]}\n{line}" if int(pid) in stats else line  # a name may have a newline
    status: dict[int, dict[str, list[int]]] = {}
    for pid, name, values in re.findall(r"^(\d+)/status:(\w+):\s*(.*)$", parts["status"], re.MULTILINE):
        status.setdefault(int(pid), {})[name] = [int(value) for value in values.split()]
    cgroup = {int(pid): path for pid, path in re.findall(r"^(\d+)/cgroup:0::(.*)$", parts["cgroup"], re.MULTILINE)}
    links = {
        (int(pid), name): target
        for pid, name, target in re.findall(r" (\d+)/(exe|ns/pid|ns/net) -> (.*)$", parts["links"], re.MULTILINE)
    }
    cmdline = {
        int(pid): raw.removesuffix("\n")
        for pid, raw in re.findall(
            r"^==> (\d+)/cmdline <==\n(.*?)(?=^==> \d+/cmdline <==\n|\Z)", parts["cmdline"], re.MULTILINE | re.DOTALL
        )
    }
    out = {}
    for pid, stat in stats.items():
        if pid not in status or pid not in cmdline or "Gid" not in status[pid]:
            continue  # it ended while it was being read
        head, _, tail = stat.rpartition(")")
        fields = tail.split()
        out[pid] = {
            "pid": pid,
            "name": _text(head.split("(", 1)[1]),
            "state": fields[0],
            "parent": int(fields[1]),
            "user_time": int(fields[11]) * 10,
            "system_time": int(fields[12]) * 10,
            "nice": int(fields[16]),
            "threads": status[pid]["Threads"][0],
            "start_ticks": int(fields[19]),
            "total_size": int(fields[20]),
            "resident_size": int(fields[21]) * 4096,
            "kernel_thread": bool(int(fields[6]) & 0x200000),
            "cmdline": _text(cmdline[pid].rstrip("\0").replace("\0", " ")),
            "path": links.get((pid, "exe"), ""),
            "pid_namespace": _inode(links.get((pid, "ns/pid"), "")),
            "net_namespace": _inode(links.get((pid, "ns/net"), "")),
            "cgroup_path": cgroup.get(pid, ""),
            **dict(zip(("uid", "euid", "suid"), status[pid]["Uid"], strict=False)),
            **dict(zip(("gid", "egid", "sgid"), status[pid]["Gid"], strict=False)),
        }
    return out


def _text(said: str) -> str:
    """As the library shows bytes that are no UTF-8."""
    return said.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _inode(link: str) -> int:
    found = re.search(r"\[(\d+)\]", link)
    return int(found[1]) if found else 0


TCP_STATES = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
    8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN_RECV",
}  # fmt: skip


def _address(text: str) -> tuple[str, int]:
    raw, port = text.split(":")
    words = b"".join(struct.pack("<I", int(raw[at : at + 8], 16)) for at in range(0, len(raw), 8))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words), int(port, 16)


def internet(guest: LabGuest, namespace_of: int | str = "self") -> list[dict[str, Any]]:
    """Sockets of /proc/net/{tcp,udp,udplite,raw,icmp}{,6} of that process's network namespace."""
    out = []
    for protocol in ("tcp", "udp", "udplite", "raw", "icmp"):
        for suffix, family in (("", "inet"), ("6", "inet6")):
            text = guest.ask(f"cat /proc/{namespace_of}/net/{protocol}{suffix} 2>/dev/null", check=False)
            for line in text.splitlines()[1:]:
                cells = line.split()
                local, remote = _address(cells[1]), _address(cells[2])
                tx, rx = (int(part, 16) for part in cells[4].split(":"))
                state = int(cells[3], 16)
                out.append({
                    "protocol": protocol, "family": family, "local_address": local[0], "local_port": local[1],
                    "remote_address": remote[0], "remote_port": remote[1], "tx_queue": tx, "rx_queue": rx,
                    "state": TCP_STATES[state] if protocol == "tcp" or state != 7 else "UNCONN",
                    "uid": int(cells[7]), "inode": int(cells[9]),
                })  # fmt: skip
    return out


def unix(guest: LabGuest, namespace_of: int | str = "self") -> list[dict[str, Any]]:
    """/proc/net/unix: type, inode and path; which namespace's, that process's."""
    out = []
    for line in guest.ask(f"cat /proc/{namespace_of}/net/unix").splitlines()[1:]:
        if not re.match(r"[0-9a-f]{16}: ", line):
            continue  # the rest of a path that has a newline in it
        cells = line.split(None, 7)
        kind = {1: "stream", 2: "dgram", 5: "seqpacket"}[int(cells[4], 16)]
        out.append({"type": kind, "inode": int(cells[6]), "path": cells[7] if len(cells) > 7 else ""})
    return out


def holders(guest: LabGuest) -> set[tuple[int, int, int]]:
    """(pid, fd, inode) of every socket that a descriptor holds."""
    text = guest.ask("ls -l /proc/[0-9]*/fd 2>/dev/null; true", timeout=300)
    found = set()
    for pid, listing in re.findall(r"^/proc/(\d+)/fd:\n(.*?)(?=^/proc/\d+/fd:\n|\Z)", text, re.MULTILINE | re.DOTALL):
        for fd, inode in re.findall(r" (\d+) -> socket:\[(\d+)\]$", listing, re.MULTILINE):
            found.add((int(pid), int(fd), int(inode)))
    return found
