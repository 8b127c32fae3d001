"""bandwidth: what really passes, by TCP in both directions, with and without subnets."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from threading import Thread
from typing import Any

import pytest

from tests.kernel.limits import MBIT, NO_BURST, by_runtime, config, container
from tests.machine import Json, Machine
from tests.sockets import Server, open_socket

RATE = 20 * MBIT
FREE = 5 * RATE  # more than this passes where there is no limit
SECONDS = 2.0
BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in struct tcp_info, linux/tcp.h
TRIES = 3  # on a machine that does much else meanwhile
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8::2"


def measure(sender: str, receiver: str, address: str) -> float:
    """Return the bits a second that TCP brings from one namespace to another, from the start on.

    Later, what had to wait for a lost packet to be sent again would seem to come all at once.
    """
    server = Server(receiver, "tcp", 0, address)
    port = server.sock.getsockname()[1]

    def send() -> None:
        with open_socket(sender, "tcp", address) as client, suppress(OSError):
            client.connect((address, port))
            while True:  # until the other side has had enough
                client.sendall(bytes(65536))

    thread = Thread(target=send)
    thread.start()
    try:
        connection, _ = server.sock.accept()
        with connection:
            connection.settimeout(5)
            begin = time.monotonic()
            while time.monotonic() < begin + SECONDS:
                connection.recv(65536)
            return received(connection) * 8 / (time.monotonic() - begin)
    finally:
        server.close()
        thread.join(10)


def received(connection: socket.socket) -> int:
    """Return the bytes that the kernel has got, whether or not we came to read them."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED + 8)
    (count,) = struct.unpack_from("=Q", info, BYTES_RECEIVED)
    return int(count)


def assert_limited(sender: str, receiver: str, address: str) -> None:
    """The rate is within 10 % of the limit, and never above."""
    seen = []
    for _ in range(TRIES):
        seen.append(measure(sender, receiver, address) / RATE)
        assert seen[-1] < 1.1, seen
        if seen[-1] > 0.9:
            return
    raise AssertionError(f"of the limit came through: {seen}")


def assert_free(sender: str, receiver: str, address: str) -> None:
    """There is no limit."""
    seen: list[float] = []
    while len(seen) < TRIES and max(seen, default=0) <= FREE:
        seen.append(measure(sender, receiver, address))
    assert max(seen) > FREE, seen


def limited(machine: Machine, **keys: Any) -> str:
    """Return a container that has limits."""
    netns = container(machine)
    machine.ok("bandwidth", "ADD", config(machine, **keys), netns)
    return netns


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(
            {"ingressRate": RATE, "ingressBurst": MBIT, "egressRate": RATE, "egressBurst": MBIT},
            id="bursts",
        ),
        pytest.param({"ingressRate": RATE, "egressRate": RATE}, id="default bursts"),
        pytest.param(
            {"ingressRate": RATE, "egressRate": RATE, "shapedSubnets": ["10.7.0.0/16"]}, id="htb"
        ),
    ],
)
def test_both_directions(machine: Machine, keys: Json) -> None:
    """The rates in both directions are within 10 % of the limit."""
    netns = limited(machine, **keys)

    assert_limited(machine.host, netns, "10.7.1.2")
    assert_limited(netns, machine.host, "10.7.1.1")


@pytest.mark.timeout(300)
def test_one_direction(machine: Machine) -> None:
    """The direction without limit is free."""
    netns = limited(machine, ingressRate=RATE)

    assert_limited(machine.host, netns, "10.7.1.2")
    assert_free(netns, machine.host, "10.7.1.1")


def test_burst_of_containerd(machine: Machine) -> None:
    """The limit holds from the first second on, also where no burst was asked for."""
    bursts = {"ingressBurst": NO_BURST, "egressBurst": NO_BURST}
    netns = limited(machine, **by_runtime(ingressRate=RATE, egressRate=RATE, **bursts))

    assert_limited(machine.host, netns, "10.7.1.2")
    assert_limited(netns, machine.host, "10.7.1.1")


@pytest.mark.parametrize("rate", [MBIT // 2, 100 * MBIT, 100_000 * MBIT])
def test_small_burst(machine: Machine, rate: int) -> None:
    """With the smallest burst full packets still pass."""
    bursts = {"ingressBurst": 8, "egressBurst": 8}
    netns = limited(machine, ingressRate=rate, egressRate=rate, **bursts)

    assert machine.ping(netns, "10.7.1.1", "-s", "1472", "-M", "do")


@pytest.mark.rotating(2)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("key", ["unshapedSubnets", "shapedSubnets"])
def test_subnets(machine: Machine, key: str, version: int) -> None:
    """The limits are for one kind of peers, and the other runs free, by either IP version."""
    outside = machine.outside()
    netns = limited(
        machine,
        ingressRate=RATE,
        egressRate=RATE,
        **{key: ["192.0.2.0/24", "2001:db8::/64", "198.51.100.0/24"]},
    )
    machine.do(machine.host, "ip addr add fd07::1/64 dev host1 nodad")
    machine.do(netns, "ip addr add fd07::2/64 dev eth0 nodad")
    for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        machine.command(machine.host, "sh", "-c", f"echo 1 >/proc/sys/net/{family}")
    machine.do(netns, "ip route add default via 10.7.1.1", "ip route add default via fd07::1")
    machine.do(outside, "ip route add default via 192.0.2.1")
    machine.do(outside, "ip route add default via 2001:db8::1")
    ours, host, theirs = {
        4: ("10.7.1.2", "10.7.1.1", OUTSIDE4),
        6: ("fd07::2", "fd07::1", OUTSIDE6),
    }[version]
    to_outside, to_host = (
        (assert_free, assert_limited) if key == "unshapedSubnets" else (assert_limited, assert_free)
    )

    to_outside(netns, outside, theirs)
    to_outside(outside, netns, ours)
    to_host(netns, machine.host, host)
    to_host(machine.host, netns, ours)
