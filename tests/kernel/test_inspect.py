"""`pycni inspect`, judged by `ss`, `ip` and `tc`, and by what was done to the container."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from commands import DONE, FAILED, FOUND
from tests.kernel.ports import HOST4, OUTSIDE4, Node, port
from tests.kernel.test_commands import asked, on_terminal, pycni
from tests.machine import Json, Machine
from tests.resident import start_in
from tests.sockets import open_socket, serving
from tests.waits import wait_until

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(120),
]
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"
RATE = 8_000_000  # bits per second


class Container:
    """A container with a limit and a host port, of a pod of a node with an outside."""

    def __init__(self, machine: Machine, stack: ExitStack) -> None:
        self.machine, self.node = machine, Node(machine)
        self.netns = self.node.attach(
            isGateway=True, ipMasq=True, portIsolation=True, dns={"nameservers": ["192.0.2.53"]}
        )
        stack.enter_context(machine.process_in(self.netns))
        limits: Json = {"ingressRate": RATE, "ingressBurst": 8 * 20_000}
        self.node.ok("ADD", self.node.config(port(8080)), self.netns, args=POD)
        machine.ok("bandwidth", "ADD", self.node.config(type="bandwidth", **limits), self.netns)
        self.stack = stack
        self.stack.enter_context(serving(self.netns, "tcp", 80))

    def connect(self) -> socket.socket:
        """Return a connection from outside to the host port."""
        sock = self.stack.enter_context(open_socket(self.node.outside, "tcp", HOST4))
        sock.connect((HOST4, 8080))
        return sock


@pytest.fixture
def container(machine: Machine) -> Iterator[Container]:
    """A living container."""
    with ExitStack() as stack:
        yield Container(machine, stack)


def test_all_of_a_container(container: Container) -> None:
    """Both ends, addresses, routes, port state, limit, published port, connections and sockets."""
    machine, node = container.machine, container.node
    container.connect().send(b"x" * 1000)

    found = asked(machine, "inspect", "shop/web-1")

    (attached,) = found["attachments"]
    assert (found["containerid"], found["pod"], found["alive"]) == ("c1", "shop/web-1", True)
    assert found["unread"] == []
    assert (attached["network"], attached["ifname"]) == (machine.name, "eth0")
    assert set(attached["plugins"]) == {"bridge", "host-local", "portmap", "bandwidth"}
    assert attached["dns"] == {"nameservers": ["192.0.2.53"]}
    assert attached["missing"] == []
    assert {one["what"] for one in attached["usage"] if one["kind"] == "host-port"} == {
        f"8080/tcp to {node.address(4)}:80",
        f"8080/tcp to [{node.address(6)}]:80",
    }
    _is_as_ip_says(container, found)
    _is_as_ss_says(container, found)
    (limit,) = found["host_queues"]
    assert (limit["kind"], limit["rate"]) == ("tbf", RATE)
    assert found["tracked"]["counts"]["tcp"] == 1
    (talker,) = found["tracked"]["talkers"]
    assert (talker["peer"], talker["connections"]) == ("192.0.2.2", 1)


def _is_as_ip_says(container: Container, found: Json) -> None:
    machine, inside = container.machine, found["inside"]
    link = next(one for one in inside["links"] if one["name"] == "eth0")
    seen = machine.link(container.netns, "eth0")
    assert seen
    assert (link["mac"], link["mtu"], link["index"]) == (
        seen["address"],
        seen["mtu"],
        seen["ifindex"],
    )
    elsewhere = {one["name"]: one["peer_elsewhere"] for one in inside["links"]}
    assert (link["peer"], elsewhere["eth0"], elsewhere["lo"]) == (seen["link_index"], True, False)
    addresses = [one["address"] for one in inside["addresses"] if one["index"] == link["index"]]
    assert set(machine.addresses(container.netns, "eth0")) < set(addresses)
    assert ("default", "10.9.0.1") in [(o["destination"], o["via"]) for o in inside["routes"]]
    assert any(one["address"] == "10.9.0.1" and one["mac"] for one in inside["neighbours"])
    (name,) = found["attachments"][0]["devices"]
    ends = {one["name"]: one for one in found["host_links"]}
    outer = machine.link(machine.host, name)
    assert outer
    assert set(ends) == {name, "br0"}
    assert ends[name]["port"] == {"state": "forwarding", "flags": ["isolated", "hairpin"]}
    assert ends[name]["counters"]["rx_packets"] >= link["counters"]["tx_packets"] > 0
    assert link["counters"]["rx_bytes"] > 1000


def _is_as_ss_says(container: Container, found: Json) -> None:
    sockets = found["inside"]["sockets"]
    shown = container.machine.command(container.netns, "ss", "-tanHO").splitlines()
    seen = {(words[3], words[4]) for words in map(str.split, shown)}
    assert {
        (one["local"], one["remote"] or ("[::]:*" if "[" in one["local"] else "0.0.0.0:*"))
        for one in sockets
    } == seen
    (connection,) = (one for one in sockets if one["state"] == "established")
    assert connection["tcp"]["bytes_received"] == connection["receive_queue"] == 1000
    assert connection["tcp"]["rtt_us"] > 0
    assert connection["congestion"]


def test_page(container: Container) -> None:
    """The text fits 80 columns, and has everything that one looks for."""
    container.connect().send(b"x" * 1000)

    done = pycni(container.machine, "inspect", "c1")

    assert (done.returncode, done.stderr) == (DONE, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "container c1"
    text = re.sub(r"\s+", " ", done.stdout)
    for words in (
        " pod shop/web-1 netns /proc/",
        f" eth0 on network {container.machine.name} plugins ",
        " address 10.9.0.",
        " route default via 10.9.0.1 ",
        " dns nameservers 192.0.2.53 ",
        "port of br0: forwarding isolated hairpin ",
        " bridge, up, mtu 1500 ",
        " limit tbf 1: of veth",
        " 8 Mbit/s, 0 dropped",
        " host-port 8080/tcp to 10.9.0.",
        " masquerade 10.9.0.",
        " connections tracked on the host 1 tcp (",
        " tcp 0.0.0.0:80, to be accepted 1/16, ",
        f" (PID {os.getpid()})",
        " established, 1 kB unread, rtt ",
    ):
        assert words in text, done.stdout


def test_what_a_limit_has_dropped(container: Container) -> None:
    """Datagrams above the limit are counted where `tc` counts them."""
    machine = container.machine
    with open_socket(container.node.host, "udp", HOST4) as sock:
        for _ in range(400):
            sock.sendto(b"x" * 1400, (container.node.address(4), 9))

    found = asked(machine, "inspect", "c1")

    (limit,) = found["host_queues"]
    (name,) = found["attachments"][0]["devices"]
    shown = machine.command(machine.host, "tc", "-j", "-s", "qdisc", "show", "dev", name)
    assert limit["counters"]["dropped"] == json.loads(shown)[0]["drops"] > 0
    assert found["inside"]["errors"]["Udp.NoPorts"] > 0


def test_hits(container: Container) -> None:
    """Each connection counts once, at the port and where the container's address is masqueraded."""
    machine, node = container.machine, container.node
    before = _uses(asked(machine, "inspect", "c1"))
    for _ in range(3):
        container.connect().send(b"x" * 1000)
    with (
        serving(node.outside, "tcp", 99, ["0.0.0.0"]),
        open_socket(container.netns, "tcp", OUTSIDE4) as sock,
    ):
        sock.connect((OUTSIDE4, 99))
        sock.send(b"x" * 1000)

    after = _uses(asked(machine, "inspect", "c1"))

    port, address = f"8080/tcp to {node.address(4)}:80", node.address(4)
    assert after[port] - before[port] == 3
    assert after[address] - before[address] == 1
    assert f"{port}: 3 connections" in pycni(machine, "inspect", "c1").stdout


