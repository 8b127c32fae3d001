"""bridge ADD: what it asks of the kernel, and what the container then has."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_common.kernel.netns import NetNS
from cni_common.node import veth
from tests.faults.inprocess import Fault, faulty
from tests.machine import Json, Machine
from tests.waits import wait_until

V4, V6 = {"subnet": "10.9.0.0/24"}, {"subnet": "fd00:9::/64"}


def ipam(machine: Machine, *subnets: Json, **keys: object) -> Json:
    """Return an `ipam` section with one range set per subnet."""
    ranges = [[subnet] for subnet in subnets]
    return {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges, **keys}


def sysctl(machine: Machine, netns: str, name: str) -> str:
    """Return a sysctl as a process inside the namespace sees it."""
    return machine.command(netns, "cat", f"/proc/sys/net/{name}").strip()


def changes(machine: Machine, config: Json, containerid: str) -> list[str]:
    """Return the netlink requests of an ADD, those that only look left out."""
    fault = Fault()
    with faulty(machine, fault) as host:
        machine.ok("bridge", "ADD", config, machine.container(), containerid=containerid, host=host)
    others = ("look up", "list", "run", "sysctl", "open", "disk", "find", "create record", "write")
    steps = (what.removeprefix("nftables: ") for what in fault.done)
    return [what for what in steps if not what.startswith(others)]


# --- kernel work ---------------------------------------------------------------------------


def test_veth_is_born_complete(machine: Machine) -> None:
    """One message makes both ends, one send sets up the container's: no move, no rename.

    No packet leaves before it is masqueraded.
    """
    config = machine.network(ipMasq=True, ipam=ipam(machine, V4, routes=[{"dst": "0.0.0.0/0"}]))
    machine.ok("bridge", "ADD", config, machine.container())

    done = changes(machine, config, "c2")

    assert [what.partition(" 'veth")[0] for what in done] == [
        "create veth pair",
        "add element to 'masquerade4' in table 'pycni'",
        "add address 10.9.0.3/24",
        "set interface 2 up",
        "add route 0.0.0.0/0 via 10.9.0.1",
    ]


@pytest.mark.without_engine(reason="watches this process")
def test_add_and_del_do_not_sleep(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADD awaits the port and DAD by their netlink events."""

    def refuse(_seconds: float) -> None:
        raise AssertionError("the plugin sleeps")

    monkeypatch.setattr(time, "sleep", refuse)
    config = machine.network(enabledad=True, ipMasq=True, ipam=ipam(machine, V4, V6))
    container = machine.container()

    machine.ok("bridge", "ADD", config, container)
    machine.ok("bridge", "DEL", config, container)


def names(values: Iterator[bytes]) -> Callable[[int], bytes]:
    """Return an os.urandom whose 4-byte answers, the names of host ends, are given."""
    real = os.urandom
    return lambda size: next(values) if size == 4 else real(size)


