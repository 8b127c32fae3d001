"""host-device with hardware: what the kernel gives back when a container's namespace ends.

It moves hardware to its first namespace, under the name that it had in the container or as devN,
down and bare. That takes a virtual machine, whose network card the tests lend to containers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import DONE, FOUND
from tests.kernel.lent import IPV4, NOTHING, await_home, have, left, network
from tests.kernel.test_commands import age, asked
from tests.kernel.test_rollback import calm
from tests.machine import Json, Machine
from tests.scope import ALL
from tests.waits import wait_until

pytestmark = [
    pytest.mark.full_kernel,
    pytest.mark.emulated_machine,  # has a card
    pytest.mark.without_engine(reason="an engine serves its own namespace alone"),
]

SUBNET: Json = {"subnet": "10.119.77.0/24"}


@pytest.fixture
def card(machine: Machine) -> Iterator[str]:
    """The PCI address of the machine's network card, `nic0`, which the pretend host has."""
    # The command line that tests/vm/boot.py gives to its kernel: elsewhere a card is in use.
    if "boot_dir=" not in Path("/proc/cmdline").read_text():
        pytest.skip("not a virtual machine of tests/vm, whose network card nobody needs")
    subprocess.run(["modprobe", "virtio_net"], check=True)
    (net,) = Path("/sys/bus/virtio/devices").glob("*/net")
    machine.move_to(f"/proc/{os.getpid()}/ns/net")
    calm(machine, machine.host)
    (found,) = net.iterdir()
    machine.do(machine.host, f"ip link set {found.name} down")
    if found.name != "nic0":
        machine.do(machine.host, f"ip link set {found.name} name nic0")
    machine.do(
        machine.host,
        "ip link set nic0 up mtu 1400 alias wan",
        "ip addr add 192.0.2.1/24 dev nic0",
        "ip addr add 2001:db8::1/64 dev nic0",
        "ip route add 198.51.100.0/24 via 192.0.2.9 dev nic0 metric 7",
    )
    machine.await_use(machine.host, "nic0")
    yield net.resolve().parent.parent.name  # above the virtio device
    machine.do(machine.host, "ip addr flush dev nic0")


def lent(machine: Machine, config: Json) -> str:
    """Return a container that has the card."""
    container = machine.container()
    result = machine.ok("host-device", "ADD", config, container)
    assert result["interfaces"][0]["pciID"] == config["pciBusID"]
    return container


def returned(machine: Machine) -> str:
    """Return the name devN under which the kernel has given the card back, once it has."""
    names: list[str] = []

    def is_back() -> bool:
        links = machine.ip(machine.host, "link")
        names[:] = [one["ifname"] for one in links if one["ifname"].startswith("dev")]
        return bool(names)

    wait_until(is_back, "the kernel does not give the card back")
    return names[0]


@pytest.fixture
def eth0(machine: Machine, card: str) -> Iterator[None]:
    """An interface of the host that has the name of the card in the container."""
    assert card
    machine.do(machine.host, "ip link add eth0 type dummy")
    yield
    machine.command(machine.host, "ip", "link", "del", "eth0")


def test_delete_after_the_namespace(machine: Machine, card: str) -> None:
    """DEL comes at once, waits for the card, and gives it its name and all that it had."""
    before, config = have(machine, "nic0"), network(machine, SUBNET, device=None, pciBusID=card)
    machine.forget(lent(machine, config))

    machine.ok("host-device", "DEL", config, "/no/such/netns")

    await_home(machine, before, "nic0")
    assert left(machine) == NOTHING


@pytest.mark.usefixtures("eth0")
def test_gc_after_the_namespace(machine: Machine, card: str) -> None:
    """A card that came back as devN, with another MAC, no other container gets before GC."""
    before, config = have(machine, "nic0"), network(machine, SUBNET, device=None, pciBusID=card)
    container = lent(machine, config)
    machine.do(container, "ip link set eth0 address 02:00:00:00:00:99 mtu 900")
    machine.command(container, "ip", "link", "set", "eth0", "alias", "")
    machine.forget(container)
    other, second = network(machine, device=returned(machine)), machine.container()

    error = machine.refused("host-device", "ADD", other, second, containerid="c2")

    assert (error["code"], "whose namespace has ended" in error["msg"]) == (11, True)
    machine.ok("host-device", "DEL", other, second, containerid="c2")
    age(machine)
    machine.ok("host-device", "GC", {**config, "cni.dev/valid-attachments": []})
    await_home(machine, before, "nic0")
    assert left(machine) == NOTHING


if ALL:  # the command takes half a minute there

    @pytest.mark.usefixtures("eth0")
    def test_reclaim_after_the_namespace(machine: Machine, card: str) -> None:
        """The same by an operator."""
        before, config = have(machine, "nic0"), network(machine, device=None, pciBusID=card)
        machine.forget(lent(machine, config))
        returned(machine)
        for status in (FOUND, DONE):
            age(machine)
            asked(machine, "reclaim", status=status)

        await_home(machine, before, "nic0")
        assert not list(Path(machine.state_dir, "attachments").iterdir())


def test_hardware_comes_first(machine: Machine, card: str) -> None:
    """A bridge, a VLAN or a macvlan with the card's MAC is not meant by `hwaddr`."""
    before = have(machine, "nic0")
    mac = before["address"]
    machine.do(
        machine.host,
        f"ip link add br0 address {mac} type bridge",
        "ip link add link nic0 name vlan5 type vlan id 5",
    )
    container = machine.container()
    config = network(machine, IPV4, device=None, hwaddr=mac.upper())

    machine.ok("host-device", "ADD", config, container)

    assert machine.link(container, "eth0") is not None
    machine.ok("host-device", "DEL", config, container)
    await_home(machine, before, "nic0")
    assert card
    for name in ("vlan5", "br0"):
        machine.command(machine.host, "ip", "link", "del", name)
