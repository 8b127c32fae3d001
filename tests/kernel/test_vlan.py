"""bridge with VLANs, and a plain attachment, under kernels that have all of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.machine import CNI_BIN, REFERENCE_BIN, Json, Machine, addresses_of, vlans_of

pytestmark = pytest.mark.full_kernel


def port_of(machine: Machine, result: Json) -> str:
    """Return the name of the host's end in a result."""
    name: str = result["interfaces"][1]["name"]
    return name


def vlans(machine: Machine, port: str) -> list[tuple[int, frozenset[str]]]:
    """Return the VLANs of a port and their flags."""
    return vlans_of(machine.command(machine.host, "bridge", "-j", "vlan", "show"), port)


OWN = frozenset({"PVID", "Egress Untagged"})
TAGGED: frozenset[str] = frozenset()
CASES: list[tuple[str, dict[str, Any], list[tuple[int, frozenset[str]]]]] = [
    ("vlan", {"vlan": 100}, [(100, OWN)]),
    (
        "vlan, default kept",
        {"vlan": 100, "preserveDefaultVlan": True},
        [(1, frozenset({"Egress Untagged"})), (100, OWN)],
    ),
    (
        "trunk",
        {"vlanTrunk": [{"minID": 101, "maxID": 104}, {"id": 200}]},
        [(1, OWN), *((vid, TAGGED) for vid in (101, 102, 103, 104, 200))],
    ),
    (
        "trunk beside a VLAN",
        {"vlan": 100, "vlanTrunk": [{"minID": 100, "maxID": 102}, {"id": 300}]},
        [(100, OWN), (101, TAGGED), (102, TAGGED), (300, TAGGED)],
    ),
    ("empty trunk", {"vlanTrunk": []}, [(1, OWN)]),
]


@pytest.mark.rotating(2)
@pytest.mark.parametrize(
    ("keys", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_port_vlans(
    machine: Machine, keys: dict[str, Any], expected: list[tuple[int, frozenset[str]]]
) -> None:
    """The port has just the VLANs asked for, the bridge filters, and CHECK agrees."""
    container = machine.container()
    config = machine.network(ipam=None, isGateway=None, **keys)

    result = machine.ok("bridge", "ADD", config, container)

    assert vlans(machine, port_of(machine, result)) == expected
    bridge = machine.link(machine.host, "br0")
    assert bridge is not None
    assert bridge["linkinfo"]["info_data"]["vlan_filtering"] == 1
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)


@pytest.mark.rotating(3)
@pytest.mark.parametrize("keys", [case[1] for case in CASES[:3]], ids=[c[0] for c in CASES[:3]])
def test_port_vlans_are_those_of_the_reference(machine: Machine, keys: dict[str, Any]) -> None:
    """The Go plugin gives its port the same VLANs for the same configuration."""
    config = machine.network(ipam=None, isGateway=None, **keys)
    ours = machine.ok("bridge", "ADD", config, machine.container())
    theirs = machine.execute(
        REFERENCE_BIN / "bridge", "ADD", config, machine.container(), containerid="go"
    )

    assert theirs.returncode == 0, theirs.stdout
    result = json.loads(theirs.stdout)
    assert vlans(machine, port_of(machine, result)) == vlans(machine, port_of(machine, ours))


def test_full_trunk(machine: Machine) -> None:
    """All 4094 VLANs travel as one range."""
    config = machine.network(ipam=None, isGateway=None, vlanTrunk=[{"minID": 1, "maxID": 4094}])

    result = machine.ok("bridge", "ADD", config, machine.container())

    assert [vid for vid, _ in vlans(machine, port_of(machine, result))] == list(range(1, 4095))


def test_check_names_a_lost_vlan(machine: Machine) -> None:
    """CHECK says which VLAN a port has lost."""
    container = machine.container()
    config = machine.network(ipam=None, isGateway=None, vlanTrunk=[{"id": 7}, {"id": 9}])
    result = machine.ok("bridge", "ADD", config, container)
    port = port_of(machine, result)
    machine.command(machine.host, "bridge", "vlan", "del", "dev", port, "vid", "9")

    error = machine.refused("bridge", "CHECK", {**config, "prevResult": result}, container)

    assert f"VLAN 9 of '{port}'" in error["msg"]


@pytest.mark.both_edges
@pytest.mark.emulated_machine  # masquerades by nftables
def test_gateway_in_a_vlan(machine: Machine) -> None:
    """The gateway is on <bridge>.<vlan>, the container reaches it, and DEL leaves it to others."""
    container = machine.container()
    config = machine.network(vlan=100, ipMasq=True)

    result = machine.ok("bridge", "ADD", config, container)

    assert machine.addresses(machine.host, "br0.100") == ["10.9.0.1/24"]
    assert machine.addresses(machine.host, "br0") == []
    assert [entry["name"] for entry in result["interfaces"]][3:] == ["br0.100"]
    assert result["ips"][0]["interface"] == 2
    machine.command(container, "ping", "-c1", "-W20", "10.9.0.1")
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)

    machine.ok("bridge", "DEL", config, container)

    left = {link["ifname"] for link in machine.ip(machine.host, "link")}
    assert {"lo", "br0", "br0.100"} <= left
    assert len(left) == 4  # the other end of br0.100


