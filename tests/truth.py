"""What a guest says of itself: /proc as read by a shell inside, parsed into plain dicts."""

from __future__ import annotations

import re
import socket
import struct
from typing import Any

from tests.lab.guest import LabGuest

_PROCESSES = r"""
cd /proc
for p in [0-9]*; do
  [ -r $p/stat ] || continue
  echo "P $p"
  hexdump -ve '1/1 "%02x"' $p/stat 2>/dev/null; echo
  hexdump -ve '1/1 "%02x"' $p/cmdline 2>/dev/null; echo
  readlink $p/exe 2>/dev/null || echo
  readlink $p/ns/pid 2>/dev/null || echo
  readlink $p/ns/net 2>/dev/null || echo
  grep '^0::' $p/cgroup 2>/dev/null || echo
  grep -E '^(Uid|Gid|Threads):' $p/status 2>/dev/null | tr '\n\t' '  '; echo
done
"""


def processes(guest: LabGuest) -> dict[int, dict[str, Any]]:
    """One dict a process, with the names that `Processes` has."""
    out = {}
    for block in guest.ask(_PROCESSES, timeout=300).split("P ")[1:]:
        lines = block.split("\n")
        if len(lines) < 8:
            continue
        pid = int(lines[0])
        stat = bytes.fromhex(lines[1])
        status = dict(re.findall(r"(\w+): +([^A-Z]*)", lines[7]))
        if not stat or "Uid" not in status:
            continue  # it ended while it was being read
        head, _, tail = stat.rpartition(b")")
        fields = tail.split()
        uids, gids = status["Uid"].split(), status["Gid"].split()
        out[pid] = {
            "pid": pid,
            "name": head.split(b"(", 1)[1].decode("utf-8", "backslashreplace"),
            "state": fields[0].decode(),
            "parent": int(fields[1]),
            "user_time": int(fields[11]) * 10,
            "system_time": int(fields[12]) * 10,
            "nice": int(fields[16]),
            "threads": int(status["Threads"]),
            "start_ticks": int(fields[19]),
            "total_size": int(fields[20]),
            "resident_size": int(fields[21]) * 4096,
            "kernel_thread": bool(int(fields[6]) & 0x200000),
            "cmdline": bytes.fromhex(lines[2]).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace"),
            "path": lines[3],
            "pid_namespace": _inode(lines[4]),
            "net_namespace": _inode(lines[5]),
            "cgroup_path": lines[6].removeprefix("0::"),
            **dict(zip(("uid", "euid", "suid"), map(int, uids), strict=False)),
            **dict(zip(("gid", "egid", "sgid"), map(int, gids), strict=False)),
        }
    return out


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
    text = guest.ask("cd /proc; for f in [0-9]*/fd/*; do echo $f $(readlink $f); done 2>/dev/null", timeout=300)
    found = re.findall(r"^(\d+)/fd/(\d+) socket:\[(\d+)\]$", text, re.MULTILINE)
    return {(int(pid), int(fd), int(inode)) for pid, fd, inode in found}
