"""DHCPv6 on a real kernel, beside dnsmasq and ISC dhcpd: what differs from DHCPv4.

The server is behind the host's `uplink`, on which containers have macvlans unless told otherwise.
"""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cni_common.kernel.netns import NetNS
from cni_common.spec.errors import CNIError
from commands import DONE
from plugins.dhcp import client, rpc
from plugins.dhcp.daemon.v6.packet import Association, Message
from plugins.dhcp.daemon.v6.talk import Talk
from tests.dhcp import Daemon, Process, daemon_on, dhcpd, dnsmasq, kept, pull_the_cable, running
from tests.kernel.test_commands import asked
from tests.machine import Json, Machine, files_below
from tests.resident import visiting
from tests.waits import wait_until

RANGE = "2001:db8::50,2001:db8::59,64,1h"
RANGE4 = "192.0.2.50,192.0.2.59,255.255.255.0,1h"
SUBNET = "subnet6 2001:db8::/64 { range6 2001:db8::50 2001:db8::59; }"
SHORT = "preferred-lifetime 3; option dhcp-renewal-time 1; option dhcp-rebinding-time 2;"


@pytest.fixture
def daemon(machine: Machine, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the machine's host."""
    with daemon_on(machine, tmp_path, "-timeout=200ms") as made:
        yield made


@pytest.fixture
def outside(machine: Machine) -> str:
    """The namespace behind the host's `uplink`."""
    return machine.outside()


@pytest.fixture
def server(outside: str, tmp_path: Path) -> Iterator[Process]:
    """dnsmasq there, which also advertises itself as the router."""
    with running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE}", "--enable-ra")) as made:
        yield made


def macvlan(machine: Machine, daemon: Daemon, family: str = "ipv6", **keys: Any) -> Json:
    """Return a macvlan configuration on `uplink` with the daemon's leases."""
    usual = {"type": "macvlan", "bridge": None, "isGateway": None, "master": "uplink"}
    return machine.network(**{**usual, "ipam": daemon.ipam(family=family), **keys})


def container_of(machine: Machine, *, detects: bool = False) -> str:
    """Return a container, in which no address is looked for elsewhere unless it `detects`."""
    container = machine.container()
    if not detects:
        default = "/proc/sys/net/ipv6/conf/default"
        for name in ("dad_transmits", "router_solicitation_delay"):
            machine.command(container, "sh", "-c", f"echo 0 >{default}/{name}")
    return container


def attached(machine: Machine, config: Json, containerid: str = "c1") -> tuple[str, Json]:
    """Return a container and the result of its ADD."""
    container = container_of(machine)
    return container, machine.ok(config["type"], "ADD", config, container, containerid=containerid)


def global_addresses(machine: Machine, container: str) -> list[str]:
    """Return the IPv6 addresses of a container's `eth0` but for its link-local one."""
    found = machine.addresses(container, "eth0")
    return [one for one in found if ":" in one and not one.startswith("fe80:")]


@pytest.mark.both_edges
def test_add_and_delete(machine: Machine, server: Process, daemon: Daemon) -> None:
    """An address alone is given; the routers' advertisements have the routes, and no address."""
    config = macvlan(machine, daemon)
    container, result = attached(machine, config)
    (ip,) = result["ips"]
    assert ip["address"].startswith("2001:db8::5")
    assert ip["address"].endswith("/128")
    assert "gateway" not in ip
    assert result.get("routes", []) == []
    assert global_addresses(machine, container) == [ip["address"]]
    wait_until(lambda: machine.ping(container, "2001:db8::2"), "no router is heeded")
    assert global_addresses(machine, container) == [ip["address"]]
    (default,) = machine.ip(container, "-6", "route", "show", "default")
    assert default["protocol"] == "ra"

    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("macvlan", "DEL", config, container)
    server.await_line("DHCPRELEASE")

    assert kept(daemon) == list(files_below(machine.state_dir)) == []
    machine.ok("macvlan", "DEL", config, container)


