"""`vmi-inside bpf`: eBPF programs, maps and links."""

from __future__ import annotations

from typing import Final

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

#: What can be listed: its table, what people see of it, what one is called.
_KINDS: Final = {
    "programs": (
        "bpf_programs",
        plain("id", "type", "name", "tag", "attach_type", "attach_to", "load_time", "uid", "maps", "jited_address"),
        "eBPF program",
    ),
    "maps": ("bpf_maps", plain("id", "type", "name", "key_size", "value_size", "max_entries", "users"), "eBPF map"),
    "attached": (
        "bpf_attachments",
        plain("program_id", "program", "attach_type", "target", "link_id"),
        "attached eBPF program",
    ),
    "links": ("bpf_links", plain("id", "type", "program_id", "program", "attach_type", "target"), "eBPF link"),
}


@click.command(
    epilog="""\b
Examples:
  vmi-inside bpf web01
  vmi-inside bpf web01 links
  vmi-inside bpf web01 attached --type 'cgroup_*'
  vmi-inside bpf web01 maps --type hash --format json
  vmi-inside bpf web01 programs --type 'kprobe,trac*' -o +jited_size,translated_size"""
)
@target_options
@click.argument("what", type=click.Choice(tuple(_KINDS)), default="programs")
@click.option("--type", "types", multiple=True, metavar="GLOB,...", help="Of types like these: kprobe, xdp, hash ...")
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Programs and maps whose name is like this.")
@output_options
def bpf(target: Target, what: str, types: tuple[str, ...], names: tuple[str, ...], output: Output) -> None:
    """eBPF: programs, maps, and what attaches them.

    The eBPF programs that are loaded, their maps, or what attaches them.

    What bpftool shows inside: WHAT is programs (when nothing is said), maps, links, or attached: programs at control
    groups and network devices, with a link or without. Ends with exit code 1 when a type or a name was asked for and
    nothing is there.
    """
    table, shown, word = _KINDS[what]
    kind = "attach_type" if what == "attached" else "type"
    name = "program" if what in ("links", "attached") else "name"
    asked = [each.strip() for listed in types for each in listed.split(",")]
    filters: Filters = {
        **({kind: like(asked)} if asked else {}),
        **({name: like(names)} if names else {}),
    }
    list_table(target, output, table, shown, filters=filters, what=word)
