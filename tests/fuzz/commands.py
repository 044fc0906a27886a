"""Commands over damaged guests: what people see of a lie is text and a documented exit code, never a traceback."""

from __future__ import annotations

import shlex
from random import Random
from typing import Any, Final
from unittest import mock

from click.testing import CliRunner

from tests.fuzz.damage import Damage
from tests.fuzz.guests import BYTES, ROUNDS, TIMES, DamagedGuest
from tests.fuzz.image import Image, WatchedMemory
from tests.fuzz.rendering import check, check_text
from tests.fuzz.watch import Violation
from vmi_inside.cli import exits
from vmi_inside.cli.app import cli
from vmi_inside.cli.output import FORMATS

#: Commands, and the reading that tells what they read. A `{}` is for the target.
COMMANDS: Final = (
    ("info {}", "info"), ("ps {}", "processes"), ("ps {} --tree", "processes"), ("ps {} --threads", "threads"),
    ("ps {} -o all", "processes"), ("ss {}", "process_open_sockets"), ("ss {} -a", "process_open_sockets"),
    ("lsof {}", "process_open_files"), ("maps {}", "process_memory_map"), ("envs {}", "process_envs"),
    ("namespaces {}", "process_namespaces"), ("creds {}", "process_credentials"), ("limits {}", "process_limits"),
    ("signals {}", "process_signals"), ("stack {}", "process_stack"), ("containers {}", "containers"),
    ("memory {}", "process_memory"), ("interfaces {}", "interface_details"), ("addresses {}", "interface_addresses"),
    ("routes {}", "routes"), ("arp {}", "arp_cache"), ("netfilter {}", "netfilter_hooks"), ("nftables {}", "nftables"),
    ("lsmod {}", "kernel_modules"), ("dmesg {}", "kernel_log"), ("mounts {}", "mounts"), ("cgroups {}", "cgroups"),
    ("block {}", "block_devices"), ("iomem {}", "iomem"), ("keys {}", "kernel_keys"), ("timers {}", "timers"),
    ("kprobes {}", "kprobes"), ("uprobes {}", "uprobes"), ("tracepoints {}", "tracepoints"),
    ("perfevents {}", "perf_events"), ("meminfo {}", "memory_info"), ("slabinfo {}", "slab_caches"),
    ("vmstat {}", "vm_counters"), ("buddyinfo {}", "buddy_info"), ("swaps {}", "swaps"), ("gates {}", "gates"),
    ("files {}", "cached_files"), ("ls {} /", "cached_files"), ("check {}", "check-processes"),
    ("check {}", "check-modules"),
)  # fmt: skip
#: These write no table, or of their own form.
_PLAIN: Final = ("dmesg", "stack", "iomem", "nftables")


class Command:
    """One command, in one format after the other, on one damaged guest."""

    def __init__(self, image: Image, words: str, whole: DamagedGuest, seed: int) -> None:
        self.name = f"{image.name}:{words.format('GUEST')}"
        self.image = image
        self.words = shlex.split(words.format(image.name))
        self.whole = whole
        self.seed = seed

    def case(self, number: int) -> None:
        """Damage, run, look at what was written, repair."""
        random = Random(f"{self.seed} {self.name} {number}")
        form = random.choice(FORMATS)
        watched = WatchedMemory(self.image.memory)
        watched.round_limit, watched.byte_limit = TIMES * self.whole.rounds + ROUNDS, TIMES * self.whole.moved + BYTES

        def attach(*_: Any, **__: Any) -> Any:
            guest = self.image.guest()
            guest.kernel = self.image.kernel(watched)
            return guest

        try:
            Damage(self.image, self.whole.direct, random).some(self.whole.asked)
            with mock.patch("vmi_inside.guest.attach", attach):
                done = CliRunner().invoke(cli, [*self.words, "--format", form])
        finally:
            self.image.repair()
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code not in {one.code for one in exits.EXITS}:
            raise Violation(f"exit code {done.exit_code}")
        check_text(done.stderr_bytes or b"")
        if done.stdout_bytes or form != "json":
            check(form, done.stdout_bytes)


def targets(image: Image, seed: int, whole: dict[str, DamagedGuest]) -> list[Command]:
    """All of them; `whole` are the readings of the same image by their names."""
    return [Command(image, words, whole[reading], seed) for words, reading in COMMANDS]