def test_everything_that_a_server_says(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """dhcpd wants four messages; DNS is in the result, NTP servers are told to people."""
    statements = (
        "option dhcp6.name-servers 2001:db8::2, 2001:db8::3;",
        'option dhcp6.domain-search "eng.example.com", "example.org";',
        "option dhcp6.ntp code 56 = string;",
        "option dhcp6.ntp 00:01:00:10:20:01:0d:b8:00:00:00:00:00:00:00:00:00:00:00:04;",
    )
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, *statements, seconds=60, version=6)) as server:
        container, result = attached(machine, config)
        assert [server.count(word) for word in ("Solicit", "Request message")] == [1, 1]
        assert result["dns"] == {
            "nameservers": ["2001:db8::2", "2001:db8::3"],
            "search": ["eng.example.com", "example.org"],
        }
        told = json.dumps(asked(machine, "explain", "c1", status=DONE))
        assert f"DHCP lease of {result['ips'][0]['address']}, given by fe80::" in told
        assert "ntp ['2001:db8::4']" in told
        again = machine.ok("dhcp", "ADD", config, container)
        assert again["ips"][0]["address"] == result["ips"][0]["address"]
        assert server.count("Solicit") == 1
        machine.ok("macvlan", "DEL", config, container)
        server.await_line("Release message")


def test_bridge(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """A bridge's container heeds the network's routers, too; its addresses are looked for."""
    config = machine.network(ipam=daemon.ipam(family="both"), isGateway=None)
    machine.do(
        machine.host,
        "ip link add br0 type bridge",
        "ip link set uplink master br0",
        "ip link set br0 up",
    )
    ranges = (f"--dhcp-range={RANGE4}", f"--dhcp-range={RANGE}", "--enable-ra")
    with running(dnsmasq(outside, tmp_path, *ranges)) as server:
        container = container_of(machine, detects=True)
        result = machine.ok("bridge", "ADD", config, container)
        assert len(result["ips"]) == 2
        assert server.count("DHCPSOLICIT") == server.count("DHCPDISCOVER") == 1
        assert machine.ping(container, "192.0.2.2")
        wait_until(lambda: machine.ping(container, "2001:db8::2"), "no router is heeded")
        path = "/proc/sys/net/ipv6/conf/eth0/"
        words = [f"{path}{name}" for name in ("accept_ra", "autoconf", "accept_dad")]
        assert machine.command(container, "cat", *words).split() == ["2", "0", "1"]
        machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)
        machine.ok("bridge", "DEL", config, container)
        server.await_line("DHCPRELEASE", 2)
    assert kept(daemon) == []


# --- both families ---------------------------------------------------------------------------


def test_both_or_none(machine: Machine, outside: str, tmp_path: Path) -> None:
    """Without a server of one family ADD fails, and the lease of the other is given back."""
    with daemon_on(machine, tmp_path, "-resendtimeout=4s", "-timeout=200ms") as daemon:
        config = macvlan(machine, daemon, "both")
        for given, wants in ((RANGE4, "DHCPv6"), (RANGE, "DHCP")):
            with running(dnsmasq(outside, tmp_path, f"--dhcp-range={given}")) as server:
                container = container_of(machine)
                before = machine.snapshot(container)
                error = machine.refused("macvlan", "ADD", config, container)
                assert error["msg"] == f"no {wants} server has answered (interface 'eth0')"
                assert error["code"] == 11
                server.await_line("DHCPRELEASE")
                assert machine.snapshot(container) == before
                assert kept(daemon) == list(files_below(machine.state_dir)) == []


def test_the_daemon_gives_all_back_by_itself(
    machine: Machine, outside: str, tmp_path: Path
) -> None:
    """The lease of the other family, also if the plugin was killed meanwhile."""
    container = neighbour_with(machine)
    given: Json = {
        "network": "n",
        "containerid": "c",
        "ifname": "eth0",
        "netns": container,
        "provided": {},
        "requested": [1],
        "priority": 0,
        "seconds": 75,
        "family": "both",
    }
    with (
        daemon_on(machine, tmp_path, "-resendtimeout=4s", "-timeout=200ms") as daemon,
        running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE4}")) as server,
        open(container, "rb") as namespace,
    ):
        with pytest.raises(CNIError, match="no DHCPv6 server has answered"):
            client.call(
                daemon.socket, rpc.ALLOCATE_FAMILY, given, seconds=60, netns=namespace.fileno()
            )
        server.await_line("DHCPRELEASE")
        wait_until(lambda: not kept(daemon), "the lease stays")

        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(daemon.socket)
            call = {"version": 1, "call": rpc.ALLOCATE_FAMILY, **given}
            socket.send_fds(sock, [rpc.encode(call)], [namespace.fileno()])
            wait_until(
                lambda: kept(daemon) or server.count("DHCPRELEASE") > 1, "there is no lease"
            )  # the second one on a machine so busy that the time of the ADD is over by then
        server.await_line("DHCPRELEASE", 2)
        wait_until(lambda: not kept(daemon), "the lease stays")


