"""The Xen host, and its guests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from tests.lab.guest import BootFailed
from tests.lab.xen import host as lab
from tests.lab.xen.host import XenGuest, XenHost
from tests.lab.xen.parts import XEN_HOSTS
from tests.replaced import REPLACED
from tests.xen.dom0 import KINDS, Lost, lost_news, vcpus

#: What is told apart by processes and sockets, without what keeps an emulated processor busy.
WORKLOAD = "tree,threads,zombie,stopped,names,userns,files,mappings,tcp,udp,unix,raw"


def needs_hvm(request: pytest.FixtureRequest) -> bool:
    """Whether a test that is to run does: such a guest takes minutes to boot."""
    return any("[hvm]" in item.name for item in request.session.items)


@pytest.fixture(scope="package")
def host(_prerequisites: None, request: pytest.FixtureRequest) -> Iterator[XenHost]:
    recipe = XEN_HOSTS[request.config.getoption("--xen-version")]
    recipe = dataclasses.replace(recipe, device_model=needs_hvm(request))
    try:
        made = lab.boot(recipe)
    except BootFailed:  # of the emulated machine, not of what is tested
        made = lab.boot(recipe)
    lost = Lost(made)
    request.config.pluginmanager.register(lost, Lost.NAME)
    try:
        made.python(
            "import os, subprocess, time, vmi_inside, vmi_inside.guest\n"
            "from vmi_inside.errors import *\n"
            "from vmi_inside.linux.clock import boot_time"
        )
        yield made
    finally:
        request.config.pluginmanager.unregister(lost)
        made.destroy()


@pytest.fixture(scope="package")
def guests(host: XenHost, request: pytest.FixtureRequest) -> dict[str, XenGuest]:
    made = {"pvh": host.start("pvh", WORKLOAD, vcpus=vcpus(request)), "pv": host.start("pv", WORKLOAD, libvirt=True)}
    if needs_hvm(request):
        made["hvm"] = host.start("hvm", WORKLOAD)
    for guest in made.values():
        attach(guest)
    return made


def attach(guest: XenGuest) -> None:
    """Attach to a guest that was just started, when it is ready: as a name in dom0."""
    guest.wait_ready(400 if guest.name == "hvm" else 170)
    connect = "'pv', connect='xen:///system'" if guest.name == "pv" else f"'xen:{guest.name}'"
    guest.host.python(f"{guest.name} = vmi_inside.attach({connect}, writable=True)", 200)


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> None:
    """Start anew what the emulated machine has lost, and tell of it in the run's summary."""
    if "guests" not in request.fixturenames or not lost_news(request.config):
        return
    host, guests = request.getfixturevalue("host"), request.getfixturevalue("guests")
    request.config.pluginmanager.get_plugin(Lost.NAME).known = host.losses()
    for guest in guests.values():
        if guest.gone():
            told = f"{guest.name}: it triple-faulted; its host says:\n{host.shell.console_tail(2000)}"
            request.config.stash.setdefault(REPLACED, []).append(told)
            host.start(guest.name, WORKLOAD, vcpus=vcpus(request) if guest.name == "pvh" else 1,
                       libvirt=guest.name == "pv")  # fmt: skip
            attach(guest)


@pytest.fixture(params=KINDS)
def guest(guests: dict[str, XenGuest], request: pytest.FixtureRequest) -> XenGuest:
    return guests[request.param]
