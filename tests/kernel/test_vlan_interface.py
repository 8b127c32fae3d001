"""vlan, the plugin: what is refused, DEL, STATUS; VLANs on a kernel that has them.

tests/kernel/test_devices.py has a whole life, test_vlan.py has bridge with VLANs. "Unlike the
reference" begins the account of each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.test_devices import NOTHING, left
from tests.machine import Json, Machine, error_of

full_kernel = pytest.mark.full_kernel

IPV4: Json = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10"}


def network(machine: Machine, **keys: Any) -> Json:
    """Return a vlan configuration on `uplink` with host-local."""
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": [[IPV4]]}
    usual = {"type": "vlan", "bridge": None, "isGateway": None, "master": "uplink", "vlanId": 5}
    return machine.network(**{**usual, "ipam": ipam, **keys})


def test_refused(machine: Machine) -> None:
    """A configuration that cannot work is refused before anything is made."""
    machine.outside()
    machine.do(machine.host, "ip link add down0 type veth peer name nwod0")
    container = machine.container()
    cases: list[tuple[Json, int, str]] = [
        ({"master": None}, 7, '"master" field is required'),
        ({"master": ""}, 7, '"master" field is required'),
        ({"master": "absent"}, 50, "no interface 'absent'"),
        ({"master": "a/b"}, 7, '"master"'),
        ({"master": "down0"}, 50, "'down0' is down"),
        ({"vlanId": -1}, 7, "vlanId"),
        ({"vlanId": 4095}, 7, "vlanId"),
        ({"vlanId": "5"}, 7, "vlanId"),
        ({"mtu": 1501}, 7, "'uplink' has 1500 bytes"),
        ({"mtu": 67}, 7, "mtu"),
        ({"mtu": -1}, 7, "mtu"),
        ({"linkInContainer": True}, 50, "no interface 'uplink'"),
        ({"ipam": None}, 7, '"ipam" must name'),
        ({"ipam": {"type": "absent"}}, 50, "absent"),
    ]
    for keys, code, says in cases:
        error = machine.refused("vlan", "ADD", network(machine, **keys), container)
        assert (error["code"], says in error["msg"]) == (code, True), (keys, error)
    assert left(machine, container) == NOTHING


def test_without_the_module(machine: Machine) -> None:
    """Where the kernel has no VLANs, ADD names the module, and nothing is left."""
    machine.outside()
    container = machine.container()
    reply = machine.invoke("vlan", "ADD", network(machine), container)
    if reply.exit_code == 0:
        pytest.skip("this kernel has VLANs: tests/vm runs the other tests of this file")

    error = error_of(reply.stdout)
    assert (error["code"], "module '8021q'" in error["msg"]) == (50, True)
    assert left(machine, container) == NOTHING


def test_no_vlan(machine: Machine) -> None:
    """VLAN 0, the reference's default, is warned of before the kernel is asked."""
    machine.outside()
    for number, is_told in ((None, True), (0, True), (1, False)):
        machine.log.clear()
        machine.invoke("vlan", "ADD", network(machine, vlanId=number), machine.container())
        assert any("which is no VLAN" in line for line in machine.log) == is_told


def test_delete_needs_no_master(machine: Machine) -> None:
    """Unlike the reference, DEL needs neither a master nor an MTU that fits it."""
    container = machine.container()
    unknown: list[Json] = [
        {"master": "absent"},
        {"master": None, "vlanId": 5000, "mtu": "x"},
        {"mtu": 9000, "prevResult": {"ips": [{"address": "x"}]}},
    ]
    for keys in unknown:
        # As when an ADD was killed after IPAM, and its record has been lost.
        machine.ok("host-local", "ADD", network(machine), container)
        for netns in (container, "", "/no/such/netns"):
            machine.ok("vlan", "DEL", network(machine, **keys), netns)
        assert left(machine, container) == NOTHING, keys
    machine.ok("vlan", "DEL", network(machine, ipam=None), container)


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """Unlike the reference's, STATUS says when the master is missing, down or without a carrier."""
    config = network(machine)
    assert machine.refused("vlan", "STATUS", config)["code"] == 50
    outside = machine.outside()
    machine.ok("vlan", "STATUS", config)
    machine.ok("vlan", "STATUS", network(machine, master="absent", linkInContainer=True))
    for keys in ({"mtu": 9000}, {"vlanId": 4095}, {"ipam": None}):
        assert machine.refused("vlan", "STATUS", network(machine, **keys))["code"] == 7

    machine.do(outside, "ip link set uplink down")
    error = machine.refused("vlan", "STATUS", config)
    assert (error["code"], "without a carrier" in error["msg"]) == (51, True)
    machine.do(machine.host, "ip link set uplink down")
    error = machine.refused("vlan", "STATUS", config)
    assert (error["code"], "is down" in error["msg"]) == (50, True)


@full_kernel
def test_ids(machine: Machine) -> None:
    """The last and no VLAN are made."""
    machine.outside()
    for number in (4094, 0):
        container, config = machine.container(), network(machine, vlanId=number or None, mtu=1400)
        result = machine.ok("vlan", "ADD", config, container)

        link = machine.link(container, "eth0")
        assert link is not None
        assert (link["linkinfo"]["info_data"]["id"], link["mtu"]) == (number, 1400)
        machine.ok("vlan", "CHECK", {**config, "prevResult": result}, container)
        machine.ok("vlan", "DEL", config, container)
    assert left(machine) == NOTHING


@full_kernel
def test_check_tells(machine: Machine) -> None:
    """CHECK compares VLAN, MTU and, unlike the reference, the master, which may have any MTU."""
    machine.outside()
    machine.do(machine.host, "ip link add other type veth peer name rehto")
    for version in ("0.4.0", "1.1.0"):
        container, config = machine.container(), network(machine, mtu=1400, cniVersion=version)
        result = machine.ok("vlan", "ADD", config, container)
        checked = {**config, "prevResult": result}
        machine.ok("vlan", "CHECK", checked, container)
        for keys, says in (({"vlanId": 6}, "VLAN of 'eth0' is 5"), ({"master": "other"}, "other")):
            error = machine.refused("vlan", "CHECK", {**checked, **keys}, container)
            assert says in error["msg"]
        machine.do(container, "ip link set eth0 mtu 1300")
        assert "MTU" in machine.refused("vlan", "CHECK", checked, container)["msg"]
        machine.do(container, "ip link set eth0 mtu 1400")
        machine.do(machine.host, "ip link set uplink mtu 1400")
        machine.ok("vlan", "CHECK", checked, container)
        machine.do(machine.host, "ip link set uplink mtu 1500")
        machine.ok("vlan", "DEL", config, container)


@full_kernel
def test_taken(machine: Machine) -> None:
    """A VLAN that has an interface is refused with the name of its user, unless that is gone."""
    machine.outside()
    config = network(machine)
    first, second = machine.container(), machine.container()
    machine.ok("vlan", "ADD", config, first)

    error = machine.refused("vlan", "ADD", config, second, containerid="c2")
    assert f"'vlan {machine.name} c1 eth0'" in error["msg"]
    assert [link["ifname"] for link in machine.ip(second, "link")] == ["lo"]
    machine.forget(first)  # the kernel takes its interface away some time later
    machine.ok("vlan", "ADD", config, second, containerid="c2")
    machine.ok("vlan", "DEL", config, second, containerid="c2")
    machine.ok("vlan", "DEL", config, "")

    machine.do(machine.host, "ip link add link uplink name tagged type vlan id 5")
    assert "'tagged'" in machine.refused("vlan", "ADD", config, second)["msg"]
    assert left(machine, second) == NOTHING