def test_hits_of_iptables(machine: Machine) -> None:
    """The other backend's rules count, too; with flushed chains the ports are still named."""
    with ExitStack() as stack:
        node = Node(machine)
        netns = node.attach(isGateway=True, ipMasq=True, ipMasqBackend="iptables")
        stack.enter_context(machine.process_in(netns))
        node.ok("ADD", node.config(port(8080), backend="iptables"), netns, args=POD)
        stack.enter_context(serving(netns, "tcp", 80))
        before = _uses(asked(machine, "inspect", "c1"))
        for _ in range(3):
            sock = stack.enter_context(open_socket(node.outside, "tcp", HOST4))
            sock.connect((HOST4, 8080))
        stack.enter_context(serving(node.outside, "tcp", 99, ["0.0.0.0"]))
        for _ in range(2):
            sock = stack.enter_context(open_socket(netns, "tcp", OUTSIDE4))
            sock.connect((OUTSIDE4, 99))
        after = _uses(asked(machine, "inspect", "c1"))
        machine.do(machine.host, "nft flush ruleset")
        lost = asked(machine, "inspect", "c1", status=FOUND)

    what = f"8080/tcp to {node.address(4)}:80"
    assert (before[what], after[what]) == (0, 3)
    assert after[f"8080/tcp to [{node.address(6)}]:80"] == 0
    address = node.address(4)
    assert (before[address], after[address], after[node.address(6)]) == (0, 2, 0)
    (attached,) = lost["attachments"]
    kinds = {one["what"] for one in attached["usage"] if one["kind"] == "host-port"}
    assert kinds == {"8080/tcp"}
    masqueraded = [one for one in attached["usage"] if one["kind"] == "masquerade"]
    assert [(one["what"], one["packets"]) for one in masqueraded] == [
        (address, None),
        (node.address(6), None),
    ]


