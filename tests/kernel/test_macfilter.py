"""macspoofchk: frames with a foreign source MAC are dropped, the container's own pass."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from cni_common.kernel.netns import NetNS
from tests.machine import Json, Machine
from tests.waits import GENEROUS

FOREIGN = "02:bb:00:00:00:01"
KIND = 0x88B5  # IEEE 802 local experimental: nothing but these tests sends it


def inside(netns: str, function: Callable[[], Any]) -> Any:
    """Return what `function` returns inside a namespace."""
    handle = NetNS(netns)
    try:
        return handle.run(function)
    finally:
        handle.close()


def packet_socket() -> socket.socket:
    """Return a socket for frames of our kind on eth0."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND))
    sock.bind(("eth0", KIND))
    sock.settimeout(GENEROUS)
    return sock


def arrivals(sender: str, receiver: str, *macs: str) -> list[str]:
    """Send a broadcast frame from each MAC; return those that arrive before one from its own."""
    heard: list[str] = []
    with inside(receiver, packet_socket) as sock, inside(sender, packet_socket) as out:
        own = out.getsockname()[4].hex(":")
        for number, mac in enumerate((*macs, own)):
            header = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + KIND.to_bytes(2, "big")
            out.send(header + bytes([number]) * 46)
        while (frame := sock.recv(128))[14] != len(macs):
            heard.append(frame[6:12].hex(":"))
    return heard


def attach(machine: Machine, *configs: Json) -> list[str]:
    """Return the namespaces of containers c0, c1, … attached by the configurations."""
    containers = [machine.container() for _ in configs]
    for number, config in enumerate(configs):
        netns = containers[number]
        machine.ok("bridge", "ADD", config, netns, containerid=f"c{number}")
    return containers


def guarded(machine: Machine, **keys: object) -> Json:
    """Return an L2 configuration with macspoofchk."""
    return machine.network(**{"macspoofchk": True, "ipam": None, **keys})


def test_foreign_source_is_dropped(machine: Machine) -> None:
    """A frame with another source MAC does not leave the port, those around it do."""
    first, second = attach(machine, guarded(machine), guarded(machine))

    assert arrivals(first, second, FOREIGN) == []


def test_without_macspoofchk_everything_passes(machine: Machine) -> None:
    """A port that is not guarded may send what it likes, beside one that is."""
    first, second = attach(machine, guarded(machine, macspoofchk=False), guarded(machine))

    assert arrivals(first, second, FOREIGN) == [FOREIGN]
    assert arrivals(second, first, FOREIGN) == []


def test_mac_of_another_container_is_foreign(machine: Machine) -> None:
    """The MAC that one guarded port may use is not good for another."""
    first, second, third = attach(machine, *[guarded(machine)] * 3)
    link = machine.link(second, "eth0")
    assert link is not None

    assert arrivals(first, third, link["address"]) == []


def test_configured_mac(machine: Machine) -> None:
    """The MAC by runtimeConfig is the one that passes."""
    config = guarded(machine, runtimeConfig={"mac": FOREIGN})
    first, second = attach(machine, config, guarded(machine))

    assert arrivals(first, second, FOREIGN, "02:bb:00:00:00:02") == [FOREIGN]


def test_ip_traffic_of_a_guarded_container(machine: Machine) -> None:
    """With its own MAC a container reaches gateway and neighbours; with another it does not."""
    config = machine.network(macspoofchk=True)
    first, _ = attach(machine, config, config)

    assert machine.ping(first, "10.9.0.1")
    assert machine.ping(first, "10.9.0.3")

    machine.do(first, f"ip link set eth0 address {FOREIGN}", "ip neigh flush all")

    assert not machine.ping(first, "10.9.0.1")


def test_layout(machine: Machine) -> None:
    """An attachment is one element in each of two sets; repeated ADD and DEL do not pile up."""
    config = guarded(machine)
    attach(machine, config, config)
    machine.ok("bridge", "DEL", config, containerid="c0")
    attach(machine, config)

    listing = machine.command(machine.host, "nft", "-j", "list", "table", "bridge", "pycni")
    sets = {
        entry["set"]["name"]: len(entry["set"]["elem"]) for entry in machine.nft() if "set" in entry
    }
    assert sets == {"guarded_ports": 2, "allowed_macs": 2}
    assert len([entry for entry in machine.nft() if "rule" in entry]) == 1
    assert all(port in listing for port in machine.ports())


@pytest.mark.parametrize("order", [("c0", "c1"), ("c1", "c0")], ids=str)
def test_table_goes_with_the_last_port(machine: Machine, order: tuple[str, str]) -> None:
    """DEL removes a port's own elements, the last one the table."""
    config = guarded(machine)
    containers = dict(zip(("c0", "c1"), attach(machine, config, config), strict=True))
    other = machine.container()
    machine.ok("bridge", "ADD", guarded(machine, macspoofchk=False), other, containerid="c2")

    first, second = order
    machine.ok("bridge", "DEL", config, containers[first], containerid=first)
    assert arrivals(containers[second], other, FOREIGN) == []
    machine.ok("bridge", "DEL", config, containers[second], containerid=second)

    assert machine.nft() == []
