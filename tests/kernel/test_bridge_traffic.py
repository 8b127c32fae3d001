"""bridge with real packets: reachability, and the addresses that peers see."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cni_common.kernel.netns import NetNS
from tests.machine import Json, Machine
from tests.waits import longer_if_busy

V4, V6 = {"subnet": "10.9.0.0/24"}, {"subnet": "fd00:9::/64"}
OTHER_V4, OTHER_V6 = {"subnet": "10.19.0.0/24"}, {"subnet": "fd00:19::/64"}
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8::2"
HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
SECONDS = 60.0  # all that is waited for comes


def ipam(machine: Machine, *subnets: Json, **keys: object) -> Json:
    """Return an `ipam` section with one range set per subnet."""
    ranges = [[subnet] for subnet in subnets]
    return {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges, **keys}


def inside(netns: str, function: Callable[[], Any]) -> Any:
    """Return what `function` returns inside a namespace."""
    handle = NetNS(netns)
    try:
        return handle.run(function)
    finally:
        handle.close()


@contextmanager
def receiver(netns: str, address: str) -> Iterator[socket.socket]:
    """Give a UDP socket bound to an address inside a namespace."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = inside(netns, lambda: socket.socket(family, socket.SOCK_DGRAM))
    with sock:
        sock.settimeout(SECONDS)
        sock.bind((address, 0))
        yield sock


def source_seen(sender: str, netns: str, address: str) -> str:
    """Return the address from which a datagram of `sender` arrives at `address` in `netns`."""
    with receiver(netns, address) as sock:
        target = sock.getsockname()

        def send() -> None:
            with socket.socket(sock.family, socket.SOCK_DGRAM) as out:
                out.sendto(b"hello", target)

        inside(sender, send)
        return str(sock.recvfrom(64)[1][0])


@pytest.fixture(params=["nftables", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    """A masquerading backend."""
    return str(request.param)


def attach(machine: Machine, config: Json, count: int) -> list[str]:
    """Return the namespaces of `count` new containers."""
    containers = [machine.container() for _ in range(count)]
    for number, container in enumerate(containers):
        machine.ok("bridge", "ADD", config, container, containerid=f"c{number}")
    return containers


# --- inside the network ----------------------------------------------------------------------


def test_containers_reach_each_other_and_the_gateway(machine: Machine) -> None:
    """Right after ADD, IPv4 and IPv6 alike."""
    first, second = attach(machine, machine.network(ipam=ipam(machine, V4, V6)), 2)

    for address in ("10.9.0.3", "fd00:9::3", "10.9.0.1", "fd00:9::1"):
        assert machine.ping(first, address), address
    for address in ("10.9.0.2", "fd00:9::2"):
        assert machine.ping(machine.host, address), address
        assert machine.ping(second, address), address


def test_tcp(machine: Machine) -> None:
    """A stream of 1 MB between two containers arrives whole."""
    first, second = attach(machine, machine.network(mtu=1400), 2)
    listener = inside(second, lambda: socket.create_server(("10.9.0.3", 0)))
    payload = bytes(1 << 20)

    def send() -> None:
        with socket.create_connection(listener.getsockname()[:2], SECONDS) as stream:
            stream.sendall(payload)

    with listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(SECONDS)
        sending = pool.submit(inside, first, send)
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(SECONDS)
            received = sum(len(chunk) for chunk in iter(lambda: stream.recv(1 << 16), b""))
        sending.result()

    assert received == len(payload)


def test_l2_only(machine: Machine) -> None:
    """Two containers without IPAM reach each other as soon as they have addresses."""
    containers = attach(machine, machine.network(ipam=None), 2)
    for number, container in enumerate(containers):
        machine.do(container, f"ip addr add 172.30.0.{number + 1}/24 dev eth0")

    assert machine.ping(containers[0], "172.30.0.2")


def test_port_isolation(machine: Machine) -> None:
    """Two isolated ports cannot talk to each other, both reach the gateway and an open port."""
    first, second = attach(machine, machine.network(portIsolation=True), 2)
    third = machine.container()
    machine.ok("bridge", "ADD", machine.network(), third, containerid="open")

    assert not machine.ping(first, "10.9.0.3")
    for container in (first, second):
        assert machine.ping(container, "10.9.0.1")
        assert machine.ping(container, "10.9.0.4")


@pytest.mark.parametrize("hairpin", [True, False])
def test_hairpin(machine: Machine, hairpin: bool) -> None:
    """With hairpinMode a container sees its own broadcast frame come back, without it does not."""
    (container,) = attach(machine, machine.network(hairpinMode=hairpin), 1)

    def echo() -> bool:
        """Send a broadcast frame of an unused type and wait for it."""
        kind = 0x88B5  # IEEE 802 local experimental
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)) as sock:
            sock.bind(("eth0", kind))
            sock.settimeout(SECONDS if hairpin else longer_if_busy(0.3))
            frame = b"\xff" * 6 + sock.getsockname()[4] + kind.to_bytes(2, "big") + bytes(46)
            sock.send(frame)
            try:
                return bool(sock.recv(128)[:60] == frame)
            except TimeoutError:
                return False

    assert inside(container, echo) == hairpin


