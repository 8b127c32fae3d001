"""ipvlan: what is refused, DEL, STATUS and chains; modes on a kernel that has it.

tests/kernel/test_devices.py has a whole life. "Unlike the reference" begins the account of each
defect of the Go plugin that this one has not.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.test_devices import NOTHING, left
from tests.kernel.test_rollback import calm
from tests.machine import Json, Machine, error_of

full_kernel = pytest.mark.full_kernel

IPV4: Json = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10"}
STATIC: Json = {"type": "static", "addresses": [{"address": "192.0.2.5/24"}]}
ADDRESS: Json = {"address": "192.0.2.7/24", "gateway": "192.0.2.2"}
UPLINK: Json = {"name": "uplink"}


def network(machine: Machine, **keys: Any) -> Json:
    """Return an ipvlan configuration on `uplink` with host-local."""
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": [[IPV4]]}
    usual = {"type": "ipvlan", "bridge": None, "isGateway": None, "master": "uplink", "ipam": ipam}
    return machine.network(**{**usual, **keys})


def behind(machine: Machine, *interfaces: Json, ips: list[Json] | None = None, **keys: Any) -> Json:
    """Return the configuration behind a plugin with this result, without `ipam` and `master`."""
    previous = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips or []}
    return network(machine, **{"ipam": None, "master": None, "prevResult": previous, **keys})


def test_refused(machine: Machine) -> None:
    """A configuration that cannot work is refused before anything is made."""
    machine.outside()
    container = machine.container()
    inside = {"name": "a", "sandbox": container}
    cases: list[tuple[Json, int, str]] = [
        (network(machine, master="absent"), 50, "no interface 'absent'"),
        (network(machine, master=None), 50, "no default route"),
        (network(machine, master="a/b"), 7, '"master"'),
        (network(machine, master=5), 7, "master"),
        (network(machine, mode="bridge"), 7, "mode"),
        (network(machine, mtu=67), 7, "mtu"),
        (network(machine, mtu="1400"), 7, "mtu"),
        (network(machine, linkInContainer="yes"), 7, "linkInContainer"),
        (network(machine, linkInContainer=True), 50, "no interface 'uplink'"),
        (network(machine, ipam={"type": "absent"}), 50, "absent"),
        (network(machine, ipam=None), 7, "no address"),
        (behind(machine, UPLINK, ips=[]), 7, "no address"),
        (behind(machine, UPLINK, inside, ips=[ADDRESS]), 7, "prevResult has 2 interfaces"),
        (behind(machine, ips=[ADDRESS]), 7, "prevResult has 0 interfaces"),
        (behind(machine, UPLINK, ips=[{**ADDRESS, "interface": 1}]), 7, "interface 1"),
        (behind(machine, UPLINK, ips=[ADDRESS, ADDRESS]), 6, "more than once"),
        (behind(machine, {"name": "absent"}, ips=[ADDRESS]), 50, "no interface 'absent'"),
        (
            behind(machine, UPLINK, ips=[{"address": "fd00::5/64"}], mtu=1279),
            7,
            "1280",
        ),
        (
            behind(machine, inside, ips=[{**ADDRESS, "interface": 0}], master="uplink"),
            7,
            "no address",
        ),
    ]
    for config, code, says in cases:
        error = machine.refused("ipvlan", "ADD", config, container)
        assert (error["code"], says in error["msg"]) == (code, True), (config, error)
    assert left(machine, container) == NOTHING


def test_without_the_module(machine: Machine) -> None:
    """Where the kernel has no ipvlan, ADD names the module, and nothing is left, no address either.

    So it is unlike the reference, whose failed ADD keeps the address.
    """
    machine.outside()
    container = machine.container()
    for config in (network(machine), behind(machine, UPLINK, ips=[ADDRESS])):
        reply = machine.invoke("ipvlan", "ADD", config, container)
        if reply.exit_code == 0:
            pytest.skip("this kernel has ipvlan: tests/vm runs the other tests of this file")
        error = error_of(reply.stdout)
        assert (error["code"], "module 'ipvlan'" in error["msg"]) == (50, True)
        assert left(machine, container) == NOTHING


def test_mtu_above_the_masters(machine: Machine) -> None:
    """An MTU that the master lacks is warned of before the kernel is asked; as the reference's."""
    machine.outside()
    for mtu, is_told in ((1500, False), (9000, True)):
        machine.log.clear()
        machine.invoke("ipvlan", "ADD", network(machine, mtu=mtu), machine.container())
        assert any("longer packets are lost" in line for line in machine.log) == is_told