def test_processes(container: Container) -> None:
    """Each socket has the process that holds it, and whose name may be anything."""
    script = "import socket,time; s = socket.create_server(('', 81)); time.sleep(60)"
    rename = "open('/proc/self/comm', 'w').write('a\\x1b[31m b)'); "
    words = ["python3", "-c", rename + script]
    with start_in(container.netns, *words) as process:
        wait_until(lambda: _at(container, 81), "nothing listens")
        (other,) = _at(container, 81)
        (ours,) = _at(container, 80)
        shown = pycni(container.machine, "inspect", "c1").stdout
        process.kill()

    assert (ours["pid"], other["pid"]) == (os.getpid(), process.pid)
    assert f"a\\x1b[31m b) (PID {process.pid})" in re.sub(r"\s+", " ", shown)


def _at(container: Container, number: int) -> list[Json]:
    sockets = asked(container.machine, "inspect", "c1")["inside"]["sockets"]
    return [
        one for one in sockets if one["local"] == f"0.0.0.0:{number}" and one["state"] == "listen"
    ]


def test_a_table_of_an_older_release_counts_nothing(container: Container) -> None:
    """Its maps stay as they are, and the page says nothing of connections."""
    machine = container.machine
    text = machine.command(machine.host, "nft", "list", "ruleset")
    text = re.sub(r" counter packets \d+ bytes \d+", "", text.replace("\t\tcounter\n", ""))
    machine.command(machine.host, "nft", "-f", "-", stdin=f"flush ruleset\n{text}")

    container.node.attach("c2", ipMasq=True)  # uses the maps that are there

    assert set(_uses(asked(machine, "inspect", "c1")).values()) == {None}
    found = _uses(asked(machine, "inspect", "c2"))
    assert set(found.values()) == {None}
    assert " connections\n" not in pycni(machine, "inspect", "c2").stdout


def _uses(found: Json) -> dict[str, Any]:
    (attached,) = found["attachments"]
    return {one["what"]: one["packets"] for one in attached["usage"]}


def test_watch(container: Container) -> None:
    """Each page follows the one before; rates are of what was counted between them."""
    machine = container.machine
    words = ("inspect", "c1", "--watch", "0.3", "--count", "2")
    with open_socket(container.netns, "udp", HOST4) as sock:
        # A sender of its own, as the command runs in the foreground.
        script = (
            "import socket,time\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "while True: s.sendto(b'x' * 500, ('192.0.2.2', 9)); time.sleep(.01)"
        )
        process = container.stack.enter_context(_started(container.netns, script))
        try:
            first, second = map(json.loads, pycni(machine, *words, "--json").stdout.splitlines())
            text = pycni(machine, *words).stdout
        finally:
            process.kill()
        del sock
    assert "rates" not in first
    assert 10_000 < second["rates"]["container eth0 tx_bytes"] < 100_000
    assert text.count("container c1\n") == 2
    assert re.search(r" sent \S+ kB in \d+ packets, \S+ kB/s ", re.sub(r"\s+", " ", text))


def test_watch_on_a_terminal(container: Container) -> None:
    """A page takes the place of the one before; text to copy is not cut."""
    words = ("inspect", "c1", "--watch", "0.1", "--count", "2")

    shown = on_terminal(container.machine, *words)

    assert shown.count("\x1b[H\x1b[2J") == 2
    assert shown.count("container c1") == 2
    assert container.node.address(6) in shown


def _started(netns: str, script: str):  # type: ignore[no-untyped-def]
    import subprocess
    import sys

    from tests.resident import start_in

    return start_in(netns, sys.executable, "-c", script, stderr=subprocess.DEVNULL)


def test_a_process_without_a_record(machine: Machine) -> None:
    """A namespace that no plugin has made is shown by its path, without attachments."""
    netns = machine.container()
    machine.do(netns, "ip link add eth0 type veth peer name other", "ip link set eth0 up")

    found = asked(machine, "inspect", netns)
    shown = pycni(machine, "inspect", netns).stdout

    assert (found["containerid"], found["netns"], found["attachments"]) == ("", netns, [])
    assert {one["name"] for one in found["inside"]["links"]} >= {"lo", "eth0", "other"}
    assert shown.startswith("container without a record\n")
    assert "eth0, of no record" in shown


def test_what_is_not_known(machine: Machine) -> None:
    """Neither an unknown container nor the host itself is a container."""
    done = pycni(machine, "inspect", "nobody")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr == "pycni inspect: nothing is known of container 'nobody'\n"
    done = pycni(machine, "inspect", machine.host)
    assert done.returncode == FAILED
    assert "is the network namespace of the host" in done.stderr


def test_what_is_missing(container: Container) -> None:
    """An object that is gone is named, and the status says so."""
    machine = container.machine
    machine.do(machine.host, "nft flush ruleset")

    found = asked(machine, "inspect", "c1", status=FOUND)
    shown = pycni(machine, "inspect", "c1").stdout

    missing = found["attachments"][0]["missing"]
    assert any(one.startswith("host-port ") for one in missing)
    assert "  missing " in shown


def test_a_dead_container(machine: Machine) -> None:
    """The remains of a container that is gone are shown without its inside."""
    node = Node(machine)
    netns = node.attach()
    machine.end(netns)

    found = asked(machine, "inspect", "c1", status=FOUND)

    assert found["alive"] is False
    assert found["inside"]["links"] == found["inside"]["sockets"] == []
    assert found["unread"] == []
