"""The command group: which commands there are, and how an error ends a command.

To add a command: one file with a click command, one line in `SECTIONS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from vmi_inside import __version__
from vmi_inside.cli import exits, messages
from vmi_inside.errors import VmiError

#: Where `--help` lists each command, its name, and where it is: imported when it is used.
SECTIONS: Final = {
    "Guests": {
        "guests": "guests:guests",
        "info": "info:info",
        "sql": "sql:sql",
        "snapshot": "snapshot:snapshot",
        "diff": "diff:diff",
    },
    "Is the guest lying?": {
        "check": "check:check",
    },
    "Processes": {
        "ps": "ps:ps",
        "lsof": "lsof:lsof",
        "maps": "maps:maps",
        "envs": "envs:envs",
        "namespaces": "namespaces:namespaces",
        "creds": "creds:creds",
        "limits": "limits:limits",
        "signals": "signals:signals",
        "stack": "stack:stack",
        "containers": "containers:containers",
        "memory": "memory:memory",
    },
    "Network": {
        "ss": "ss:ss",
        "interfaces": "interfaces:interfaces",
        "addresses": "addresses:addresses",
        "routes": "routes:routes",
        "arp": "arp:arp",
        "netfilter": "netfilter:netfilter",
        "nftables": "nftables:nftables",
    },
    "Kernel": {
        "lsmod": "lsmod:lsmod",
        "dmesg": "dmesg:dmesg",
        "mounts": "mounts:mounts",
        "cgroups": "cgroups:cgroups",
        "block": "block:block",
        "iomem": "iomem:iomem",
        "keys": "keys:keys",
        "timers": "timers:timers",
        "bpf": "bpf:bpf",
        "kprobes": "kprobes:kprobes",
        "uprobes": "uprobes:uprobes",
        "ftrace": "ftrace:ftrace",
        "tracepoints": "tracepoints:tracepoints",
        "perfevents": "perfevents:perfevents",
        "meminfo": "meminfo:meminfo",
        "slabinfo": "slabinfo:slabinfo",
        "vmstat": "vmstat:vmstat",
        "buddyinfo": "buddyinfo:buddyinfo",
        "swaps": "swaps:swaps",
    },
    "Contents": {
        "files": "files:files",
        "ls": "ls:ls",
        "cat": "cat:cat",
        "extract": "extract:extract",
        "memdump": "memdump:memdump",
        "dump": "dump:dump",
        "read": "read:read",
        "strings": "strings:strings",
        "yara": "yara:yara",
    },
    "Control": {
        "deny": "deny:deny",
        "allow": "allow:allow",
        "gates": "gates:gates",
        "kill": "kill:kill",
        "stop": "kill:stop",
        "cont": "kill:cont",
        "nice": "kill:nice",
        "limit": "limit:limit",
        "setuid": "setuid:setuid",
        "dropcaps": "dropcaps:dropcaps",
        "sysctl": "sysctl:sysctl",
        "pause": "pause:pause",
        "resume": "resume:resume",
        "regs": "regs:regs",
        "write": "write:write",
        "journal": "journal:journal",
        "undo": "undo:undo",
    },
    "Other tools": {
        "profile": "profile:profile",
        "gdb": "gdb:gdb",
        "vol": "vol:vol",
        "drgn": "drgn:drgn",
    },
    "More": {
        "completion": "completion:completion",
    },
}
COMMANDS: Final = {name: where for section in SECTIONS.values() for name, where in section.items()}


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
        command: click.Command = getattr(import_module(f"vmi_inside.cli.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant. For a name that is none, the nearest one is told."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # here only: every command would pay for it

            near = get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them under headings."""
        width = formatter.width - 6 - max(map(len, COMMANDS))
        for title, names in SECTIONS.items():
            commands = ((name, self.get_command(ctx, name)) for name in names)
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(width)) for name, one in commands if one is not None])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except VmiError as error:
            messages.fail(ctx, error)
        except click.FileError as error:  # a file of this host
            messages.say(f"{error.ui_filename}: {error.message}")
            raise click.exceptions.Exit(exits.NOTHING) from None
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

    TARGET is a libvirt domain by name, UUID or id; file:PATH, a memory dump (raw, ELF core, kdump, LiME);
    qmp:SOCKET, a QEMU without libvirt; xen:NAME, a guest of the Xen host that this is the dom0 of; or libvmi:NAME, a
    domain or a raw image through LibVMI.

    Results go to stdout, everything else to stderr. What a guest calls its things is escaped in tables; JSON and CSV
    are exact, and a spreadsheet may take a cell of such a CSV for a formula.

    \b
    Examples:
      vmi-inside guests
      vmi-inside ps web01 --tree
      vmi-inside ss web01 --listening
      vmi-inside ps file:web01.core --format json | jq '.[] | select(.uid == 0) | .name'
    """