def test_delete_needs_no_master(machine: Machine) -> None:
    """Unlike the reference, DEL asks neither for a default route nor for one interface."""
    container = machine.container()
    unknown: list[Json] = [
        network(machine, master=None),
        network(machine, master="absent", mode=7, mtu="x", linkInContainer=1),
        behind(machine, UPLINK, {"name": "b"}, ips=[ADDRESS]),
        network(machine, prevResult={"ips": [{"address": "x"}]}),
    ]
    for config in unknown:
        # As when an ADD was killed after IPAM, and its record has been lost.
        leased = {**network(machine), "ipam": network(machine)["ipam"]}
        machine.ok("host-local", "ADD", leased, container)
        for netns in (container, "", "/no/such/netns"):
            machine.ok("ipvlan", "DEL", {**config, "ipam": leased["ipam"]}, netns)
        assert left(machine, container) == NOTHING, config


def test_delete_leaves_others_alone(machine: Machine) -> None:
    """A DEL without a record spares an interface of another kind."""
    container = machine.container()
    machine.do(container, "ip link add eth0 type veth peer name eth9")

    machine.ok("ipvlan", "DEL", network(machine), container)

    assert machine.link(container, "eth0") is not None


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """Unlike the reference's, STATUS says when the master is missing, down or without a carrier."""
    config = network(machine)
    assert machine.refused("ipvlan", "STATUS", config)["code"] == 50
    outside = machine.outside()
    machine.ok("ipvlan", "STATUS", config)
    machine.ok("ipvlan", "STATUS", network(machine, master=None, linkInContainer=True))
    machine.ok("ipvlan", "STATUS", network(machine, master=None, ipam=None))  # behind a plugin
    assert machine.refused("ipvlan", "STATUS", network(machine, master=None))["code"] == 50
    assert machine.refused("ipvlan", "STATUS", network(machine, mode="x"))["code"] == 7

    machine.do(outside, "ip link set uplink down")
    error = machine.refused("ipvlan", "STATUS", config)
    assert (error["code"], "without a carrier" in error["msg"]) == (51, True)
    machine.do(machine.host, "ip link set uplink down")
    error = machine.refused("ipvlan", "STATUS", config)
    assert (error["code"], "is down" in error["msg"]) == (51, True)


@full_kernel
def test_modes(machine: Machine) -> None:
    """Each mode is set, neighbours reach each other, and CHECK knows mode and master."""
    machine.outside()
    machine.do(machine.host, "ip link add other type veth peer name rehto")
    for mode in ("l3", "l3s"):
        config = network(machine, mode=mode)
        first, second = machine.container(), machine.container()
        result = machine.ok("ipvlan", "ADD", config, first)
        neighbour = machine.ok("ipvlan", "ADD", config, second, containerid="c2")

        link = machine.link(first, "eth0")
        assert link is not None
        assert link["linkinfo"]["info_data"]["mode"] == mode
        assert machine.ping(first, neighbour["ips"][0]["address"].partition("/")[0])
        checked = {**config, "prevResult": result}
        machine.ok("ipvlan", "CHECK", checked, first)
        for change, says in (({"master": "other"}, "'other'"), ({"mode": "l3"}, "mode")):
            if change != {"mode": mode}:
                error = machine.refused("ipvlan", "CHECK", {**checked, **change}, first)
                assert says in error["msg"]
        machine.ok("ipvlan", "DEL", config, first)
        machine.ok("ipvlan", "DEL", config, second, containerid="c2")


@full_kernel
def test_mode_of_others(machine: Machine) -> None:
    """Unlike the reference, no ADD changes the mode of all other containers on the master."""
    machine.outside()
    config = network(machine)
    first, second = machine.container(), machine.container()
    machine.ok("ipvlan", "ADD", config, first)

    other = network(machine, mode="l3", name=f"{machine.name}-2")
    error = machine.refused("ipvlan", "ADD", other, second, containerid="c2")

    assert error["code"] == 7
    assert f"'ipvlan {machine.name} c1 eth0'" in error["msg"]
    link = machine.link(first, "eth0")
    assert link is not None
    assert link["linkinfo"]["info_data"]["mode"] == "l2"
    machine.forget(first)  # a container that is gone keeps nobody from a mode
    machine.ok("ipvlan", "ADD", other, second, containerid="c2")
    machine.ok("ipvlan", "DEL", other, second, containerid="c2")


