"""Several kinds of processes at once without their network: one that streams, a web server, one in namespaces.

While a gate comes or goes they are stopped, so that all their memory and all their descriptors can be compared.
"""

from __future__ import annotations

import re

from tests.gates.arena import LOCAL, NETWORK, Arena, refused, went_on

_REGION_LIMIT = 2 << 20
_BOX = "unshare -n -p -m -u -i -f sh -c 'ip link set lo up; (workload echo 7100 &); sleep 0.5; exec \"$@\"' box"


def whole(here: Arena, pids: list[int]) -> dict[str, str]:
    """All that these processes have, by what it is: mappings, what stands in those they may write, descriptors."""
    listed = {pid: here.lab.ask(f"cat /proc/{pid}/maps; ls -l /proc/{pid}/fd | sed 's/.*:.. //'") for pid in pids}
    told = {f"{pid} has": text for pid, text in listed.items()}
    for pid, text in listed.items():
        for low, high in re.findall(r"(?m)^([0-9a-f]+)-([0-9a-f]+) rw", text):
            start, end = int(low, 16), int(high, 16)
            if end - start <= _REGION_LIMIT:
                pages = f"bs=4096 skip={start >> 12} count={end - start >> 12}"
                told[f"{pid} at {low}"] = f"dd if=/proc/{pid}/mem {pages} 2>/dev/null | md5sum"
    sums = [command for command in told.values() if command.startswith("dd ")]
    answers = iter(here.lab.ask("; ".join(sums)).splitlines())
    return {what: next(answers) if text.startswith("dd ") else text for what, text in told.items()}


def fetch(here: Arena, port: int) -> bool:
    """Whether a web server of the guest serves its page."""
    ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'"
    return "hello" in here.lab.ask(f"{ask} | timeout 1 nc 127.0.0.1 {port} 2>&1", check=False)


def test_nothing_but_the_network_is_lost(one_kernel: Arena) -> None:
    here = one_kernel
    guest, lab = here.guest, here.lab
    serve = "echo $$ >/run/web.$0; exec httpd -f -p 127.0.0.1:$0 -h /run/www"
    lab.ask("mkdir -p /run/www; echo hello >/run/www/index.html; "
            f"for p in 8091 8092; do (sh -c '{serve}' $p >/dev/null 2>&1 &); done; sleep 0.5")  # fmt: skip
    try:
        web = int(lab.ask("cat /run/web.8091"))
        streams, boxed = here.start("one"), here.start("boxed", through=_BOX)
        here.start("two")
        assert fetch(here, 8091)
        victims = [streams, web, boxed]

        lab.ask(f"kill -STOP {' '.join(map(str, victims))}; sleep 0.2")
        before = whole(here, victims)
        assert len([what for what in before if " at " in what]) > 6
        for pid in victims:
            guest.deny("network", pid=pid, children=pid == web)
        assert whole(here, victims) == before
        lab.ask(f"kill -CONT {' '.join(map(str, victims))}")
        fetch(here, 8091)  # for whom it waits already
        one, box, two = here.during("one", "boxed", "two")
        for counts in (one, box):
            refused(counts, NETWORK)
            went_on(counts, LOCAL)
        assert not fetch(here, 8091)
        assert fetch(here, 8092)
        went_on(two, (*NETWORK, *LOCAL, "packet"))

        lab.ask(f"kill -STOP {' '.join(map(str, victims))}; sleep 0.2")
        before = whole(here, victims)
        guest.allow()
        assert whole(here, victims) == before
        lab.ask(f"kill -CONT {' '.join(map(str, victims))}")
        one, box, two = here.during("one", "boxed", "two")
        for counts in (one, box, two):
            went_on(counts, (*NETWORK, *LOCAL))
        assert fetch(here, 8091)
    finally:
        lab.ask(
            "killall -CONT one boxed; kill -CONT $(cat /run/web.*); kill $(cat /run/web.*); rm -r /run/www /run/web.*",
            check=False,
        )
