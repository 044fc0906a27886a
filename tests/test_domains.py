from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from vmi_inside import domains
from vmi_inside.domains import Domain
from vmi_inside.drivers.qemu_layout import LayoutUnknown
from vmi_inside.errors import AttachError, NoSuchDomain, NotRunning, Unsupported
from vmi_inside.memory import Run

TEST = "test:///default"
WEB = Domain("web01", str(uuid.uuid4()), 7, "running", 2, 1 << 30, "QEMU", "qemu:///system")


@pytest.fixture
def libvirt() -> None:
    pytest.importorskip("libvirt")


@contextmanager
def fake_qemu(*arguments: str, program: str = "/usr/bin/qemu-system-x86_64") -> Iterator[int]:
    """A process that looks like a QEMU with these arguments."""
    script = "echo; read line"
    with subprocess.Popen(
        [program, "-c", script, *arguments], executable="/bin/sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_the_process_of_a_domain_has_its_uuid_and_its_name() -> None:
    mine = ["-name", "guest=web01,debug-threads=on", "-uuid", WEB.uuid]
    with fake_qemu(*mine) as pid:
        assert domains.qemu_pid(WEB) == pid
        assert domains.qemu_pid(replace(WEB, name="web0")) is None
        assert domains.qemu_pid(replace(WEB, uuid=str(uuid.uuid4()))) is None
        assert domains.qemu_pid(replace(WEB, id=None)) is None
        assert domains.qemu_pid(replace(WEB, driver="TEST")) is None
        assert domains.qemu_pid(replace(WEB, uri="qemu+ssh://host/system")) is None
        with fake_qemu(*mine) as second, pytest.raises(AttachError, match=f"several.*{second}"):
            domains.qemu_pid(WEB)
    with fake_qemu(*mine, program="/bin/editor"), fake_qemu("-name", f"guest=web01,x={WEB.uuid}"):
        assert domains.qemu_pid(WEB) is None
    with fake_qemu("-name", "debug-threads=on,guest=a,,b", "-uuid", WEB.uuid) as pid:
        assert domains.qemu_pid(replace(WEB, name="a,b")) == pid
        assert domains.qemu_pid(replace(WEB, name="a")) is None


def test_why_a_domain_cannot_be_attached_to() -> None:
    assert domains.reachable(replace(WEB, uri="qemu+ssh://host/system")) is None
    assert "no QEMU process" in str(domains.reachable(WEB))
    shut = str(domains.reachable(replace(WEB, id=None, state="shut off")))
    assert shut.startswith("the domain is shut off")
    assert "virsh -c qemu:///system start web01" in shut
    assert "LXC" in str(domains.reachable(replace(WEB, driver="LXC")))
    with fake_qemu("-name", "guest=web01", "-uuid", WEB.uuid):
        assert domains.reachable(WEB) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_missing_privilege_is_told() -> None:
    program = (
        "import os, sys\n"
        "from vmi_inside.domains import Domain, reachable\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(reachable(Domain('web01', sys.argv[1], 7, 'running', 1, 1, 'QEMU', 'qemu:///system')))\n"
    )
    with fake_qemu("-name", "guest=web01", "-uuid", WEB.uuid) as pid:
        words = [sys.executable, "-c", program, WEB.uuid]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"cannot read QEMU's memory (pid {pid}): needs CAP_SYS_PTRACE")


@pytest.mark.usefixtures("libvirt")
def test_domains_are_found_as_virsh_finds_them(capfd: pytest.CaptureFixture[str]) -> None:
    (one,) = domains.list_domains(TEST)
    assert (one.name, one.id, one.state, one.driver, one.uri) == ("test", 1, "running", "TEST", TEST)
    assert one.memory == 2 << 30
    for target in ("test", "1", one.uuid, one.uuid.upper(), one.uuid.replace("-", "")):
        assert domains.find_domain(target, TEST) == one
    with pytest.raises(NoSuchDomain, match="did you mean 'test'"):
        domains.find_domain("tset", TEST)
    with pytest.raises(NoSuchDomain, match="vmi-inside guests"):
        domains.find_domain("2", TEST)
    with pytest.raises(Unsupported, match="TEST driver"):
        domains.open_domain("test", TEST)
    assert domains.qemu_pid(one) is None
    assert capfd.readouterr().err == ""  # libvirt prints its errors unless it is silenced


@pytest.mark.usefixtures("libvirt")
def test_an_id_comes_before_a_name_and_a_domain_that_is_shut_off_has_no_memory() -> None:
    import libvirt

    connection = libvirt.open(TEST)
    try:
        connection.defineXML(
            "<domain type='test'><name>1</name><memory>1024</memory><os><type>hvm</type></os></domain>"
        )
        assert domains._lookup(connection, "1").name() == "test"
        connection.lookupByName("test").destroy()
        assert domains._lookup(connection, "1").name() == "1"
        off = domains._domain(connection, connection.lookupByName("test"))
        assert (off.id, off.state) == (None, "shut off")
        assert isinstance(domains._unfit(replace(off, driver="QEMU")), NotRunning)
    finally:
        connection.close()


@pytest.mark.usefixtures("libvirt")
def test_the_uri_is_virshs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", TEST)
    assert domains.list_domains()[0].uri == TEST
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "bogus:///")
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", TEST)
    assert domains.list_domains()[0].uri == TEST
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", "bogus:///")
    assert domains.list_domains(TEST)[0].uri == TEST


@pytest.mark.usefixtures("libvirt")
def test_a_libvirt_that_is_not_there_is_told() -> None:
    with pytest.raises(AttachError, match=r"/nowhere.*does libvirt's daemon"):
        domains.list_domains("qemu+unix:///system?socket=/nowhere")


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(Unsupported, match=r"pip install 'vmi-inside\[libvirt\]'"):
        domains.list_domains()


XML = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name>{more}<memory unit='KiB'>4194304</memory><currentMemory unit='KiB'>1</currentMemory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices>{devices}</devices></domain>"""


def test_the_layout_of_a_remote_domain_is_told_by_its_xml() -> None:
    assert domains.xml_runs(XML.format(more="", devices="")) == (
        Run(0, 0xA0000),
        Run(0xC0000, 0x80000000 - 0xC0000),
        Run(1 << 32, 2 << 30),
    )
    for xml in (
        XML.format(more="<maxMemory slots='2' unit='KiB'>8388608</maxMemory>", devices=""),
        XML.format(more="", devices="<memory model='dimm'/>"),
        XML.format(more="<qemu:commandline><qemu:arg value='q35,max-ram-below-4g=1G'/></qemu:commandline>", devices=""),
        XML.format(more="", devices="").replace("x86_64", "aarch64"),
        XML.format(more="", devices="").replace("pc-q35-7.2", "s390-ccw"),
        XML.format(more="", devices="").replace("4194304", "²"),
        XML.format(more="", devices="").replace("4194304", "9" * 5000),
        "<domain/>",
        "<domain",
        "",
    ):
        with pytest.raises(LayoutUnknown):
            domains.xml_runs(xml)
