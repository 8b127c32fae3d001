"""bridge: gateways, default routes, addresses of the bridge, forwarding."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cni_common.kernel.link import decode_link
from cni_common.kernel.netns import NETLINK_ROUTE, NetNS
from cni_common.kernel.rtnetlink import RTM_NEWLINK, RTMGRP_LINK
from tests.machine import Json, Machine
from tests.waits import wait_until

V4, V6 = {"subnet": "10.9.0.0/24"}, {"subnet": "fd00:9::/64"}
OTHER_V4, OTHER_V6 = {"subnet": "10.19.0.0/24"}, {"subnet": "fd00:19::/64"}


def ipam(machine: Machine, *subnets: Json, **keys: object) -> Json:
    """Return an `ipam` section with one range set per subnet."""
    ranges = [[subnet] for subnet in subnets]
    return {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges, **keys}


def defaults(machine: Machine, netns: str) -> list[str]:
    """Return the gateways of the default routes, IPv4 first."""
    routes = [*machine.ip(netns, "-4", "route"), *machine.ip(netns, "-6", "route")]
    return [route["gateway"] for route in routes if route["dst"] == "default"]


def forwarding(machine: Machine) -> tuple[str, str]:
    """Return whether the host forwards IPv4 and IPv6."""
    names = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    texts = [machine.command(machine.host, "cat", f"/proc/sys/net/{name}") for name in names]
    return texts[0].strip(), texts[1].strip()


@pytest.mark.parametrize(
    ("subnets", "expected", "forwards"),
    [
        ([V4], ["10.9.0.1/24"], ("1", "0")),
        ([V6], ["fd00:9::1/64"], ("0", "1")),
        ([V4, V6], ["10.9.0.1/24", "fd00:9::1/64"], ("1", "1")),
        ([{**V4, "gateway": "10.9.0.254"}], ["10.9.0.254/24"], ("1", "0")),
        ([V6, OTHER_V6], ["fd00:19::1/64", "fd00:9::1/64"], ("0", "1")),
    ],
    ids=["ipv4", "ipv6", "dual-stack", "by-ipam", "two-ipv6-ranges"],
)
def test_is_gateway(
    machine: Machine, subnets: list[Json], expected: list[str], forwards: tuple[str, str]
) -> None:
    """The bridge has the gateway of each range, and the host forwards those families alone."""
    machine.ok("bridge", "ADD", machine.network(ipam=ipam(machine, *subnets)), machine.container())

    assert sorted(machine.addresses(machine.host, "br0")) == expected
    assert forwarding(machine) == forwards


def test_several_ipv4_ranges(machine: Machine) -> None:
    """A network of two IPv4 ranges has both gateways on its bridge, and both can be reached."""
    container = machine.container()
    config = machine.network(isDefaultGateway=True, ipam=ipam(machine, V4, OTHER_V4))

    machine.ok("bridge", "ADD", config, container)

    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24", "10.19.0.1/24"]
    assert machine.addresses(container, "eth0") == ["10.9.0.2/24", "10.19.0.2/24"]
    assert defaults(machine, container) == ["10.9.0.1"]
    assert machine.ping(container, "10.9.0.1")
    assert machine.ping(container, "10.19.0.1")


def test_no_gateway(machine: Machine) -> None:
    """Without isGateway the bridge has no address, and the host does not begin to forward."""
    container = machine.container()

    result = machine.ok("bridge", "ADD", machine.network(isGateway=False), container)

    assert machine.addresses(machine.host, "br0") == []
    assert forwarding(machine) == ("0", "0")
    assert result["ips"][0]["gateway"] == "10.9.0.1"


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([], ["10.9.0.1", "fd00:9::1"]),
        ([{"dst": "0.0.0.0/0", "gw": "10.9.0.7"}], ["10.9.0.7", "fd00:9::1"]),
        ([{"dst": "::/0", "gw": "fd00:9::7"}], ["10.9.0.1", "fd00:9::7"]),
    ],
    ids=["none", "ipv4-by-ipam", "ipv6-by-ipam"],
)
def test_is_default_gateway(machine: Machine, routes: list[Json], expected: list[str]) -> None:
    """Each family gets a default route unless IPAM has one."""
    container = machine.container()
    config = machine.network(
        isGateway=None, isDefaultGateway=True, ipam=ipam(machine, V4, V6, routes=routes)
    )

    result = machine.ok("bridge", "ADD", config, container)

    assert defaults(machine, container) == expected
    assert len(result["routes"]) == 2
    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24", "fd00:9::1/64"]


def test_default_route_without_gw_is_no_duplicate(machine: Machine) -> None:
    """A default route of IPAM without gw is the family's default route."""
    container = machine.container()
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    config = machine.network(isDefaultGateway=True, ipam=ipam(machine, V4, V6, routes=routes))

    result = machine.ok("bridge", "ADD", config, container)

    assert result["routes"] == routes
    assert defaults(machine, container) == ["10.9.0.1", "fd00:9::1"]