def test_hairpin_through_the_host(machine: Machine) -> None:
    """With hairpinMode a container reaches itself by an address that the host translates."""
    (container,) = attach(machine, machine.network(hairpinMode=True, ipMasq=True), 1)
    rules = """
    table ip test {
      chain pre { type nat hook prerouting priority -100; ip daddr 10.9.0.99 dnat to 10.9.0.2; }
      chain post {
        type nat hook postrouting priority 90;
        ip saddr 10.9.0.2 ip daddr 10.9.0.2 masquerade;
      }
    }
    """
    machine.command(machine.host, "nft", "-f", "-", stdin=rules)
    # The host answers for the translated address, which it does not have.
    machine.do(machine.host, "ip neigh add proxy 10.9.0.99 dev br0")
    machine.command(machine.host, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/br0/proxy_arp")
    machine.do(machine.host, "ip route add 10.9.0.99 dev lo")

    assert source_seen_by_itself(container) == "10.9.0.1"


def source_seen_by_itself(container: str) -> str:
    """Return the source of a datagram that a container sends to itself by 10.9.0.99."""
    with receiver(container, "10.9.0.2") as sock:
        sock.sendto(b"hello", ("10.9.0.99", sock.getsockname()[1]))
        return str(sock.recvfrom(64)[1][0])


# --- masquerading ----------------------------------------------------------------------------


def test_masqueraded_to_the_outside(machine: Machine, backend: str) -> None:
    """A host that has no route back answers, since it sees the host's address; both families."""
    outside = machine.outside()
    config = machine.network(
        isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=ipam(machine, V4, V6)
    )
    (container,) = attach(machine, config, 1)

    assert machine.ping(container, OUTSIDE4)
    assert machine.ping(container, OUTSIDE6)
    assert source_seen(container, outside, OUTSIDE4) == HOST4
    assert source_seen(container, outside, OUTSIDE6) == HOST6


def test_not_masqueraded_without_ip_masq(machine: Machine) -> None:
    """Without ipMasq the outside sees the container's own address, and cannot answer."""
    outside = machine.outside()
    (container,) = attach(machine, machine.network(isDefaultGateway=True), 1)

    assert source_seen(container, outside, OUTSIDE4) == "10.9.0.2"
    assert not machine.ping(container, OUTSIDE4)


def test_not_masqueraded_after_del(machine: Machine, backend: str) -> None:
    """When its attachment is deleted an address is no longer translated, others' still are."""
    outside = machine.outside()
    config = machine.network(isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend)
    first, second = attach(machine, config, 2)

    machine.ok("bridge", "DEL", config, first, containerid="c0")
    plain = machine.network(isDefaultGateway=True)
    machine.ok("bridge", "ADD", plain, first, containerid="c0", args="IP=10.9.0.2")

    assert source_seen(first, outside, OUTSIDE4) == "10.9.0.2"
    assert source_seen(second, outside, OUTSIDE4) == HOST4


def test_not_masqueraded_inside_any_subnet_of_the_network(machine: Machine, backend: str) -> None:
    """Between the subnets of one network, through the host, sources stay as they are."""
    subnets = (V4, OTHER_V4, V6, OTHER_V6)
    config = machine.network(
        isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=ipam(machine, *subnets)
    )
    first, second = attach(machine, config, 2)
    # Only the first subnet of each family stays local to the sender: the other is routed.
    machine.do(
        first,
        "ip addr del 10.19.0.2/24 dev eth0",
        "ip addr del fd00:19::2/64 dev eth0",
        "ip -6 route flush fd00:19::/64",
    )
    machine.do(
        second, "ip route add 10.9.0.2 via 10.19.0.1", "ip -6 route add fd00:9::2 via fd00:19::1"
    )

    assert source_seen(first, second, "10.9.0.3") == "10.9.0.2"
    assert source_seen(first, second, "10.19.0.3") == "10.9.0.2"
    assert source_seen(first, second, "fd00:9::3") == "fd00:9::2"
    assert source_seen(first, second, "fd00:19::3") == "fd00:9::2"


def test_masqueraded_towards_another_network(machine: Machine, backend: str) -> None:
    """A container of another network on the same host sees the gateway's address."""
    one = machine.network(isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend)
    two = machine.network(
        name=f"{machine.name}-2",
        bridge="br1",
        isDefaultGateway=True,
        ipam=ipam(machine, OTHER_V4),
    )
    (first,) = attach(machine, one, 1)
    (second,) = attach(machine, two, 1)

    assert source_seen(first, second, "10.19.0.2") == "10.19.0.1"
    assert source_seen(second, first, "10.9.0.2") == "10.19.0.2"


@pytest.mark.parametrize("group", ["224.0.0.251", "ff05::fb"])
def test_multicast_is_not_masqueraded(machine: Machine, backend: str, group: str) -> None:
    """The host routes a container's multicast, if at all, under the container's own address."""
    config = machine.network(
        isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=ipam(machine, V4, V6)
    )
    first, second = attach(machine, config, 2)
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    expected = "fd00:9::2" if ":" in group else "10.9.0.2"

    def join() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(SECONDS)
        sock.bind(("", 0))
        index = socket.if_nametoindex("eth0")
        if family == socket.AF_INET6:
            request = socket.inet_pton(family, group) + index.to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        else:
            request = socket.inet_aton(group) + socket.inet_aton("10.9.0.3")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        return sock

    with inside(second, join) as sock:
        port = sock.getsockname()[1]

        def send() -> None:
            with socket.socket(family, socket.SOCK_DGRAM) as out:
                out.sendto(b"hello", (group, port))

        inside(first, send)
        source = sock.recvfrom(64)[1][0]

    assert source == expected
