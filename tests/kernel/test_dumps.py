"""`pycni explain --kernel`, judged by `ip`, `tc` and the sockets that are there."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from cni_common.kernel.netns import NetNS
from commands.kernel import dumps
from tests.kernel.test_commands import Alive, asked, config, pycni
from tests.machine import Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(60),
]
LINKS = (
    "ip link add eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name other",
    "ip link set other up",
    "ip link set eth0 up",
    "ip address add 10.1.0.2/24 dev eth0",
    "ip address add fd01::2/64 dev eth0 nodad",
    "ip route add default via 10.1.0.1",
    "ip route add 192.0.2.0/24 via 10.1.0.1 metric 7 mtu 1300 table 1000",
    "ip route add 192.0.3.0/24 via inet6 fd01::1 dev eth0",
    "tc qdisc add dev eth0 root handle 5: tbf rate 1mbit burst 32kbit latency 400ms",
)


def _of(found: list[dumps.Dump], kind: str) -> list[str]:
    return [one.what for one in found if one.kind == kind]


def test_a_container_is_shown_as_it_is(machine: Machine) -> None:
    """Each dump has what was made; nothing stays open, and the thread where it was."""
    container = machine.container()
    machine.do(container, *LINKS)
    netns = NetNS(container)
    with ExitStack() as stack:
        stack.callback(netns.close)
        stream = netns.run(lambda: stack.enter_context(socket.create_server(("10.1.0.2", 8080))))
        names = netns.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        stack.enter_context(names).bind(("::", 53))
        before = os.listdir("/proc/self/fd")

        found = dumps.of_container(netns, "eth0")
        again = dumps.of_container(netns, "eth0")

        assert os.listdir("/proc/self/fd") == before
        assert stream.getsockname() == ("10.1.0.2", 8080)
    (link,) = _of(found, "link")
    assert link == "eth0 02:00:00:00:00:01 (veth) up, mtu 1400, up"
    addresses = _of(found, "address")
    assert set(addresses) >= {"10.1.0.2/24", "fd01::2/64"}
    assert addresses == machine.addresses(container, "eth0") or "fe80" in str(addresses)
    routes = _of(found, "route")
    assert set(routes) >= {
        "default via 10.1.0.1",
        "192.0.2.0/24 via 10.1.0.1 metric 7 mtu 1300 table 1000",
        "192.0.3.0/24 via fd01::1",
        "10.1.0.0/24 src 10.1.0.2",
    }
    assert _of(found, "queue") == ["tbf 5: of eth0, 0 packets dropped"]
    assert _of(found, "listener") == ["tcp 10.1.0.2 port 8080", "udp :: port 53"]
    assert [one.what for one in found if "cannot" in one.what] == []
    assert again == found


def test_what_is_not_there_is_not_shown(machine: Machine) -> None:
    """An interface that is gone has no rows, and is no failure."""
    netns = NetNS(machine.container())

    found = dumps.of_container(netns, "eth0")
    outside = dumps.of_host(netns, ["veth0"], [])

    netns.close()
    assert (found, outside) == ([], [])


def test_connections_are_counted_by_protocol(machine: Machine) -> None:
    """Those of the container's address count, those of others do not."""
    container = machine.container()
    machine.do(
        container,
        *LINKS[:5],
        "ip link set lo up",
        "nft add table inet t",
        "nft add chain inet t c { type filter hook output priority 0 ; }",
        "nft add rule inet t c ct state new counter",
    )
    netns = NetNS(container)

    def send(source: str, destination: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(b"x", (destination, 9))

    for source, destination in (("10.1.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")):
        netns.run(lambda source=source, destination=destination: send(source, destination))  # type: ignore[misc]

    found = dumps.of_host(netns, [], ["10.1.0.2/24"])

    netns.close()
    assert found == [dumps.Dump("connections", "1 udp")]


def test_explain_shows_both_sides(machine: Machine) -> None:
    """The option adds what the kernel has on the host and in the container, as JSON and as text."""
    with ExitStack() as stack:
        alive = Alive(machine, stack, config(machine), "abc1")

        (without,) = asked(machine, "explain", "abc1")["attachments"]
        (attachment,) = asked(machine, "explain", "--kernel", "abc1")["attachments"]
        shown = pycni(machine, "explain", "--kernel", "abc1").stdout

        kernel = attachment.pop("kernel")
        assert without == attachment
        assert {one["where"] for one in kernel} == {"host", "container"}
        address = next(o["what"] for o in kernel if o["kind"] == "address")
        assert address.partition("/")[0] == alive.address
        (veth,) = (o["what"] for o in kernel if (o["where"], o["kind"]) == ("host", "link"))
        assert veth.split()[0] in machine.ports()
        assert all(one["what"] in shown for one in kernel)