@pytest.mark.parametrize("other", ["10.8.0.1/24", "10.9.0.1/16", "10.9.0.77/24"])
def test_address_in_the_way(machine: Machine, other: str) -> None:
    """Another IPv4 address on the bridge is refused by name; forceAddress replaces it."""
    machine.do(machine.host, "ip link add br0 type bridge", f"ip addr add {other} dev br0")
    container = machine.container()

    error = machine.refused("bridge", "ADD", machine.network(), container)

    assert error["code"] == 7
    assert f"'br0' already has an IP address different from 10.9.0.1/24: {other}" in error["msg"]
    assert machine.addresses(machine.host, "br0") == [other]
    assert machine.leases() == []

    machine.ok("bridge", "ADD", machine.network(forceAddress=True), container)

    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24"]


@pytest.mark.parametrize(
    ("other", "force", "expected"),
    [
        ("fd00:77::1/64", False, {"fd00:77::1/64", "fd00:9::1/64"}),
        ("fd00:9::77/64", True, {"fd00:9::1/64"}),
    ],
    ids=["elsewhere", "overlapping"],
)
def test_ipv6_address_on_the_bridge(
    machine: Machine, other: str, force: bool, expected: set[str]
) -> None:
    """Only an IPv6 address of an overlapping subnet is in the way."""
    machine.do(machine.host, "ip link add br0 type bridge", f"ip addr add {other} dev br0 nodad")
    config = machine.network(forceAddress=force, ipam=ipam(machine, V6))

    machine.ok("bridge", "ADD", config, machine.container())

    assert set(machine.addresses(machine.host, "br0")) == expected


def test_overlapping_ipv6_address_is_refused(machine: Machine) -> None:
    """Without forceAddress an overlapping IPv6 address is an error that names it."""
    machine.do(
        machine.host, "ip link add br0 type bridge", "ip addr add fd00:9::77/48 dev br0 nodad"
    )

    error = machine.refused(
        "bridge", "ADD", machine.network(ipam=ipam(machine, V6)), machine.container()
    )

    assert error["code"] == 7
    assert "fd00:9::77/48" in error["msg"]


def test_force_address_spares_the_gateway_of_another_network(machine: Machine) -> None:
    """A gateway that another network's living container uses is not replaced, but named."""
    first = machine.network()
    container = machine.container()
    machine.ok("bridge", "ADD", first, container)
    second = machine.network(
        name=f"{machine.name}-2", forceAddress=True, ipam=ipam(machine, OTHER_V4)
    )

    error = machine.refused("bridge", "ADD", second, machine.container(), containerid="c2")

    assert error["code"] == 7
    assert f"10.9.0.1/24, the gateway of network '{machine.name}'" in error["msg"]
    assert error["msg"].endswith("give this network another bridge")
    assert machine.addresses(machine.host, "br0") == ["10.9.0.1/24"]
    assert machine.ping(container, "10.9.0.1")


def lan(machine: Machine, address: str) -> str:
    """Give the host a bridge "br0" with that address in its LAN, and return the LAN's router."""
    router = machine.container()
    machine.do(
        machine.host,
        "ip link add br0 type bridge",
        f"ip link add up0 type veth peer name r0 netns {router}",
        "ip link set up0 address 02:00:00:00:00:05",
        "ip link set up0 master br0",
        "ip link set up0 up",
        "ip link set br0 up",
        f"ip addr add {address} dev br0",
    )
    machine.do(router, "ip link set r0 up", "ip addr add 10.9.0.1/24 dev r0")
    return router


def test_the_hosts_own_lan_is_not_to_be_cut_off(machine: Machine) -> None:
    """On the bridge of the host's LAN isGateway is the mistake, not the host's address."""
    lan(machine, "10.9.0.36/24")
    config = machine.network(isDefaultGateway=True)

    error = machine.refused("bridge", "ADD", config, machine.container())

    assert "10.9.0.36/24; it has ports that are no container's: 'up0'" in error["msg"]
    assert 'leave out "isGateway" and "isDefaultGateway"' in error["msg"]
    assert "addr del" not in error["msg"]
    assert "forceAddress" not in error["msg"]
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(isGateway=False), container)
    assert machine.addresses(machine.host, "br0") == ["10.9.0.36/24"]
    assert machine.ping(container, "10.9.0.1")


def test_another_networks_bridge_is_not_to_be_taken(machine: Machine) -> None:
    """The gateway of a living network is not to be deleted: take another bridge."""
    machine.ok("bridge", "ADD", machine.network(), machine.container())
    second = machine.network(name=f"{machine.name}-2", ipam=ipam(machine, OTHER_V4))

    error = machine.refused("bridge", "ADD", second, machine.container(), containerid="c2")

    assert f"the gateway of network '{machine.name}'" in error["msg"]
    assert error["msg"].endswith("give this network another bridge")
    assert "addr del" not in error["msg"]


