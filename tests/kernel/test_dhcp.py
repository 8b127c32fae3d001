"""dhcp on a real kernel, beside dnsmasq and ISC dhcpd: ADD to STATUS, and the daemon's life.

The server is behind the host's `uplink`, on which containers have macvlans unless told otherwise.
"Unlike the reference" begins the account of each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cni_common.kernel.netns import NetNS
from cni_common.node.liveness import GRACE_SECONDS, Liveness, State
from commands import DONE, FOUND
from plugins.dhcp import rpc
from plugins.dhcp.client import releases_of
from plugins.dhcp.daemon.v4.talk import Talk
from tests.dhcp import (
    DHCRELAY,
    Daemon,
    Process,
    daemon_on,
    dhcpd,
    dnsmasq,
    kept,
    leases_of,
    pull_the_cable,
    running,
)
from tests.kernel.test_commands import age, asked, kinds
from tests.machine import CNI_BIN, Json, Machine, addresses_of, files_below
from tests.resident import start_in, visiting
from tests.scope import ALL
from tests.waits import GENEROUS, wait_until

RANGE = "192.0.2.50,192.0.2.59,255.255.255.0,1h"
ROUTER = "--dhcp-option=3,192.0.2.2"
SUBNET = "subnet 192.0.2.0 netmask 255.255.255.0 { range 192.0.2.50 192.0.2.59; }"
KEY = "cni.dev/valid-attachments"


@pytest.fixture
def daemon(machine: Machine, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the machine's host."""
    with daemon_on(machine, tmp_path, "-timeout=500ms") as made:
        yield made


@pytest.fixture
def outside(machine: Machine) -> str:
    """The namespace behind the host's `uplink`."""
    return machine.outside()


@pytest.fixture
def server(outside: str, tmp_path: Path) -> Iterator[Process]:
    """dnsmasq there."""
    with running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE}", ROUTER)) as made:
        yield made


def macvlan(machine: Machine, daemon: Daemon, ipam: Json | None = None, **keys: Any) -> Json:
    """Return a macvlan configuration on `uplink` with the daemon's leases."""
    usual = {"type": "macvlan", "bridge": None, "isGateway": None, "master": "uplink"}
    return machine.network(**{**usual, "ipam": daemon.ipam(**(ipam or {})), **keys})


def attached(machine: Machine, config: Json, containerid: str = "c1") -> tuple[str, Json]:
    """Return a container and the result of its ADD."""
    container = machine.container()
    return container, machine.ok(config["type"], "ADD", config, container, containerid=containerid)


def address_in(result: Json) -> str:
    """Return the only address of a result."""
    (address,) = addresses_of(result)
    return address


# --- ADD, CHECK, DEL -------------------------------------------------------------------------


@pytest.mark.both_edges
def test_add_and_delete(machine: Machine, server: Process, daemon: Daemon, tmp_path: Path) -> None:
    """A container gets an address of the network's server, which has it back after DEL."""
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    (ip,) = result["ips"]
    assert (ip["gateway"], ip["interface"]) == ("192.0.2.2", 0)
    assert leases_of(tmp_path) == {address_in(result): identifier(f"c1/{machine.name}/eth0")}
    assert machine.addresses(container, "eth0") == [ip["address"]]
    assert machine.ping(container, "192.0.2.2")

    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("macvlan", "DEL", config, container)
    server.await_line("DHCPRELEASE")

    wait_until(lambda: leases_of(tmp_path) == {}, "dnsmasq keeps the lease")
    assert kept(daemon) == list(files_below(machine.state_dir)) == []
    machine.ok("macvlan", "DEL", config, container)
    assert not any("from the host" in line for line in daemon.process.lines)


def identifier(text: str) -> str:
    """Return a client identifier of type 0 as dnsmasq writes it."""
    return ":".join(f"{byte:02x}" for byte in b"\0" + text.encode())