@full_kernel
def test_chain(machine: Machine) -> None:
    """Unlike the reference, a chain's interfaces stay in the result, beside that of ipvlan."""
    machine.outside()
    for version in ("0.3.1", "0.2.0"):
        container = machine.container()
        calm(machine, container)
        old = {"version": "4"} if version == "0.3.1" else {}
        lists: Json = {"interfaces": [UPLINK], "ips": [{**ADDRESS, **old, "interface": 0}]}
        if version == "0.2.0":
            lists = {"ip4": {"ip": ADDRESS["address"], "gateway": ADDRESS["gateway"]}}
        else:
            lists["routes"] = [{"dst": "0.0.0.0/0"}]
        previous = {"cniVersion": version, "dns": {"nameservers": ["192.0.2.53"]}, **lists}
        config = behind(machine, cniVersion=version, prevResult=previous)
        if version == "0.2.0":  # which tells of no interface
            config["master"] = "uplink"

        result = machine.ok("ipvlan", "ADD", config, container)

        assert machine.addresses(container, "eth0") == ["192.0.2.7/24"]
        assert machine.ping(container, "192.0.2.2")
        assert result["dns"] == {"nameservers": ["192.0.2.53"]}
        if version != "0.2.0":
            assert [one["name"] for one in result["interfaces"]] == ["uplink", "eth0"]
            assert [ip["interface"] for ip in result["ips"]] == [1]
            assert len(machine.ip(container, "route", "show", "default")) == 1
        machine.ok("ipvlan", "DEL", {**config, "prevResult": result}, container)
        assert left(machine, container) == NOTHING


@full_kernel
def test_chain_with_ipam(machine: Machine) -> None:
    """The addresses are those of IPAM where one is named, those of others in the container stay."""
    machine.outside()
    container = machine.container()
    inside = {"name": "dummy0", "sandbox": container}
    others = [{**ADDRESS, "interface": 1}]
    config = behind(machine, UPLINK, inside, ips=others, ipam=STATIC, master="uplink")

    result = machine.ok("ipvlan", "ADD", config, container)

    assert [one["name"] for one in result["interfaces"]] == ["uplink", "dummy0", "eth0"]
    told = [(ip["address"], ip["interface"]) for ip in result["ips"]]
    assert told == [("192.0.2.7/24", 1), ("192.0.2.5/24", 2)]
    assert machine.addresses(container, "eth0") == ["192.0.2.5/24"]
    machine.ok("ipvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("ipvlan", "DEL", config, container)


@full_kernel
def test_chain_of_the_reference(machine: Machine) -> None:
    """For the same prevResult both plugins have the same addresses, routes and master."""
    machine.outside()
    config = behind(machine, UPLINK, ips=[{**ADDRESS, "interface": 0}])
    config["prevResult"]["routes"] = [{"dst": "0.0.0.0/0"}]
    seen = []
    for call in (machine.ok, machine.reference):
        container = machine.container()
        result = call("ipvlan", "ADD", config, container)
        routes = machine.ip(container, "route")
        seen.append(
            (
                [ip["address"] for ip in result["ips"]],
                result["routes"],
                machine.addresses(container, "eth0"),
                sorted((one["dst"], one.get("gateway")) for one in routes),
            )
        )
        machine.ok("ipvlan", "DEL", config, container)

    assert seen[0] == seen[1]


@full_kernel
def test_address_of_another_container(machine: Machine) -> None:
    """An address that another container on the master has is refused, and nothing is left."""
    machine.outside()
    first, second = machine.container(), machine.container()
    machine.ok("ipvlan", "ADD", network(machine, ipam=STATIC), first)

    error = machine.refused(
        "ipvlan", "ADD", network(machine, ipam=STATIC), second, containerid="c2"
    )

    assert "192.0.2.5/24: Address already in use" in error["msg"], error
    assert "another container on the same master" in error["msg"], error
    assert [link["ifname"] for link in machine.ip(second, "link")] == ["lo"]