@pytest.mark.parametrize("uplink", ["", "fe:01:02:03:04:05", "02:00:00:00:00:01"])
def test_a_bridge_of_others_keeps_its_mac(machine: Machine, uplink: str) -> None:
    """The host's MAC in its LAN is no container's: not for a moment, and not after DEL."""
    machine.do(machine.host, "ip link add br0 type bridge")
    if uplink:
        machine.do(
            machine.host,
            f"ip link add up0 address {uplink} type veth peer name up1",
            "ip link set up0 master br0",
            "ip link set up0 up",
        )
    before = (machine.link(machine.host, "br0") or {})["address"]
    containers = [machine.container() for _ in range(3)]

    with address_changes(machine) as changes:
        for number, container in enumerate(containers):
            result = machine.ok(
                "bridge", "ADD", machine.network(), container, containerid=f"c{number}"
            )
            assert result["interfaces"][0]["mac"] == before
        for number, container in enumerate(containers):
            machine.ok("bridge", "DEL", machine.network(), container, containerid=f"c{number}")

    assert changes == {before}
    assert (machine.link(machine.host, "br0") or {})["address"] == before


@contextmanager
def address_changes(machine: Machine) -> Iterator[set[str]]:
    """Give a set that has, in the end, all MACs that "br0" has had meanwhile."""
    found: set[str] = set()
    netns = NetNS(machine.host)
    events = netns.channel(NETLINK_ROUTE, RTMGRP_LINK)
    try:
        yield found
        while seen := events.read_events():
            links = [decode_link(part) for kind, part in seen if kind == RTM_NEWLINK]
            found.update(link.mac for link in links if link.name == "br0")
    finally:
        events.close()
        netns.close()


def test_force_address_replaces_the_gateway_of_a_network_without_containers(
    machine: Machine,
) -> None:
    """An address that only a gone container needed makes room, with or without its DEL."""
    for containerid in ("deleted", "dead"):
        container = machine.container()
        machine.ok("bridge", "ADD", machine.network(), container, containerid=containerid)
        if containerid == "deleted":
            machine.ok("bridge", "DEL", machine.network(), container, containerid=containerid)
        machine.end(container)
    second = machine.network(
        name=f"{machine.name}-2", forceAddress=True, ipam=ipam(machine, OTHER_V4)
    )

    machine.ok("bridge", "ADD", second, machine.container(), containerid="c2")

    assert machine.addresses(machine.host, "br0") == ["10.19.0.1/24"]


def test_changed_subnet_of_a_network_with_force_address(machine: Machine) -> None:
    """A network's own old gateway is replaced after its subnet was changed."""
    machine.ok("bridge", "ADD", machine.network(), machine.container())
    config = machine.network(forceAddress=True, ipam=ipam(machine, OTHER_V4))

    machine.ok("bridge", "ADD", config, machine.container(), containerid="c2")

    assert machine.addresses(machine.host, "br0") == ["10.19.0.1/24"]


# --- IPv6 forwarding and router advertisements -----------------------------------------------


def advertise(router: str) -> None:
    """Send one router advertisement with a lifetime of 1800 s into the link "uplink"."""
    netns = NetNS(router)

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
            sock.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex("uplink")))

    try:
        netns.run(send)
    finally:
        netns.close()


def await_default_route(machine: Machine, router: str) -> None:
    """Let the host learn its default route by advertisements."""

    def learnt() -> object:
        advertise(router)
        return defaults(machine, machine.host)

    wait_until(learnt, "the host has learnt no default route")


def uplink_by_advertisement(machine: Machine) -> str:
    """Return the router of a host whose IPv6 default route is an advertised one."""
    router = machine.container()
    machine.do(machine.host, f"ip link add uplink type veth peer name uplink netns {router}")
    machine.do(machine.host, "ip link set uplink up")
    machine.do(router, "ip link set uplink up", "ip addr add fe80::1/64 dev uplink nodad")
    await_default_route(machine, router)
    return router


def test_host_keeps_its_advertised_default_route(machine: Machine) -> None:
    """When a gateway makes the host forward IPv6, its uplink goes on to heed its router."""
    router = uplink_by_advertisement(machine)
    before = defaults(machine, machine.host)

    machine.ok("bridge", "ADD", machine.network(ipam=ipam(machine, V6)), machine.container())

    assert forwarding(machine)[1] == "1"
    assert defaults(machine, machine.host) == before
    assert any("accept_ra to 2" in line and "'uplink'" in line for line in machine.log)
    machine.do(machine.host, "ip -6 route del default")
    await_default_route(machine, router)


def test_other_interfaces_are_left_alone(machine: Machine) -> None:
    """Without an advertised default route no accept_ra of the host's is changed."""
    machine.outside()

    machine.ok("bridge", "ADD", machine.network(ipam=ipam(machine, V6)), machine.container())

    value = machine.command(machine.host, "cat", "/proc/sys/net/ipv6/conf/uplink/accept_ra")
    assert value.strip() == "1"
