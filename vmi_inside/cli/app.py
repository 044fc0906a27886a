"""The command group: which commands there are, and how an error ends a command.

To add a command: one file with a click command, one line in `COMMANDS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from vmi_inside import __version__
from vmi_inside.cli import exits, messages
from vmi_inside.errors import VmiError

#: Names, and where each command is; imported when it is used.
COMMANDS: Final = {
    "guests": "vmi_inside.cli.guests:guests",
    "info": "vmi_inside.cli.info:info",
    "ps": "vmi_inside.cli.ps:ps",
    "ss": "vmi_inside.cli.ss:ss",
    "lsof": "vmi_inside.cli.lsof:lsof",
    "maps": "vmi_inside.cli.maps:maps",
    "lsmod": "vmi_inside.cli.lsmod:lsmod",
    "sql": "vmi_inside.cli.sql:sql",
    "snapshot": "vmi_inside.cli.snapshot:snapshot",
    "diff": "vmi_inside.cli.diff:diff",
    "profile": "vmi_inside.cli.profile:profile",
    "pause": "vmi_inside.cli.pause:pause",
    "resume": "vmi_inside.cli.resume:resume",
    "regs": "vmi_inside.cli.regs:regs",
    "write": "vmi_inside.cli.write:write",
    "journal": "vmi_inside.cli.journal:journal",
    "undo": "vmi_inside.cli.undo:undo",
    "kill": "vmi_inside.cli.kill:kill",
    "stop": "vmi_inside.cli.kill:stop",
    "cont": "vmi_inside.cli.kill:cont",
    "nice": "vmi_inside.cli.kill:nice",
    "deny": "vmi_inside.cli.deny:deny",
    "allow": "vmi_inside.cli.allow:allow",
    "gates": "vmi_inside.cli.gates:gates",
    "limit": "vmi_inside.cli.limit:limit",
    "setuid": "vmi_inside.cli.setuid:setuid",
    "dropcaps": "vmi_inside.cli.dropcaps:dropcaps",
    "sysctl": "vmi_inside.cli.sysctl:sysctl",
    "completion": "vmi_inside.cli.completion:completion",
}

#: Where `--help` lists them; what is not named here stands under the last heading.
SECTIONS: Final = {
    "Guests": ("guests", "info", "sql", "snapshot", "diff"),
    "Is the guest lying?": ("check",),
    "Processes": (
        "ps", "lsof", "maps", "envs", "namespaces", "creds", "limits", "signals", "stack", "containers", "memory",
    ),
    "Network": ("ss", "interfaces", "addresses", "routes", "arp", "netfilter", "nftables"),
    "Kernel": (
        "lsmod", "dmesg", "mounts", "block", "iomem", "keys", "timers", "bpf", "kprobes", "ftrace", "tracepoints",
        "meminfo", "slabinfo",
    ),
    "Contents": ("files", "cat", "extract", "memdump", "read", "strings", "yara"),
    "Control": (
        "pause", "resume", "regs", "write", "kill", "stop", "cont", "nice", "deny", "allow", "gates", "journal", "undo",
        "pause", "resume", "regs", "write", "kill", "stop", "cont", "nice", "limit", "setuid", "dropcaps", "sysctl",
        "journal", "undo",
    ),
    "More": (),
}  # fmt: skip


class Commands(click.Group):
    """Commands by name, loaded late; errors of the library become a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them under headings."""
        headings = {name: title for title, names in SECTIONS.items() for name in names}
        width = formatter.width - 6 - max(map(len, COMMANDS))
        for title in SECTIONS:
            rows = []
            for name in COMMANDS:
                command = self.get_command(ctx, name) if headings.get(name, "More") == title else None
                if command is not None:
                    rows.append((name, command.get_short_help_str(width)))
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except VmiError as error:
            messages.fail(ctx, error)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(exits.INTERRUPTED) from None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"\b\nExit codes:\n{exits.listed()}",
)
@click.version_option(__version__, prog_name=messages.PROGRAM, message="%(prog)s %(version)s")
@messages.debug_option
def cli() -> None:
    """See what runs inside virtual machines, from outside: no agent, no debug symbols.

    TARGET is a libvirt domain by name, UUID or id; file:PATH, a memory dump (raw, ELF core, kdump, LiME); or
    qmp:SOCKET, a QEMU without libvirt.

    Results go to stdout, everything else to stderr. What a guest calls its things is escaped in tables; JSON and CSV
    are exact, and a spreadsheet may take a cell of such a CSV for a formula.

    \b
    Examples:
      vmi-inside guests
      vmi-inside ps web01 --tree
      vmi-inside ss web01 --listening
      vmi-inside ps file:web01.core --format json | jq '.[] | select(.uid == 0) | .name'
    """
