"""The network's commands on a real guest, as people start them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from tests.lab.guest import LabGuest
from vmi_inside.cli.app import cli


def run(guest: LabGuest, *args: str) -> Result:
    name, *more = args
    return CliRunner().invoke(cli, [name, "--connect", guest.uri or "", guest.name, *more], prog_name="vmi-inside")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("interfaces", "--name", "lan0"), ("lan0", "02:00:00:00:0a:01", "PROMISC")),
        (("interfaces", "--promiscuous"), ("lan1", "bridge0", "UP,LOWER_UP,PROMISC")),
        (("addresses", "192.0.2.*"), ("192.0.2.1/24", "192.0.2.255", "secondary")),
        (("routes", "--table", "main", "-4"), ("default", "192.0.2.254", "blackhole", "10.66.0.0/16", "198.51.100.2 ")),
        (("routes", "--table", "1000", "-6"), ("2001:db8:100::/48", "zebra")),
        (("arp", "--permanent", "-6"), ("2001:db8::9", "02:00:00:00:06:09")),
        (("netfilter", "--hook", "input"), ("nft_do_chain_inet [nf_tables]", "lab input", "-5")),
        (("netfilter", "--tables"), ("iptable_filter", "INPUT FORWARD OUTPUT")),
        (("nftables",), ("forward", "drop", "asleep (dormant)", "ingress")),
        (("nftables", "--sets"), ("addresses",)),
    ],
    ids=" ".join,
)
def test_commands_show_what_is_there(lab_guest: LabGuest, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    shown = run(lab_guest, *args)
    assert (shown.exit_code, shown.stderr) == (0, "")
    for word in words:
        assert word in shown.stdout
    rows = json.loads(run(lab_guest, *args, "--format", "json").stdout)
    assert len(rows) == len(shown.stdout.splitlines()) - 1
    some = str(rows[0]["net_namespace"])
    mine = json.loads(run(lab_guest, *args, "--net", some, "--format", "json").stdout)
    assert {str(row["net_namespace"]) for row in mine} == {some}


def test_nothing_of_that_kind(lab_guest: LabGuest) -> None:
    for command in ("interfaces", "addresses", "routes", "arp", "netfilter", "nftables"):
        shown = run(lab_guest, command, "--net", "1")
        assert shown.exit_code == 1
        assert shown.stderr.startswith(f"vmi-inside: {lab_guest.name}: no ")
    assert run(lab_guest, "netfilter", "--tables", "--hook", "input").exit_code == 2