def test_both_families(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """CHECK and explain know both; DEL without a daemon has the next one release both."""
    config = macvlan(machine, daemon, "both")
    ranges = (f"--dhcp-range={RANGE4}", f"--dhcp-range={RANGE}")
    dns = ("--dhcp-option=6,192.0.2.2", "--dhcp-option=option6:dns-server,[2001:db8::2]")
    with running(dnsmasq(outside, tmp_path, *ranges, *dns)) as server:
        container, result = attached(machine, config)
        first, second = (ip["address"] for ip in result["ips"])
        assert result["dns"]["nameservers"] == ["192.0.2.2", "2001:db8::2"]
        assert len(kept(daemon)) == 2
        told = json.dumps(asked(machine, "explain", "c1", status=DONE))
        assert f"DHCP lease of {first}, given by 192.0.2.2 (bound" in told
        assert f"DHCP lease of {second}, given by fe80::" in told
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        six = {**config, "ipam": daemon.ipam(family="ipv6"), "prevResult": result}
        machine.ok("macvlan", "CHECK", six, container)
        wrong = {**result, "ips": result["ips"][:1]}
        told = machine.refused("dhcp", "CHECK", {**config, "prevResult": wrong}, container)["msg"]
        assert f"has a lease of {second}, which prevResult lacks" in told
        daemon.process.end(signal.SIGKILL)

        machine.ok("macvlan", "DEL", config, container)

        assert list(files_below(machine.state_dir)) == []
        machine.forget(container)
        daemon.start()
        server.await_line("DHCPRELEASE", 2)
        wait_until(lambda: not kept(daemon), "a lease stays")


# --- servers as they are ---------------------------------------------------------------------


def test_pool_exhausted(machine: Machine, outside: str, tmp_path: Path) -> None:
    """The ADD fails with the server's reason, and leaves nothing; a DEL makes room."""
    range_of_one = "--dhcp-range=2001:db8::50,2001:db8::50,64,1h"
    with (
        daemon_on(machine, tmp_path, "-resendtimeout=3s", "-timeout=200ms") as daemon,
        running(dnsmasq(outside, tmp_path, range_of_one)) as server,
    ):
        config = macvlan(machine, daemon)
        first, _ = attached(machine, config)
        container = container_of(machine)
        before = machine.snapshot(container)

        error = machine.refused("macvlan", "ADD", config, container, containerid="c2")

        assert error["code"] == 11
        assert "gives no address: NoAddrsAvail" in error["msg"]
        assert machine.snapshot(container) == before
        assert kept(daemon) == ["2001:db8::50"]
        machine.ok("macvlan", "DEL", config, first)
        server.await_line("DHCPRELEASE")
        machine.ok("macvlan", "ADD", config, container, containerid="c2")


def test_two_servers(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """The one with the higher preference gives the address, and has it back."""
    other, second = machine.container(), tmp_path / "second"
    second.mkdir()
    words = f"ip link add behind type veth peer name uplink netns {other}".split()
    machine.command(machine.host, *words)
    machine.without_detection(other, "uplink")
    machine.do(other, "ip addr add 2001:db8::3/64 dev uplink", "ip link set uplink up")
    machine.do(
        machine.host,
        "ip link add br1 type bridge",
        "ip link set uplink master br1",
        "ip link set behind master br1",
        "ip link set behind up",
        "ip link set br1 up",
    )
    machine.await_use(other, "uplink")
    preferred = (SUBNET.replace("db8::5", "db8::15"), "option dhcp6.preference 200;")
    config = macvlan(machine, daemon, master="br1")
    with (
        running(dhcpd(outside, tmp_path, SUBNET, seconds=60, version=6)) as first,
        running(dhcpd(other, second, *preferred, seconds=60, version=6)) as chosen,
    ):
        container, result = attached(machine, config)
        assert result["ips"][0]["address"].startswith("2001:db8::15")
        machine.ok("macvlan", "DEL", config, container)
        chosen.await_line("Release message")
        first.await_line("Sending Advertise")
        assert first.count("Sending Reply") == 0


def test_server_gone_at_renewal(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """The address goes with its lease, and is put back when a server gives it again.

    The server has lost its leases meanwhile.
    """
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        container, result = attached(machine, config)
        server.await_line("Renew message")  # it is renewed
        server.end(signal.SIGKILL)
    (ip,) = result["ips"]

    daemon.process.await_line("is removed: the lease has expired")
    wait_until(lambda: not global_addresses(machine, container), "the address stays")
    link = machine.link(container, "eth0")
    assert link
    assert "UP" in link["flags"]
    told = machine.refused("macvlan", "CHECK", {**config, "prevResult": result}, container)["msg"]
    assert "has no IPv6 lease: the lease has expired" in told

    (tmp_path / "dhcpd.leases").unlink()
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)):
        wait_until(lambda: global_addresses(machine, container), "the address is not put back")
        assert global_addresses(machine, container) == [ip["address"]]
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        machine.ok("macvlan", "DEL", config, container)


def test_server_restarted_with_an_empty_lease_file(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """The container keeps its address: the server gives anew what it does not know."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        container, result = attached(machine, config)
        server.end(signal.SIGKILL)
    (tmp_path / "dhcpd.leases").unlink()
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        server.await_line("Renew message|Rebind message", 2)
        assert global_addresses(machine, container) == [result["ips"][0]["address"]]
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        assert daemon.process.count("is removed") == 0


def test_switch_rebooted(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """The server is asked whether the address is right; one of another link takes it away."""
    config = macvlan(machine, daemon)
    keep = "/proc/sys/net/ipv6/conf/uplink/keep_addr_on_down"
    machine.command(outside, "sh", "-c", f"echo 1 >{keep}")
    with running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE}")) as server:
        container, result = attached(machine, config)
        pull_the_cable(machine, outside)
        server.await_line("DHCPCONFIRM")
        assert global_addresses(machine, container) == [result["ips"][0]["address"]]
        server.end()
    machine.do(outside, "ip addr add 2001:db8:9::2/64 dev uplink nodad")
    machine.do(outside, "ip addr del 2001:db8::2/64 dev uplink")
    other = "--dhcp-range=2001:db8:9::50,2001:db8:9::59,64,1h"
    with running(dnsmasq(outside, tmp_path, other)) as server:
        pull_the_cable(machine, outside)
        daemon.process.await_line("is removed: DHCPv6 server fe80::.* refuses: NotOnLink")
        wait_until(lambda: not global_addresses(machine, container), "the address stays")
        server.await_line("DHCPADVERTISE")
        assert server.count("DHCPREPLY.*2001:db8:9::") == 0
        machine.ok("macvlan", "DEL", config, container)


def test_duplicates(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """An address that another machine has is declined; the next ADD gets another one."""
    addresses = [f"2001:db8::{number}/64" for number in range(50, 60)]
    neighbour = neighbour_with(machine, *addresses)
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, seconds=60, version=6)) as server:
        container = container_of(machine, detects=True)
        error = machine.refused("macvlan", "ADD", config, container)
        assert "another host on the link uses 2001:db8::5" in error["msg"]
        server.await_line("Decline message")
        assert kept(daemon) == list(files_below(machine.state_dir)) == []
        machine.do(neighbour, "ip link delete eth0")
        (declined,) = re.findall(r"uses (\S+) of", error["msg"])
        result = machine.ok("macvlan", "ADD", config, container)
        assert result["ips"][0]["address"] != f"{declined}/128"


def neighbour_with(machine: Machine, *addresses: str) -> str:
    """Return a namespace on the link of `uplink` that has these addresses, come what may."""
    neighbour = container_of(machine)
    words = f"ip link add link uplink name eth0 netns {neighbour} type macvlan mode bridge"
    machine.command(machine.host, *words.split())
    machine.do(neighbour, "ip link set eth0 up")
    machine.do(neighbour, *(f"ip addr add {one} dev eth0 nodad" for one in addresses))
    return neighbour


def test_an_address_that_was_taken_meanwhile(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """It is put back when the server gives it again, looked for elsewhere, and declined."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        container = container_of(machine, detects=True)
        result = machine.ok("macvlan", "ADD", config, container)
        server.end(signal.SIGKILL)
    daemon.process.await_line("is removed: the lease has expired")
    neighbour_with(machine, result["ips"][0]["address"])

    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        server.await_line("Decline message")
        daemon.process.await_line("is removed: another machine of the link uses it")
        wait_until(lambda: not global_addresses(machine, container), "the address stays")
        machine.ok("macvlan", "DEL", config, container)


def test_flood(machine: Machine, outside: str) -> None:
    """However much comes from a neighbour, it is read in portions, and none of it is lost."""
    netns = NetNS(machine.host)
    uplink = netns.netlink.link("uplink")
    assert uplink is not None
    talk = Talk(netns, uplink)
    wait_until(talk.is_ready, "there is no link-local address")
    with visiting(outside), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        target = talk.sock.getsockname()
        for _ in range(100):
            sender.sendto(b"x", (target[0], 546, 0, socket.if_nametoindex("uplink")))
    try:
        portions = [len(list(talk.receive())) for _ in range(3)]
    finally:
        talk.close()

    assert portions == [64, 36, 0]


def test_hostile_neighbours(machine: Machine, outside: str, daemon: Daemon, tmp_path: Path) -> None:
    """Any number of messages that are no answer is ignored; the lease comes all the same."""
    config = macvlan(machine, daemon)
    container = container_of(machine)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(machine.ok, "macvlan", "ADD", config, container)
        found = partial(link_local, machine, container)
        wait_until(found, "there is no link-local address")
        source = found()
        with visiting(outside), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            index = socket.if_nametoindex("uplink")
            lie = Message(7, 1, b"\0\4who", b"\0\4me", (Association(1),)).encode()
            for data in (b"", b"\2", lie, lie[:-1], bytes(9999), b"\x0c" + bytes(60)) * 99:
                with suppress(ConnectionRefusedError):
                    sender.sendto(data, (source, 546, 0, index))
        with running(dnsmasq(outside, tmp_path, f"--dhcp-range={RANGE}")):
            assert adding.result()["ips"]
    assert not any("Traceback" in line for line in daemon.process.lines)
    machine.ok("macvlan", "DEL", config, container)


def link_local(machine: Machine, container: str) -> str:
    """Return the link-local address of a container's `eth0`, "" as long as there is none."""
    links = [one for one in machine.ip(container, "addr") if one["ifname"] == "eth0"]
    addresses = [one for link in links for one in link["addr_info"]]
    found = [one["local"] for one in addresses if one["local"].startswith("fe80:")]
    return str(found[0]) if found else ""


# --- the daemon's life -----------------------------------------------------------------------


def test_daemon_killed_and_restarted(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """It asks whether its leases are right, goes on renewing, and releases at DEL."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        container, result = attached(machine, config)
        daemon.process.end(signal.SIGKILL)
        seen = server.count("Renew message")
        daemon.start("-timeout=200ms")
        server.await_line("Confirm message")
        server.await_line("Renew message", seen + 2)
        machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
        assert global_addresses(machine, container) == [result["ips"][0]["address"]]
        machine.ok("macvlan", "DEL", config, container)
        server.await_line("Release message")
    assert kept(daemon) == []


def test_container_gone_without_a_word(
    machine: Machine, outside: str, daemon: Daemon, tmp_path: Path
) -> None:
    """Its lease is given back from the host, over the master; so it is after a reboot."""
    config = macvlan(machine, daemon)
    with running(dhcpd(outside, tmp_path, SUBNET, SHORT, version=6)) as server:
        container, _ = attached(machine, config)
        machine.forget(container)
        server.await_line("Release message")
        wait_until(lambda: not kept(daemon), "the lease stays")
        machine.ok("macvlan", "DEL", config)
        assert list(files_below(machine.state_dir)) == []

        attached(machine, config, "c2")
        daemon.process.end()
        (path,) = daemon.leases.glob("*.json")
        path.write_text(re.sub(r'"boot_id":"[^"]*"', '"boot_id":"earlier"', path.read_text()))
        daemon.start()
        server.await_line("Release message", 2)
        wait_until(lambda: not kept(daemon), "the lease stays")


def test_no_ipv6(machine: Machine, tmp_path: Path) -> None:
    """A container in which IPv6 was switched off gets it; one without an address is told so."""
    with daemon_on(machine, tmp_path, "-resendtimeout=200ms", "-timeout=100ms") as daemon:
        config = macvlan(machine, daemon)
        machine.outside()
        container = container_of(machine)
        default = "/proc/sys/net/ipv6/conf/default"
        machine.command(container, "sh", "-c", f"echo 1 >{default}/disable_ipv6")
        error = machine.refused("macvlan", "ADD", config, container)
        assert error["msg"] == "no DHCPv6 server has answered (interface 'eth0')"
        machine.command(container, "sh", "-c", f"echo 1 >{default}/addr_gen_mode")
        error = machine.refused("macvlan", "ADD", config, container)
        assert "cannot send SOLICIT: the interface has no link-local address yet" in error["msg"]