def test_half_made_gateway_is_completed(machine: Machine) -> None:
    """The next ADD completes a <bridge>.<vlan> that an interrupted one has left."""
    config = machine.network(vlan=100)
    machine.ok("bridge", "ADD", config, machine.container())
    port = machine.link(machine.host, "br0.100")
    assert port is not None
    machine.command(machine.host, "bridge", "vlan", "del", "dev", port["link"], "vid", "100")
    machine.command(machine.host, "ip", "link", "set", "br0.100", "down")

    container = machine.container()
    machine.ok("bridge", "ADD", config, container, containerid="c2")

    machine.command(container, "ping", "-c1", "-W20", "10.9.0.1")


def test_vlans_are_apart(machine: Machine) -> None:
    """Containers of one VLAN reach each other, those of different ones do not."""
    first, second, other = (machine.container() for _ in range(3))
    base = {"isGateway": None}
    one = machine.network(vlan=100, **base)
    two = machine.network(vlan=200, **base)
    machine.ok("bridge", "ADD", one, first, containerid="c1")
    mate = addresses_of(machine.ok("bridge", "ADD", one, second, containerid="c2"))[0]
    stranger = addresses_of(machine.ok("bridge", "ADD", two, other, containerid="c3"))[0]

    machine.command(first, "ping", "-c1", "-W20", mate)

    assert machine.try_command(first, "ping", "-c1", "-W3", stranger).returncode == 1


def test_bridge_that_does_not_filter_is_refused(machine: Machine) -> None:
    """A VLAN on a bridge without filtering would separate nothing: one error, nothing changed."""
    machine.command(machine.host, "ip", "link", "add", "br0", "type", "bridge")
    container = machine.container()
    before = machine.snapshot(container)

    error = machine.refused("bridge", "ADD", machine.network(vlan=100), container)

    assert "'br0' does not filter VLANs" in error["msg"]
    assert "vlan_filtering 1" in error["msg"]
    assert machine.snapshot(container) == before


def test_racing_adds_share_the_gateway_interface(machine: Machine) -> None:
    """ADDs at once make <bridge>.<vlan> once, and all of them succeed."""
    config = machine.network(vlan=100)
    containers = [machine.container() for _ in range(4)]

    def attach(number: int) -> int:
        done = machine.execute(
            CNI_BIN / "bridge", "ADD", config, containers[number], containerid=f"c{number}"
        )
        assert done.returncode == 0, done.stdout
        return done.returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(attach, range(4))) == [0, 0, 0, 0]

    assert machine.addresses(machine.host, "br0.100") == ["10.9.0.1/24"]
    machine.command(containers[3], "ping", "-c1", "-W20", "10.9.0.1")


@pytest.mark.emulated_machine  # masquerades by nftables
def test_plain_attachment(machine: Machine) -> None:
    """Dual stack, masquerade and MAC filter work on this kernel, and DEL leaves nothing."""
    container = machine.container()
    ipam = {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "mtu": 1400}],
    }
    config = machine.network(ipMasq=True, macspoofchk=True, portIsolation=True, ipam=ipam)

    result = machine.ok("bridge", "ADD", config, container)

    assert addresses_of(result) == ["10.9.0.2", "fd09::2"]
    assert set(machine.masqueraded()) == {"10.9.0.2", "fd09::2"}
    machine.command(container, "ping", "-c1", "-W20", "10.9.0.1")
    machine.command(container, "ping", "-c1", "-W20", "fd09::1")
    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("bridge", "GC", {**config, "cni.dev/valid-attachments": []}, container)
    assert addresses_of(result) == ["10.9.0.2", "fd09::2"]

    machine.ok("bridge", "DEL", config, container)

    assert [link["ifname"] for link in machine.ip(machine.host, "link")] == ["lo", "br0"]
    assert machine.nft() == []