def test_bridge(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """The first DISCOVER waits for the port, or it would be lost, and the ADD take 4 s."""
    config = machine.network(ipam=daemon.ipam(), isGateway=None)
    machine.do(
        machine.host,
        "ip link add br0 type bridge",
        "ip link set uplink master br0",
        "ip link set br0 up",
    )
    with running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE}")) as server:
        container, result = attached(machine, config)
        assert server.count("DHCPDISCOVER") == 1
        assert machine.ping(container, "192.0.2.2")
        machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)
        machine.ok("bridge", "DEL", config, container)
        server.await_line("DHCPRELEASE")
    assert kept(daemon) == []


def test_host_device(machine: Machine, server: Process, daemon: Daemon) -> None:
    """The lease is asked for in the container, and given back before the device goes home."""
    config = macvlan(machine, daemon, type="host-device", device="uplink")
    container, result = attached(machine, config)
    assert machine.link(machine.host, "uplink") is None
    assert machine.ping(container, "192.0.2.2")

    machine.ok("host-device", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("host-device", "DEL", config, container)

    server.await_line("DHCPRELEASE")
    assert kept(daemon) == []
    assert "192.0.2.1/24" in machine.addresses(machine.host, "uplink")


def test_ptp(machine: Machine, tmp_path: Path) -> None:
    """Unlike in the reference the interface is there when DHCP needs it."""
    with daemon_on(machine, tmp_path, "-resendtimeout=100ms") as daemon:
        config = machine.network(type="ptp", ipam=daemon.ipam(), bridge=None, isGateway=None)
        error = machine.refused("ptp", "ADD", config, machine.container())

    assert error["msg"] == "no DHCP server has answered (interface 'eth0')"


def test_everything_that_a_server_says(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """Routes, MTU, DNS are in the result and on the interface; NTP servers are told to people."""
    options = (
        *(f"--dhcp-range={RANGE}", ROUTER, "--dhcp-option=6,192.0.2.2,192.0.2.3"),
        *("--dhcp-option=15,example.com", "--dhcp-option=119,eng.example.com,example.org"),
        *("--dhcp-option=26,1400", "--dhcp-option=42,192.0.2.4"),
        "--dhcp-option=121,10.7.0.0/16,192.0.2.3,0.0.0.0/0,192.0.2.2",
    )
    config = macvlan(machine, daemon, {"priority": 7})
    with running(dnsmasq(outside, tmp_path, *options)):
        container, result = attached(machine, config)
        assert result["routes"] == [
            {"dst": "10.7.0.0/16", "gw": "192.0.2.3", "mtu": 1400, "priority": 7},
            {"dst": "0.0.0.0/0", "gw": "192.0.2.2", "mtu": 1400, "priority": 7},
        ]
        assert result["dns"] == {
            "nameservers": ["192.0.2.2", "192.0.2.3"],
            "domain": "example.com",
            "search": ["eng.example.com", "example.org"],
        }
        (default,) = machine.ip(container, "route", "show", "default")
        assert (default["metric"], default["metrics"]) == (7, [{"mtu": 1400}])
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        told = json.dumps(asked(machine, "explain", "c1", status=DONE))
        assert "ntp ['192.0.2.4']" in told
        machine.ok("macvlan", "DEL", config, container)


def test_options_of_the_client(machine: Machine, server: Process, daemon: Daemon) -> None:
    """The server gets the pod's name, and is asked for what the configuration lists."""
    ipam = {
        "provide": [
            {"option": "host-name", "fromArg": "K8S_POD_NAME"},
            {"option": "vendor-class-identifier", "value": "pycni"},
        ],
        "request": [{"skipDefault": True}, {"option": "44"}, {"option": "subnet-mask"}],
    }
    args = "IgnoreUnknown=1;K8S_POD_NAME=pod-7"
    machine.ok("macvlan", "ADD", macvlan(machine, daemon, ipam), machine.container(), args=args)

    server.await_line("client provides name: pod-7")
    server.await_line("vendor class: pycni")
    server.await_line(r"requested options: 1:netmask, 44:netbios-ns")


VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def test_all_versions_and_again(machine: Machine, server: Process, daemon: Daemon) -> None:
    """A second ADD of one attachment gets the same lease, in the form of its version."""
    container, addresses = with_interface(machine), set()
    for version in VERSIONS:
        config = machine.network(cniVersion=version, ipam=daemon.ipam())
        result = machine.ok("dhcp", "ADD", config, container)
        assert result["cniVersion"] == version
        addresses.add(result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"])

    assert len(addresses) == 1
    assert server.count("DHCPACK") == 1
    machine.ok("dhcp", "DEL", config, container)
    server.await_line("DHCPRELEASE")


def test_add_in_another_namespace(machine: Machine, server: Process, daemon: Daemon) -> None:
    """An ADD that no DEL has preceded: the record says where the container is now, not before."""
    config = machine.network(ipam=daemon.ipam())
    before, now = with_interface(machine), with_interface(machine)
    machine.ok("dhcp", "ADD", config, before)

    result = machine.ok("dhcp", "ADD", config, now)

    (record,) = (Path(machine.state_dir) / "attachments").iterdir()
    noted: Json = {}
    for line in record.read_text().splitlines():
        noted |= json.loads(line)
    assert noted["netns"] == now
    machine.forget(before)
    with machine.make_host() as host:
        assert Liveness(host).state_of(noted) is State.ALIVE
    machine.ok("dhcp", "CHECK", {**config, "prevResult": result}, now)


def with_interface(machine: Machine) -> str:
    """Return a container with an `eth0` that another plugin could have made."""
    container = machine.container()
    words = f"ip link add link uplink name eth0 netns {container} type macvlan mode bridge"
    machine.command(machine.host, *words.split())
    return container


# --- servers as they are ---------------------------------------------------------------------


def test_pool_exhausted(machine: Machine, outside: str, tmp_path: Path) -> None:
    """The ADD fails, says so, and leaves nothing; a DEL makes room."""
    config: Json
    range_of_one = "--dhcp-range=192.0.2.50,192.0.2.50,255.255.255.0,1h"
    with (
        daemon_on(machine, tmp_path, "-resendtimeout=1s", "-timeout=300ms") as daemon,
        running(dnsmasq(outside, tmp_path, range_of_one)) as server,
    ):
        config = macvlan(machine, daemon)
        first, _ = attached(machine, config)
        container = machine.container()
        before = machine.snapshot(container)

        error = machine.refused("macvlan", "ADD", config, container, containerid="c2")

        server.await_line("no address available")
        assert error["code"] == 11
        assert error["msg"] == "no DHCP server has answered (interface 'eth0')"
        assert machine.snapshot(container) == before
        assert kept(daemon) == ["192.0.2.50"]
        machine.ok("macvlan", "DEL", config, first)
        server.await_line("DHCPRELEASE")
        machine.ok("macvlan", "ADD", config, container, containerid="c2")


def test_two_servers(machine: Machine, server: Process, daemon: Daemon, tmp_path: Path) -> None:
    """One of them gives the address; the other has none for the container."""
    other = machine.container()
    second = tmp_path / "second"
    second.mkdir()
    words = f"ip link add behind type veth peer name uplink netns {other}".split()
    machine.command(machine.host, *words)
    machine.do(
        machine.host,
        "ip link add br1 type bridge",
        "ip link set uplink master br1",
        "ip link set behind master br1",
        "ip link set behind up",
        "ip link set br1 up",
    )
    machine.do(other, "ip addr add 192.0.2.3/24 dev uplink", "ip link set uplink up")
    options = "--dhcp-range=192.0.2.150,192.0.2.159,255.255.255.0,1h"
    config = macvlan(machine, daemon, master="br1")
    with running(dnsmasq(other, second, options)):
        container, result = attached(machine, config)
        given = sorted([list(leases_of(tmp_path)), list(leases_of(second))])
        assert given == [[], [address_in(result)]]
        machine.ok("macvlan", "DEL", config, container)
        wait_until(lambda: not leases_of(tmp_path) and not leases_of(second), "it is not released")


def test_server_gone_at_renewal(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """Unlike the reference: the address goes with its lease, the interface stays, and all is back.

    The server has lost its leases meanwhile.
    """
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, "option routers 192.0.2.2;")) as server:
        container, result = attached(machine, config)
        server.await_line("DHCPACK", 3)  # it is renewed
        server.end(signal.SIGKILL)
    (ip,) = result["ips"]

    daemon.process.await_line(f"{address_in(result)} is removed: the lease has expired")
    wait_until(lambda: not machine.addresses(container, "eth0"), "the address stays")
    link = machine.link(container, "eth0")
    assert link
    assert "UP" in link["flags"]
    told = machine.refused("macvlan", "CHECK", {**config, "prevResult": result}, container)["msg"]
    assert "has no lease: the lease has expired" in told

    (tmp_path / "dhcpd.leases").unlink()
    with running(dhcpd(outside, tmp_path, SUBNET, "option routers 192.0.2.2;")):
        daemon.process.await_line("bound to", 2)
        wait_until(lambda: machine.addresses(container, "eth0"), "the address is not put back")
        assert machine.addresses(container, "eth0") == [ip["address"]]
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        assert machine.ping(container, "192.0.2.2")
        machine.ok("macvlan", "DEL", config, container)


def test_server_restarted_with_an_empty_lease_file(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """The container keeps its address: the server extends or gives anew what it does not know."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET)) as server:
        container, result = attached(machine, config)
        server.end(signal.SIGKILL)
    (tmp_path / "dhcpd.leases").unlink()
    with running(dhcpd(outside, tmp_path, SUBNET)) as server:
        server.await_line(f"DHCPACK on {address_in(result)}", 2)
        wait_until(
            lambda: machine.addresses(container, "eth0") == [result["ips"][0]["address"]],
            "the address is gone",
        )
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)


def test_nak(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """A refused address is removed at once, also when the link was away; no other one is taken."""
    config = macvlan(machine, daemon)
    with running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE}")) as server:
        container, result = attached(machine, config)
        server.end()
    (tmp_path / "dnsmasq.leases").unlink()
    other = "--dhcp-range=192.0.2.90,192.0.2.99,255.255.255.0,1h"
    with running(dnsmasq(outside, tmp_path, other, "--dhcp-authoritative")) as server:
        pull_the_cable(machine, outside)
        server.await_line("DHCPNAK")
        daemon.process.await_line("is removed: DHCP server 192.0.2.2 refuses: ")
        assert machine.addresses(container, "eth0") == []
        server.await_line("DHCPOFFER")
        told = machine.refused("macvlan", "CHECK", {**config, "prevResult": result}, container)
        assert "has no lease: DHCP server 192.0.2.2 refuses" in told["msg"]
        assert server.count("DHCPACK") == 0
        machine.ok("macvlan", "DEL", config, container)


def test_switch_rebooted(machine: Machine, server: Process, daemon: Daemon, outside: str) -> None:
    """When the link is back the server is asked whether the address is right, before its time."""
    container, result = attached(machine, macvlan(machine, daemon))

    pull_the_cable(machine, outside)

    server.await_line("DHCPREQUEST", 2)
    server.await_line("DHCPACK", 2)
    assert machine.addresses(container, "eth0") == [result["ips"][0]["address"]]


def test_flood(machine: Machine, outside: str) -> None:
    """However much comes from a neighbour, it is read in portions, and none of it is lost."""
    with visiting(outside), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"uplink")
        sender.bind(("", 67))
        netns = NetNS(machine.host)
        uplink = netns.netlink.link("uplink")
        assert uplink is not None
        talk = Talk(netns, uplink)
        try:
            for _ in range(100):
                sender.sendto(b"x", ("255.255.255.255", 68))
            portions = [len(list(talk.receive())) for _ in range(3)]
        finally:
            talk.close()

    assert portions == [64, 36, 0]


def test_relay(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """A server behind a router gives the address, renews it directly, and gets it back."""
    far = machine.container()
    machine.command(outside, *f"ip link add far type veth peer name uplink netns {far}".split())
    machine.do(outside, "ip addr add 198.51.100.1/24 dev far", "ip link set far up")
    machine.do(far, "ip addr add 198.51.100.2/24 dev uplink", "ip link set uplink up")
    machine.do(far, "ip route add default via 198.51.100.1")
    machine.command(outside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    subnets = (SUBNET, "subnet 198.51.100.0 netmask 255.255.255.0 {}", "option routers 192.0.2.2;")
    words = (str(DHCRELAY), "-4", "-d", "--no-pid", "-i", "uplink", "-i", "far", "198.51.100.2")
    config = macvlan(machine, daemon)
    with (
        running(dhcpd(far, tmp_path, *subnets)) as server,
        running(Process(outside, *words)) as relay,
    ):
        relay.await_line("Sending on")
        relay.await_line("Socket/fallback")
        container, result = attached(machine, config)
        server.await_line(r"DHCPREQUEST .* via uplink", 2)
        server.await_line(rf"DHCPACK on {address_in(result)} to .* via uplink", 2)
        machine.ok("macvlan", "DEL", config, container)
        server.await_line("DHCPRELEASE")


def test_no_subnet_mask(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """An address without one is given back."""
    config = macvlan(machine, daemon, {"request": [{"skipDefault": True, "option": "3"}]})
    options = (f"--dhcp-range={RANGE}", "--dhcp-option=1")
    with running(dnsmasq(outside, tmp_path, *options)) as server:
        error = machine.refused("macvlan", "ADD", config, machine.container())

        assert "gives no subnet mask (option 1); correct that server" in error["msg"]
        server.await_line("DHCPRELEASE")
    assert kept(daemon) == list(files_below(machine.state_dir)) == []


def test_failed_add(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """A failure after DHCP, such as a route to nowhere, gives the lease back."""
    container = machine.container()
    options = (f"--dhcp-range={RANGE}", "--dhcp-option=121,10.0.0.0/8,203.0.113.1")
    with running(dnsmasq(outside, tmp_path, *options)) as server:
        before = machine.snapshot(container)
        error = machine.refused("macvlan", "ADD", macvlan(machine, daemon), container)

        assert "cannot reach gateway 203.0.113.1" in error["msg"]
        server.await_line("DHCPRELEASE")
        assert machine.snapshot(container) == before
        assert kept(daemon) == []


# --- the daemon's life -----------------------------------------------------------------------


def test_daemon_killed_and_restarted(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """Unlike the reference, it goes on renewing, and releases at DEL.

    The second one sees the host's root elsewhere, as in a container.
    """
    root = Path("/run", machine.name[-6:])  # a short one: paths of sockets have an end
    root.symlink_to("/")
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET)) as server:
        container, result = attached(machine, config)
        daemon.process.end(signal.SIGKILL)
        seen = server.count("DHCPACK")
        daemon.start(f"-hostprefix={root}")
        server.await_line(f"DHCPACK on {address_in(result)}", seen + 2)
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        assert machine.addresses(container, "eth0") == [result["ips"][0]["address"]]
        machine.ok("macvlan", "DEL", config, container)
        server.await_line("DHCPRELEASE")
    assert kept(daemon) == []


def test_lease_ends_while_there_is_no_daemon(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """The next daemon removes the address before it does anything else, and asks for it again."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, seconds=1)) as server:
        container, result = attached(machine, config)
        daemon.process.end(signal.SIGKILL)
        time.sleep(1.1)
        server.end()
    daemon.start("-timeout=300ms")
    daemon.process.await_line("is removed: the lease has expired while there was no daemon")
    assert machine.addresses(container, "eth0") == []
    with running(dhcpd(outside, tmp_path, SUBNET)):
        daemon.process.await_line("bound to")
        wait_until(lambda: machine.addresses(container, "eth0"), "the address is not put back")
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)


def test_delete_while_the_daemon_is_away(
    machine: Machine, server: Process, daemon: Daemon, tmp_path: Path
) -> None:
    """Unlike the reference, DEL succeeds, and the next daemon gives the lease back."""
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    daemon.process.end(signal.SIGKILL)

    machine.ok("macvlan", "DEL", config, container)
    machine.ok("macvlan", "DEL", config, container)

    assert list(files_below(machine.state_dir)) == []
    assert len(os.listdir(releases_of(daemon.socket))) == 1
    machine.forget(container)
    assert list(leases_of(tmp_path)) == [address_in(result)]
    daemon.start()
    server.await_line("DHCPRELEASE")
    wait_until(lambda: not kept(daemon), "the lease stays")
    wait_until(lambda: not os.listdir(releases_of(daemon.socket)), "the note stays")


def test_container_gone_without_a_word(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """Unlike the reference: its lease is given back at its renewals; DEL finds nothing to do."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET)) as server:
        container, _ = attached(machine, config)
        machine.forget(container)
        server.await_line("DHCPRELEASE")
        wait_until(lambda: not kept(daemon), "the lease stays")
        machine.ok("macvlan", "DEL", config)
    assert list(files_below(machine.state_dir)) == []


def test_no_namespace_is_held(machine: Machine, server: Process, daemon: Daemon) -> None:
    """Unlike the reference: once there is a lease the daemon has nothing open in a container."""
    before = descriptors(daemon)
    container, _ = attached(machine, macvlan(machine, daemon))
    (identity,) = {os.stat(container).st_ino}

    assert descriptors(daemon) == before
    machine.forget(container)
    words = ("lsns", "--noheadings", "-o", "NS")
    assert str(identity) not in machine.command(machine.host, *words).split()
    wait_until(lambda: "eth0" not in lower_links(machine), "the kernel keeps the namespace")


def descriptors(daemon: Daemon) -> int:
    """Return how many descriptors the daemon has."""
    return len(os.listdir(f"/proc/{daemon.process.process.pid}/fd"))


def lower_links(machine: Machine) -> str:
    """Return what the host sees above its uplink."""
    path = "/sys/class/net/uplink"
    done = machine.try_command(machine.host, "sh", "-c", f"ls {path} 2>/dev/null | grep upper")
    return done.stdout


@pytest.mark.timeout(600)
def test_many_containers(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """Unlike the reference, one thread serves all; each gets an address, and gives it back."""
    number = 200 if ALL else 20
    config = macvlan(machine, daemon)
    containers = {f"c{index}": machine.container() for index in range(number)}
    options = "--dhcp-range=192.0.2.3,192.0.2.254,255.255.255.0,1h"
    with running(dnsmasq(outside, tmp_path, options, "--dhcp-lease-max=1000")) as server:

        def call(command: str, name: str) -> Json:
            return machine.ok("macvlan", command, config, containers[name], containerid=name)

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda name: call("ADD", name), containers))
            assert len({address_in(one) for one in results}) == number
            assert len(os.listdir(f"/proc/{daemon.process.process.pid}/task")) == 1
            assert len(kept(daemon)) == number
            list(pool.map(lambda name: call("DEL", name), containers))
        server.await_line("DHCPRELEASE", number)
    assert kept(daemon) == []


def test_signals(machine: Machine, server: Process, daemon: Daemon, tmp_path: Path) -> None:
    """SIGTERM ends it, without socket and pidfile, with the leases; a second daemon is refused."""
    attached(machine, macvlan(machine, daemon))
    pidfile = tmp_path / "pid"
    with running(
        Process(machine.host, str(CNI_BIN / "dhcp"), "daemon", f"-leasedir={daemon.leases}")
    ) as two:
        assert two.process.wait(60) == 1
        two.read()
        assert "another daemon keeps the leases" in two.lines[-1]
    daemon.process.end()
    daemon.start("-pidfile", str(pidfile))
    assert pidfile.read_text() == str(daemon.process.process.pid)

    assert daemon.process.end() == 0

    assert not pidfile.exists()
    assert not Path(daemon.socket).exists()
    assert len(kept(daemon)) == 1


def test_a_socket_that_another_daemon_serves(
    machine: Machine, daemon: Daemon, tmp_path: Path
) -> None:
    """A daemon with other leases, such as the reference's, keeps its socket."""
    other = ("-socketpath", daemon.socket, "-leasedir", str(tmp_path / "other"))

    with running(Process(machine.host, str(CNI_BIN / "dhcp"), "daemon", *other)) as second:
        second.process.wait(GENEROUS)
        second.read()

    assert (second.process.returncode, len(second.lines)) == (1, 1)
    assert f"another daemon serves at '{daemon.socket}'" in second.lines[0]
    machine.ok("dhcp", "STATUS", machine.network(ipam=daemon.ipam()))


def test_socket_activation(machine: Machine, server: Process, tmp_path: Path) -> None:
    """systemd opens the socket, and starts the daemon for the first call."""
    daemon = Daemon(machine, tmp_path)
    words = ("systemd-socket-activate", f"--listen={daemon.socket}", str(CNI_BIN / "dhcp"))
    process = Process(machine.host, *words, "daemon", f"-leasedir={daemon.leases}")
    with running(process):
        process.await_line("Listening on")
        container, _ = attached(machine, macvlan(machine, daemon))
        machine.ok("macvlan", "DEL", macvlan(machine, daemon), container)
        assert process.end() == 0
    assert Path(daemon.socket).exists()  # systemd's


def test_reboot(machine: Machine, server: Process, daemon: Daemon) -> None:
    """Leases of an earlier boot are given back: none of their containers is left."""
    attached(machine, macvlan(machine, daemon))
    daemon.process.end()
    (path,) = daemon.leases.glob("*.json")
    path.write_text(re.sub(r'"boot_id":"[^"]*"', '"boot_id":"earlier"', path.read_text()))

    daemon.start()

    server.await_line("DHCPRELEASE")
    wait_until(lambda: not kept(daemon), "the lease stays")


def test_aborted_add(machine: Machine, outside: str, daemon: Daemon) -> None:
    """The daemon does not go on for a plugin that has gone, and answers all others meanwhile."""
    with visiting(machine.host):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(daemon.socket)
    container = with_interface(machine)
    call = {
        "version": 1,
        "call": rpc.ALLOCATE,
        "network": "n",
        "containerid": "c",
        "ifname": "eth0",
        "netns": container,
        "provided": {},
        "requested": [],
        "priority": 0,
        "seconds": 75,
    }
    fd = os.open(container, os.O_RDONLY)
    socket.send_fds(sock, [rpc.encode(call)], [fd])
    os.close(fd)
    wait_until(lambda: descriptors(daemon) > 10, "the daemon does not begin")
    machine.ok("dhcp", "STATUS", machine.network(ipam=daemon.ipam()))

    sock.close()

    daemon.process.await_line("the ADD was given up")


# --- CHECK, STATUS, GC -----------------------------------------------------------------------


def test_check_never_hangs(machine: Machine, server: Process, daemon: Daemon) -> None:
    """Unlike the reference: also when the interface is gone; and no lease is acquired."""
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    machine.do(container, "ip link delete eth0")
    own = machine.network(ipam=daemon.ipam(), prevResult=result)
    machine.ok("dhcp", "CHECK", own, container)
    error = machine.refused("dhcp", "CHECK", own, container, containerid="other")

    assert "eth0 has no lease: the daemon knows of none" in error["msg"]
    assert server.count("DHCPACK") == 1
    other = {**result, "ips": [{"address": "192.0.2.9/24"}]}
    told = machine.refused("dhcp", "CHECK", {**own, "prevResult": other}, container)["msg"]
    assert f"has a lease of {address_in(result)}/24, which prevResult lacks" in told
    machine.ok("macvlan", "DEL", config, container)
    server.await_line("DHCPRELEASE")


@pytest.mark.both_edges
def test_status(machine: Machine, daemon: Daemon) -> None:
    """Unlike the reference, it says that no daemon answers: none, one that hangs, another."""
    config = machine.network(ipam=daemon.ipam())
    machine.ok("dhcp", "STATUS", config)
    daemon.process.process.send_signal(signal.SIGSTOP)
    hangs = machine.refused("dhcp", "STATUS", config)
    daemon.process.end(signal.SIGKILL)
    refuses = machine.refused("dhcp", "STATUS", config)
    Path(daemon.socket).unlink()
    none = machine.refused("dhcp", "STATUS", config)
    with visiting(machine.host), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(daemon.socket)
        listener.listen()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(machine.refused, "dhcp", "STATUS", config)
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                theirs = answer.result()

    for error, reason in (
        (hangs, "it does not answer in time"),
        (refuses, "Connection refused"),
        (none, "No such file or directory"),
        (theirs, "another program is there, maybe the reference's daemon"),
    ):
        assert error["code"] == 50
        assert f"no DHCP daemon answers at '{daemon.socket}' ({reason}" in error["msg"]


def test_gc(machine: Machine, server: Process, daemon: Daemon, tmp_path: Path) -> None:
    """GC releases the lease of what is dead and not listed, without a record, too."""
    config = macvlan(machine, daemon)
    dead, _ = attached(machine, config, "dead")
    lost, _ = attached(machine, config, "lost")
    listed, first = attached(machine, config, "listed")
    living, second = attached(machine, config, "living")
    for path in files_below(machine.state_dir):
        os.utime(path, (time.time() - GRACE_SECONDS - 60,) * 2)
        if "lost" in Path(path).read_text():
            Path(path).unlink()
    with machine.process_in(living):
        for netns in (dead, lost, listed):
            machine.forget(netns)
        names = [{"containerID": "listed", "ifname": "eth0"}]
        machine.ok("macvlan", "GC", {**config, KEY: names})

    server.await_line("DHCPRELEASE", 2)
    left = sorted(f"{address_in(one)}" for one in (first, second))
    assert kept(daemon) == left
    wait_until(lambda: sorted(leases_of(tmp_path)) == left, "dnsmasq keeps leases")


def test_operators(machine: Machine, server: Process, daemon: Daemon) -> None:
    """explain shows the lease; audit and reclaim deal with a dead container's, daemon or not."""
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    told = json.dumps(asked(machine, "explain", "c1"))
    assert f"DHCP lease of {result['ips'][0]['address']}, given by 192.0.2.2 (bound, for" in told

    daemon.process.end()
    told = json.dumps(asked(machine, "explain", "c1", status=FOUND))
    assert "no daemon answers" in told
    machine.forget(container)
    age(machine)
    assert "record" in kinds(asked(machine, "audit", status=FOUND)["findings"])
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    age(machine)
    assert "record" in kinds(asked(machine, "reclaim")["removed"])
    assert not any("attachments" in path for path in files_below(machine.state_dir))
    daemon.start()
    server.await_line("DHCPRELEASE")


# --- who may call ----------------------------------------------------------------------------


def test_strangers(machine: Machine) -> None:
    """Only root is answered; garbage and silence do not disturb the daemon."""
    public = Path("/run", machine.name)  # no other user gets to tmp_path
    public.mkdir()
    with daemon_on(machine, public) as daemon:
        os.chmod(daemon.socket, 0o666)  # so that the daemon itself has to refuse
        script = (
            "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.settimeout(30); print(s.recv(9))"
        )
        words = ("setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script)
        assert machine.command(machine.host, *words, daemon.socket) == "b''\n"
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(daemon.socket)
        for data in (b"CONNECT /_goRPC_ HTTP/1.0\n\n", b"\0\0\0\2[]", b"\0\0\0\2{}", bytes(4)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(daemon.socket)
                sock.settimeout(30)
                sock.sendall(data)
                with suppress(ConnectionResetError):
                    assert b"answer" not in sock.recv(999)
        machine.ok("dhcp", "STATUS", machine.network(ipam=daemon.ipam()))
        silent.settimeout(30)
        assert silent.recv(9) == b""
        silent.close()


def test_daemon_of_another_user(machine: Machine) -> None:
    """The plugin does not believe it: it could give any address."""
    path = Path("/run", machine.name, "dhcp.sock")  # no other user gets to tmp_path
    path.parent.mkdir()
    os.chmod(path.parent, 0o777)
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('ready',flush=True); s.accept(); input()"
    )
    words = ("setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script)
    pipe = subprocess.PIPE
    with start_in(machine.host, *words, str(path), stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        ipam = {"type": "dhcp", "daemonSocketPath": str(path)}
        error = machine.refused("dhcp", "STATUS", machine.network(ipam=ipam))
        process.kill()

    assert "a process of user 65534 listens" in error["msg"]