def test_taken_name_of_the_host_end_is_retried(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random name that the host has already is given up for the next one."""
    machine.do(machine.host, "ip link add veth00000000 type veth peer name other")
    before = machine.link(machine.host, "veth00000000")
    taken, free = bytes(4), bytes([0, 0, 0, 1])
    monkeypatch.setattr(os, "urandom", names(iter([taken, taken, free])))

    result = machine.ok("bridge", "ADD", machine.network(), machine.container())

    assert result["interfaces"][1]["name"] == "veth00000001"
    assert machine.link(machine.host, "veth00000000") == before


def test_no_name_is_free(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten taken names ADD fails, and the interface of that name is left as it is."""
    machine.do(machine.host, "ip link add veth00000000 type veth peer name other")
    before = machine.link(machine.host, "veth00000000")
    container = machine.container()
    monkeypatch.setattr(os, "urandom", names(itertools.repeat(bytes(4))))

    error = machine.refused("bridge", "ADD", machine.network(), container)

    assert "veth00000000" in error["msg"]
    assert machine.link(machine.host, "veth00000000") == before
    assert sorted(machine.ports()) == ["other", "veth00000000"]
    assert machine.link(container, "eth0") is None


@pytest.mark.both_edges
def test_existing_interface_is_refused(machine: Machine) -> None:
    """An interface of the container that has the name is named in the error and left alone."""
    container = machine.container()
    machine.do(container, "ip link add eth0 type veth peer name other")
    before = machine.snapshot(container)

    error = machine.refused("bridge", "ADD", machine.network(), container)

    assert error["code"] == 4
    assert "'eth0' already exists" in error["msg"]
    assert machine.snapshot(container) == before


@pytest.mark.both_edges
def test_netns_that_is_none_is_refused_first(machine: Machine, tmp_path: Path) -> None:
    """A namespace that cannot be opened has code 8, and there is not even a bridge."""
    (tmp_path / "plain").touch()
    before = machine.snapshot()

    for path in (tmp_path / "plain", tmp_path / "absent"):
        error = machine.refused("bridge", "ADD", machine.network(), str(path))

        assert error["code"] == 8
        assert str(path) in error["msg"]
    assert machine.snapshot() == before


# --- MTU -----------------------------------------------------------------------------------


def test_mtu(machine: Machine) -> None:
    """A new bridge and both ends of the pair have the configured MTU."""
    container = machine.container()

    machine.ok("bridge", "ADD", machine.network(mtu=9000), container)

    links = [
        machine.link(machine.host, "br0"),
        machine.link(machine.host, machine.ports()[0]),
        machine.link(container, "eth0"),
    ]
    assert [link and link["mtu"] for link in links] == [9000] * 3


def mtu_of_bridge(machine: Machine) -> int:
    """Return the MTU of br0."""
    link = machine.link(machine.host, "br0")
    assert link is not None
    return int(link["mtu"])


@pytest.mark.parametrize(("first", "second"), [(9000, 1400), (1400, 9000)])
def test_mtu_of_a_bridge_is_that_of_its_smallest_port(
    machine: Machine, first: int, second: int
) -> None:
    """The bridge of two networks has the smaller MTU, and returns to the larger one."""
    for containerid, mtu in (("c1", first), ("c2", second)):
        config, container = machine.network(mtu=mtu), machine.container()
        result = machine.ok("bridge", "ADD", config, container, containerid=containerid)
    assert mtu_of_bridge(machine) == result["interfaces"][0]["mtu"] == 1400

    smaller = "c1" if first < second else "c2"
    machine.ok("bridge", "DEL", machine.network(), containerid=smaller)

    assert mtu_of_bridge(machine) == 9000


def test_mtu_that_others_have_set(machine: Machine) -> None:
    """A larger MTU of an existing bridge is lowered: packets of that size would be lost."""
    machine.do(machine.host, "ip link add br0 type bridge", "ip link set br0 mtu 9000")

    result = machine.ok("bridge", "ADD", machine.network(mtu=1400), machine.container())

    assert mtu_of_bridge(machine) == result["interfaces"][0]["mtu"] == 1400


# --- IPv6 and sysctls ----------------------------------------------------------------------


@pytest.mark.parametrize("enabledad", [False, True])
def test_sysctls(machine: Machine, enabledad: bool) -> None:
    """No end heeds router advertisements (CVE-2020-10749), and DAD is as configured."""
    container = machine.container()

    machine.ok("bridge", "ADD", machine.network(enabledad=enabledad), container)

    for name in ("br0", machine.ports()[0]):
        assert sysctl(machine, machine.host, f"ipv6/conf/{name}/accept_ra") == "0"
        assert sysctl(machine, machine.host, f"ipv6/conf/{name}/accept_dad") == "0"
    assert sysctl(machine, container, "ipv6/conf/eth0/accept_ra") == "0"
    assert sysctl(machine, container, "ipv6/conf/eth0/accept_dad") == str(int(enabledad))
    assert sysctl(machine, container, "ipv4/conf/eth0/arp_notify") == "1"


def test_accept_ra_is_off_before_there_is_a_carrier(machine: Machine) -> None:
    """The sysctls are written before the message that sets the container's end up."""
    fault = Fault()

    with faulty(machine, fault) as host:
        machine.ok("bridge", "ADD", machine.network(), machine.container(), host=host)

    order = [what for what in fault.done if what.endswith(("accept_ra", "accept_dad", "up"))]
    port = machine.ports()[0]
    assert order == [
        "sysctl net/ipv6/conf/br0/accept_ra",
        "sysctl net/ipv6/conf/br0/accept_dad",
        "set interface 2 up",
        f"sysctl net/ipv6/conf/{port}/accept_ra",
        f"sysctl net/ipv6/conf/{port}/accept_dad",
        "sysctl net/ipv6/conf/eth0/accept_ra",
        "sysctl net/ipv6/conf/eth0/accept_dad",
        "set interface 2 up",
    ]


def test_no_address_is_ever_tentative(machine: Machine) -> None:
    """Host and container can use their IPv6 addresses at once, and announce them.

    Those that the kernel makes by itself are ready once its worker had its turn, without a probe.
    """
    container = machine.container()

    machine.ok("bridge", "ADD", machine.network(ipam=ipam(machine, V6)), container)

    def states() -> Json:
        found: Json = {}
        for netns in (machine.host, container):
            for link in machine.ip(netns, "-6", "addr"):
                found |= {info["local"]: info.get("tentative") for info in link["addr_info"]}
        return found

    at_once = states()
    assert (at_once["fd00:9::1"], at_once["fd00:9::2"]) == (None, None)
    wait_until(lambda: set(states().values()) == {None}, lambda: f"tentative: {states()}", 0.9)
    assert machine.ping(container, "fd00:9::1")
    assert sysctl(machine, container, "ipv6/conf/eth0/ndisc_notify") == "1"
    assert sysctl(machine, container, "ipv6/conf/eth0/keep_addr_on_down") == "1"


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_what_arrives_right_after_add_is_delivered(machine: Machine, family: str) -> None:
    """When ADD returns, the kernel has put the address to use: nothing sent to it is lost."""
    container = machine.container()
    config = machine.network(ipam=ipam(machine, V4 if family == "ip" else V6))
    fault = Fault()

    with faulty(machine, fault) as host:
        machine.ok("bridge", "ADD", config, container, host=host)

    # On an idle machine it is usable anyway: the events that ADD reads show that it waits.
    index = {link["ifname"]: link["ifindex"] for link in machine.ip(machine.host, "link")}
    assert f"look up interface {index['br0']}" in fault.done
    assert ("look up route to fd00:9::2" in fault.done) == (family == "ip6")
    handle = NetNS(container)
    try:
        routes = handle.run(lambda: Path("/proc/thread-self/net/ipv6_route").read_text())
        groups = handle.run(lambda: Path("/proc/thread-self/net/igmp6").read_text())
    finally:
        handle.close()
    if family == "ip6":
        assert "fd000009000000000000000000000002 80" in routes  # the local route
        assert "ff0200000000000000000001ff000002" in groups  # what neighbours ask by
    bridge = machine.link(machine.host, "br0")
    assert bridge is not None
    assert bridge["operstate"] == "UP"


def test_bridge_that_is_up_keeps_its_dad(machine: Machine) -> None:
    """A bridge that is in use already is protected from advertisements, and no more is changed."""
    machine.do(machine.host, "ip link add br0 type bridge", "ip link set br0 up")

    machine.ok("bridge", "ADD", machine.network(), machine.container())

    assert sysctl(machine, machine.host, "ipv6/conf/br0/accept_ra") == "0"
    assert sysctl(machine, machine.host, "ipv6/conf/br0/accept_dad") == "1"


def test_bridge_with_stp(machine: Machine) -> None:
    """A bridge whose port has to wait for the spanning tree does not fail the ADD."""
    machine.do(machine.host, "ip link add br0 type bridge stp_state 1")

    machine.ok("bridge", "ADD", machine.network(), machine.container())

    bridge = machine.link(machine.host, "br0")
    assert bridge is not None
    assert bridge["operstate"] != "UP"


def test_ipv6_is_switched_on_where_it_is_off(machine: Machine) -> None:
    """A container whose runtime disabled IPv6 gets it back when IPAM gives an address."""
    container = machine.container()
    machine.command(
        container, "sh", "-c", "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6 >/dev/null"
    )

    machine.ok("bridge", "ADD", machine.network(ipam=ipam(machine, V4, V6)), container)

    assert machine.addresses(container, "eth0") == ["10.9.0.2/24", "fd00:9::2/64"]


def test_ipv6_stays_off_without_an_ipv6_address(machine: Machine) -> None:
    """IPv6 that is off does not disturb an IPv4 network, nor is it switched on."""
    container = machine.container()
    machine.command(
        container, "sh", "-c", "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6 >/dev/null"
    )

    machine.ok("bridge", "ADD", machine.network(), container)

    assert sysctl(machine, container, "ipv6/conf/eth0/disable_ipv6") == "1"


def test_enabledad_waits_for_the_result(machine: Machine) -> None:
    """With enabledad ADD returns when the address is no longer tentative."""
    container = machine.container()
    config = machine.network(enabledad=True, ipam=ipam(machine, V6))

    machine.ok("bridge", "ADD", config, container)

    info = machine.ip(container, "-6", "addr", "show", "dev", "eth0")[0]["addr_info"]
    assert not any(address.get("tentative") or address.get("nodad") for address in info)
    assert sysctl(machine, container, "ipv6/conf/eth0/enhanced_dad") == "1"


def test_enabledad_finds_a_duplicate(machine: Machine) -> None:
    """An address that a neighbour uses makes ADD fail, and is given back."""
    machine.ok("bridge", "ADD", machine.network(ipam=None), neighbour := machine.container())
    machine.do(neighbour, "ip -6 addr add fd00:9::2/64 dev eth0 nodad")
    container = machine.container()
    config = machine.network(enabledad=True, ipam=ipam(machine, V6))

    error = machine.refused("bridge", "ADD", config, container, containerid="c2")

    assert "another host on the link uses fd00:9::2" in error["msg"]
    assert machine.leases() == []
    assert machine.link(container, "eth0") is None


def test_dad_that_does_not_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for DAD is bounded, and the error tells for how many seconds."""
    monkeypatch.setattr(veth, "_DAD_SECONDS", 0.1)
    container = machine.container()
    config = machine.network(enabledad=True, ipam=ipam(machine, V6))

    error = machine.refused("bridge", "ADD", config, container)

    assert "took over 0.1 s" in error["msg"]
    assert machine.leases() == []
