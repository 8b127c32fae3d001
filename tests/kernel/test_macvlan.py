"""macvlan on a real kernel: modes, master, MAC, addresses, what is refused, CHECK, DEL, GC, STATUS.

The master is the host's `uplink`; behind it are 192.0.2.2 and 2001:db8::2. "Unlike the reference"
begins the account of each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cni_common.kernel.link import Link
from cni_common.node.device import Device
from cni_common.node.liveness import GRACE_SECONDS
from commands import DONE, FOUND, LACKING
from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.test_commands import age as age_for_commands
from tests.kernel.test_commands import asked, kinds
from tests.kernel.test_rollback import TOLERATED_IN_ADD, TOLERATED_IN_DEL, calm, code_of, is_act
from tests.machine import REFERENCE_BIN, Json, Machine, addresses_of, error_of, files_below
from tests.resident import start_in
from tests.waits import GENEROUS, longer_if_busy, wait_until

alone = pytest.mark.without_engine(reason="fails in this process")

KEY = "cni.dev/valid-attachments"
IPV4: Json = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.99"}
IPV6: Json = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10"}
NOTHING: Json = {"leases": [], "records": [], "macvlans": []}
STATIC: Json = {"type": "static", "addresses": [{"address": "192.0.2.5/24"}]}
NO_ADDRESS_LEFT = {**IPV4, "rangeEnd": "192.0.2.10", "gateway": "192.0.2.10"}


def network(machine: Machine, *ranges: Json, **keys: Any) -> Json:
    """Return a macvlan configuration on `uplink`, with IPv4 unless told otherwise."""
    ipam = {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[one] for one in ranges or (IPV4,)],
        "routes": [{"dst": "0.0.0.0/0"}] if IPV4 in (ranges or (IPV4,)) else [{"dst": "::/0"}],
    }
    usual = {"type": "macvlan", "bridge": None, "isGateway": None, "master": "uplink"}
    return machine.network(**{**usual, "ipam": ipam, **keys})


def attached(machine: Machine, config: Json, containerid: str = "c1") -> tuple[str, Json]:
    """Return a container and the result of its ADD."""
    container = machine.container()
    calm(machine, container)  # detection of duplicates then takes milliseconds
    return container, machine.ok("macvlan", "ADD", config, container, containerid=containerid)


def macvlans(machine: Machine, netns: str) -> list[str]:
    """Return the names of the macvlans in a namespace."""
    links = machine.ip(netns, "link")
    return [one["ifname"] for one in links if one.get("linkinfo", {}).get("info_kind") == "macvlan"]


def left(machine: Machine, *containers: str) -> Json:
    """Return everything that belongs to an attachment."""
    return {
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
        "macvlans": [one for netns in containers for one in macvlans(machine, netns)],
    }


def eth0(machine: Machine, container: str) -> Json:
    """Return the container's interface."""
    link = machine.link(container, "eth0")
    assert link is not None
    return link


# --- ADD -----------------------------------------------------------------------------------


@pytest.mark.both_edges
def test_traffic(machine: Machine) -> None:
    """The first packets reach the neighbour and the outside, IPv4 and IPv6."""
    machine.outside()
    config = network(machine, IPV4, IPV6)
    first, result = attached(machine, config)
    _, other = attached(machine, config, "c2")

    assert all(machine.ping(first, address) for address in addresses_of(other))
    assert machine.ping(first, "192.0.2.2")
    assert machine.ping(first, "2001:db8::2")
    assert not machine.ping(machine.host, addresses_of(result)[0])  # as the kernel has it


@pytest.mark.parametrize("mode", ["", "bridge", "private", "vepa", "passthru"])
def test_modes(machine: Machine, mode: str) -> None:
    """Each mode is set, and CHECK knows it; neighbours reach each other in bridge mode alone."""
    machine.outside()
    config = network(machine, mode=mode)
    container, result = attached(machine, config)

    assert eth0(machine, container)["linkinfo"]["info_data"]["mode"] == (mode or "bridge")
    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    if mode != "passthru":  # in which a master has a single interface
        _, other = attached(machine, config, "c2")
        reached = machine.ping(container, addresses_of(other)[0])
        assert reached == (mode in ("", "bridge"))


def test_born_under_its_name(machine: Machine) -> None:
    """Unlike the reference, no temporary name is ever seen, neither on the host nor inside."""
    machine.outside()
    container = machine.container()
    with watching(machine, machine.host) as on_host, watching(machine, container) as inside:
        machine.ok("macvlan", "ADD", network(machine), container)

    assert on_host - {"uplink"} == {"lo"}
    assert inside == {"lo", "eth0"}


@contextmanager
def watching(machine: Machine, netns: str) -> Iterator[set[str]]:
    """Fill a set with the names of the interfaces of which the kernel tells meanwhile."""
    names: set[str] = set()
    marks = iter(range(50000, 60000))
    with start_in(netns, "ip", "-o", "monitor", "link", stdout=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        os.set_blocking(watch.stdout.fileno(), False)
        read, text = watch.stdout.read, bytearray()

        def has_told(mark: int) -> bool:
            machine.do(netns, f"ip link set lo mtu {mark}")
            text.extend(read() or b"")
            return b"mtu %d" % mark in text

        wait_until(lambda: has_told(next(marks)), "ip monitor sees nothing")
        yield names
        wait_until(lambda: has_told(next(marks)), "ip monitor does not see the end")
        watch.kill()
    names.update(re.findall(r"^(?:Deleted )?\d+: ([^:@]+)", text.decode(), re.M))


def test_result(machine: Machine) -> None:
    """The result has the interface as it is, with MTU, and every address on it."""
    machine.outside()
    config = network(machine, mtu=1400, dns={"domain": "a"}, bcqueuelen=3000)
    container, result = attached(machine, config)

    link = eth0(machine, container)
    assert result["interfaces"] == [
        {"name": "eth0", "mac": link["address"], "mtu": 1400, "sandbox": container}
    ]
    assert link["mtu"] == 1400
    assert link["linkinfo"]["info_data"]["bcqueuelen"] == 3000
    assert [ip["interface"] for ip in result["ips"]] == [0]
    assert result["dns"] == {"domain": "a"}


def test_dns_of_ipam(machine: Machine) -> None:
    """Unlike the reference, a network without `dns` keeps that of its IPAM plugin."""
    machine.outside()
    ipam = {**STATIC, "dns": {"nameservers": ["192.0.2.53"]}}

    _, result = attached(machine, network(machine, ipam=ipam))

    assert result["dns"] == {"nameservers": ["192.0.2.53"]}


@pytest.mark.parametrize("ipam", [None, {}])
def test_layer2(machine: Machine, ipam: Json | None) -> None:
    """Without IPAM the interface is up, has no address, and takes what it finds on the link."""
    machine.outside()
    config = network(machine, ipam=ipam)
    container, result = attached(machine, config)

    assert "ips" not in result
    assert "UP" in eth0(machine, container)["flags"]
    assert machine.addresses(container, "eth0") == []
    machine.do(container, "ip addr add 192.0.2.77/24 dev eth0")
    assert machine.ping(container, "192.0.2.2")
    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("macvlan", "DEL", config, container)
    assert left(machine, container) == NOTHING


@pytest.mark.parametrize(
    ("routes", "subnet", "found"),
    [
        (["default via 192.0.2.2"], IPV4, "uplink"),
        (["-6 default via 2001:db8::2"], IPV6, "uplink"),
        (["default via 192.0.2.2 metric 9", "default dev other metric 5"], IPV4, "other"),
        (["-6 default dev other", "default via 192.0.2.2"], IPV4, "uplink"),
        (["default dev other table 9", "default via 192.0.2.2"], IPV4, "uplink"),
    ],
)
def test_master_by_default_route(
    machine: Machine, routes: list[str], subnet: Json, found: str
) -> None:
    """Without `master` it is the interface of the best default route, IPv4 before IPv6."""
    machine.outside()
    machine.do(machine.host, "ip link add other type veth peer name rehto")
    machine.do(machine.host, "ip link set rehto up", "ip link set other up")
    for route in routes:
        family = route.startswith("-6 ")
        words = route.removeprefix("-6 ")
        machine.command(
            machine.host, "ip", *(["-6"] if family else []), "route", "add", *words.split()
        )
    config = network(machine, subnet, master=None)

    machine.ok("macvlan", "STATUS", config)
    container, result = attached(machine, config)

    below = machine.link(machine.host, found)
    assert below is not None
    assert eth0(machine, container)["link_index"] == below["ifindex"]
    # The default route may move: that changes nothing about the attachment.
    machine.do(machine.host, "ip route flush table main")
    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.ok("macvlan", "DEL", config, container)
    assert left(machine, container) == NOTHING


def test_sources_of_the_mac(machine: Machine) -> None:
    """The capability beats args.cni, that beats CNI_ARGS, and that the configuration."""
    machine.outside()
    by_runtime = {"runtimeConfig": {"mac": "02:00:00:00:00:13"}}
    by_args = {"args": {"cni": {"mac": "02:00:00:00:00:12"}}}
    seen = []
    for keys, args in (
        ({}, ""),
        ({}, "MAC=02:00:00:00:00:11;IP=192.0.2.40"),
        (by_args, "MAC=02:00:00:00:00:11"),
        ({**by_runtime, **by_args}, "MAC=02:00:00:00:00:11"),
    ):
        container, config = machine.container(), network(machine, mac="02-00-00-00-00-10", **keys)
        result = machine.ok("macvlan", "ADD", config, container, args=args)
        seen.append(eth0(machine, container)["address"])
        assert result["interfaces"][0]["mac"] == seen[-1]
        machine.ok("macvlan", "DEL", config, container)

    assert [mac[-2:] for mac in seen] == ["10", "11", "12", "13"]


def test_master_in_the_container(machine: Machine) -> None:
    """With linkInContainer the master is looked for in the container, also by its default route."""
    container = machine.container()
    machine.do(container, "ip link add net0 type veth peer name net9")
    machine.do(container, "ip link set net9 up", "ip link set net0 up")
    machine.do(container, "ip route add default dev net0")
    for number, master in enumerate(("net0", None)):
        config = network(machine, master=master, linkInContainer=True, ipam=STATIC)
        machine.ok("macvlan", "STATUS", config)
        name = f"c{number}"
        result = machine.ok("macvlan", "ADD", config, container, containerid=name)
        link, below = eth0(machine, container), machine.link(container, "net0")
        assert below is not None
        assert "link_netnsid" not in link
        assert link["link"] == below["ifname"]
        machine.ok(
            "macvlan", "CHECK", {**config, "prevResult": result}, container, containerid=name
        )
        machine.ok("macvlan", "DEL", config, container, containerid=name)
        assert left(machine, container) == NOTHING
    on_host = network(machine, linkInContainer=True)
    assert machine.refused("macvlan", "ADD", on_host, container)["code"] == 50


def test_on_another_macvlan(machine: Machine) -> None:
    """The kernel puts it on that one's master, which CHECK knows."""
    machine.outside()
    machine.do(machine.host, "ip link add link uplink name above type macvlan mode bridge")
    config = network(machine, master="above", ipam=STATIC)
    container, result = attached(machine, config)

    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.do(machine.host, "ip link add other type veth peer name rehto")
    elsewhere = {**config, "master": "other", "prevResult": result}
    assert "'other'" in machine.refused("macvlan", "CHECK", elsewhere, container)["msg"]


@pytest.mark.parametrize("state", ["down", "without a carrier"])
def test_ipv6_on_a_silent_master(machine: Machine, state: str) -> None:
    """Where no packet can pass, ADD does not wait for duplicates; all works once it can."""
    outside = machine.outside()
    where = machine.host if state == "down" else outside
    machine.do(where, "ip link set uplink down")
    config, container = network(machine, IPV4, IPV6), machine.container()
    machine.ok("macvlan", "VERSION", config)  # an engine has started then
    began = time.monotonic()
    result = machine.ok("macvlan", "ADD", config, container)

    assert time.monotonic() - began < longer_if_busy(1)
    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)
    machine.do(where, "ip link set uplink up")
    wait_until(lambda: machine.ping(container, "192.0.2.2"), "IPv4 stays silent")
    if state == "down":  # the outside has lost its address with the link
        wait_until(lambda: machine.ping(container, "2001:db8::2"), "IPv6 stays silent")


def test_passthru_takes_the_master(machine: Machine) -> None:
    """The interface has the MAC of the master, which no second one can be made on."""
    machine.outside()
    config = network(machine, mode="passthru")
    master = machine.link(machine.host, "uplink")
    assert master is not None
    container, result = attached(machine, {**config, "mac": master["address"]})

    assert result["interfaces"][0]["mac"] == master["address"]
    second = machine.container()
    error = machine.refused("macvlan", "ADD", config, second, containerid="c2")
    assert "'uplink'" in error["msg"]
    assert left(machine, second)["macvlans"] == []
    error = machine.refused("macvlan", "ADD", {**config, "mac": "02:00:00:00:00:01"}, second)
    assert error["code"] == 7
    machine.ok("macvlan", "DEL", config, container)
    machine.ok("macvlan", "ADD", config, second, containerid="c2")


def test_duplicate_address(machine: Machine) -> None:
    """An IPv6 address that a machine behind the master has is refused, and nothing is left."""
    outside = machine.outside()
    ipam = {"type": "static", "addresses": [{"address": "2001:db8::2/64"}]}
    container = machine.container()

    error = machine.refused("macvlan", "ADD", network(machine, ipam=ipam), container)

    assert "another host on the link uses 2001:db8::2" in error["msg"]
    assert left(machine, container) == NOTHING
    assert machine.ping(machine.host, "2001:db8::2")
    assert "2001:db8::2/64" in machine.addresses(outside, "uplink")


@pytest.mark.parametrize(("subnet", "accepted"), [(IPV4, "1"), (IPV6, "0")])
def test_routers_of_the_link(machine: Machine, subnet: Json, accepted: str) -> None:
    """The link's router may give IPv6 where IPAM gives none; where it does, it alone decides."""
    machine.outside()
    container, _ = attached(machine, network(machine, subnet))

    path = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
    assert machine.command(container, "cat", path).strip() == accepted


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [
        ({"master": "absent"}, 50, "no interface 'absent'"),
        ({"master": None}, 50, "no default route"),
        ({"master": "a/b"}, 7, '"master"'),
        ({"master": 5}, 7, "master"),
        ({"master": "lo"}, 999, "'lo'"),
        ({"master": "port0"}, 999, "port of a bridge"),
        ({"mode": "source"}, 7, "mode"),
        ({"mtu": 1501}, 7, "'uplink' has 1500 bytes"),
        ({"mtu": 67}, 7, "mtu"),
        ({"mtu": -1}, 7, "mtu"),
        ({"mtu": "1400"}, 7, "mtu"),
        ({"bcqueuelen": -1}, 7, "bcqueuelen"),
        ({"bcqueuelen": 2**32}, 7, "bcqueuelen"),
        ({"mac": "01:00:00:00:00:01"}, 7, "MAC"),
        ({"mac": "x"}, 7, "MAC"),
        ({"runtimeConfig": {"mac": "x"}}, 7, "MAC"),
        ({"linkInContainer": "yes"}, 7, "linkInContainer"),
        ({"ipam": {"type": "absent"}}, 50, "absent"),
        ({"ipam": {"type": "static"}}, 999, "missing IP config"),
        (
            {"mtu": 1279, "ipam": {"type": "static", "addresses": [{"address": "fd00::5/64"}]}},
            7,
            "1280",
        ),
        (
            {"ipam": {**STATIC, "routes": [{"dst": "10.3.0.0/16", "gw": "10.9.0.77"}]}},
            7,
            "cannot reach gateway 10.9.0.77",
        ),
    ],
)
def test_refused(machine: Machine, keys: Json, code: int, says: str) -> None:
    """A configuration that cannot work is refused.

    Unlike with the reference, no link is left when addresses fail.
    """
    machine.outside()
    machine.do(
        machine.host,
        "ip link add br0 type bridge",
        "ip link add port0 type veth peer name port9",
        "ip link set port0 master br0",
    )
    container = machine.container()

    error = machine.refused("macvlan", "ADD", network(machine, **keys), container)

    assert (error["code"], says in error["msg"]) == (code, True), error
    assert left(machine, container) == NOTHING
    assert [link["ifname"] for link in machine.ip(container, "link")] == ["lo"]


def test_no_address_left(machine: Machine) -> None:
    """Unlike the reference, an exhausted IPAM plugin leaves no interface behind."""
    machine.outside()
    config = network(machine, NO_ADDRESS_LEFT)
    container = machine.container()

    machine.refused("macvlan", "ADD", config, container)

    assert left(machine, container) == NOTHING


@pytest.mark.parametrize("netns", ["same", "other"])
def test_refused_twice(machine: Machine, netns: str) -> None:
    """An attachment that lives is neither replaced nor harmed by another ADD for it."""
    machine.outside()
    config = network(machine)
    container, _ = attached(machine, config)
    before = machine.snapshot(container)

    where = container if netns == "same" else machine.container()
    error = machine.refused("macvlan", "ADD", config, where)

    assert error["code"] == 4
    assert machine.snapshot(container) == before
    assert machine.ping(container, "192.0.2.2")


def test_remains_of_a_killed_add(machine: Machine) -> None:
    """The next ADD in a new namespace takes over the attachment of one that is gone."""
    machine.outside()
    config = network(machine)
    container, _ = attached(machine, config)
    machine.forget(container)

    second, _ = attached(machine, config)

    assert macvlans(machine, second) == ["eth0"]
    machine.ok("macvlan", "DEL", config, second)
    assert left(machine, second) == NOTHING


# --- CHECK ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("keys", [{}, {"mtu": 1400, "bcqueuelen": 2000}, {"ipam": None}])
def test_check_passes(machine: Machine, version: str, keys: Json) -> None:
    """An attachment that ADD has just made passes."""
    machine.outside()
    config = network(machine, cniVersion=version, **keys)
    container, result = attached(machine, config)

    machine.ok("macvlan", "CHECK", {**config, "prevResult": result}, container)


@pytest.mark.parametrize(
    ("where", "line", "says"),
    [
        ("container", "ip addr del 192.0.2.10/24 dev eth0", "192.0.2.10/24"),
        ("container", "ip route del default", "0.0.0.0/0"),
        ("container", "ip link set eth0 down", "down"),
        ("container", "ip link set eth0 mtu 1300", "MTU"),
        ("container", "ip link set eth0 address 02:00:00:00:00:99", "MAC"),
        ("container", "ip link set eth0 type macvlan mode private", "mode"),
        ("container", "ip link set eth0 type macvlan bcqueuelen 100", "bcqueuelen"),
        ("container", "ip link del eth0", "missing"),
        ("host", "ip link del uplink", "missing"),
        ("config", "other", "not on master 'other'"),
    ],
)
def test_check_tells(machine: Machine, where: str, line: str, says: str) -> None:
    """Each difference from the result of ADD is named."""
    machine.outside()
    machine.do(machine.host, "ip link add other type veth peer name rehto")
    config = network(machine, mtu=1400, bcqueuelen=2000)
    container, result = attached(machine, config)

    if where == "config":
        config["master"] = line
    else:
        machine.do(machine.host if where == "host" else container, line)

    error = machine.refused("macvlan", "CHECK", {**config, "prevResult": result}, container)
    assert says in error["msg"], error


def test_check_behind_tuning(machine: Machine) -> None:
    """Settings of tuning after macvlan are no difference, for CHECK and for DEL."""
    machine.outside()
    config = network(machine, mtu=1400)
    container, result = attached(machine, config)
    tuned = {"type": "tuning", "mtu": 1300, "mac": "02:00:00:00:00:77", "promisc": True}
    chained = {**config, **tuned, "dataDir": f"{machine.data_dir}-tuning"}
    last = machine.ok("tuning", "ADD", {**chained, "prevResult": result}, container)

    machine.ok("macvlan", "CHECK", {**config, "prevResult": last}, container)
    assert eth0(machine, container)["mtu"] == 1300
    machine.ok("macvlan", "DEL", config, container)  # by a runtime that lost the chain
    assert macvlans(machine, container) == []


def test_beside_another_network(machine: Machine) -> None:
    """As Multus calls it: a second interface beside that of the main network, DEL in reverse."""
    machine.outside()
    main = machine.network()
    container = machine.container()
    first = machine.ok("bridge", "ADD", main, container)
    config = network(machine, ipam=STATIC, name=f"{machine.name}-2", capabilities={"mac": True})
    config["runtimeConfig"] = {"mac": "02:00:00:00:00:55"}
    args = "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_UID=9"
    second = machine.ok("macvlan", "ADD", config, container, ifname="net1", args=args)
    before = machine.ip(container, "route")

    assert machine.ping(container, "192.0.2.2")
    assert [route["dev"] for route in before if route["dst"] == "default"] == ["eth0"]
    assert second["interfaces"][0]["mac"] == "02:00:00:00:00:55"
    machine.ok("macvlan", "CHECK", {**config, "prevResult": second}, container, ifname="net1")
    machine.ok("bridge", "CHECK", {**main, "prevResult": first}, container)
    machine.ok("macvlan", "DEL", config, container, ifname="net1", args=args)
    machine.ok("bridge", "CHECK", {**main, "prevResult": first}, container)
    machine.ok("bridge", "DEL", main, container)
    assert left(machine, container) == NOTHING


def test_check_of_another_kind(machine: Machine) -> None:
    """An interface of the same name, MAC and addresses that is no macvlan is told."""
    machine.outside()
    config = network(machine, ipam=STATIC)
    container, result = attached(machine, config)
    mac = result["interfaces"][0]["mac"]
    machine.do(
        container,
        "ip link del eth0",
        f"ip link add eth0 address {mac} type veth peer name peer0",
        "ip addr add 192.0.2.5/24 dev eth0",
        "ip link set eth0 up",
    )

    error = machine.refused("macvlan", "CHECK", {**config, "prevResult": result}, container)

    assert "no macvlan but 'veth'" in error["msg"]
    assert machine.refused("macvlan", "CHECK", config, container)["code"] == 7


# --- DEL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="same"),
        pytest.param({"ipam": None}, id="no-ipam"),
        pytest.param({"ipam": {"type": "absent"}}, id="other-ipam"),
        pytest.param({"master": "absent", "mode": 7, "mac": "x"}, id="invalid"),
        pytest.param({"prevResult": {"ips": [{"address": "x"}]}}, id="bad-prevResult"),
    ],
)
@pytest.mark.parametrize("namespace", ["there", "gone", "unknown"])
def test_delete(machine: Machine, change: Json, namespace: str) -> None:
    """DEL is complete with a changed configuration and without namespace, and repeatable."""
    machine.outside()
    config = network(machine)
    container, _ = attached(machine, config)
    containers = [container]
    if namespace == "gone":
        machine.forget(container)
        containers = []
    netns = container if namespace != "unknown" else ""

    machine.ok("macvlan", "DEL", {**config, **change}, netns)
    machine.ok("macvlan", "DEL", config, netns)

    assert left(machine, *containers) == NOTHING


@pytest.mark.parametrize("what", ["never", "no-master"])
def test_delete_with_nothing_known(machine: Machine, what: str) -> None:
    """DEL of what was never added succeeds, and needs no master."""
    config = network(machine, master=None if what == "no-master" else "uplink")

    machine.ok("macvlan", "DEL", config, machine.container())
    machine.ok("macvlan", "DEL", config, "/no/such/netns")
    machine.ok("macvlan", "DEL", {**config, "ipam": None}, "")

    assert left(machine) == NOTHING


@pytest.mark.parametrize(
    "line", ["ip link set eth0 address 02:00:00:00:00:99", "ip link set eth0 name other"]
)
def test_delete_after_the_container_changed_it(machine: Machine, line: str) -> None:
    """A container that has given its interface another MAC or name does not keep it."""
    machine.outside()
    config = network(machine)
    container, _ = attached(machine, config)
    machine.do(container, "ip link set eth0 down", line)

    machine.ok("macvlan", "DEL", config, container)

    assert left(machine, container) == NOTHING


def test_delete_of_an_interface_that_is_just_renamed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that renames it between the look and the deletion does not keep it."""
    machine.outside()
    config = network(machine)
    container, _ = attached(machine, config)
    find = Device._find

    def find_and_lose(self: Device, *args: Any) -> Link | None:
        found = find(self, *args)
        if found:
            machine.do(container, f"ip link set {found.name} down name other")
        return found

    monkeypatch.setattr(Device, "_find", find_and_lose)
    machine.ok("macvlan", "DEL", config, container)

    assert left(machine, container) == NOTHING


def test_delete_without_a_path(machine: Machine) -> None:
    """A namespace that only a process holds is found: its interface would block the master."""
    machine.outside()
    config = network(machine, mode="passthru")
    container, _ = attached(machine, config)
    process = start_in(container, "sleep", "infinity")
    try:
        machine.forget(container)
        machine.ok("macvlan", "DEL", config, container)

        assert macvlans(machine, f"/proc/{process.pid}/ns/net") == []
        attached(machine, config, "c2")
    finally:
        process.kill()
        process.wait()


def test_delete_without_the_record(machine: Machine) -> None:
    """A lost record loses nothing while the namespace is there."""
    machine.outside()
    config = network(machine)
    container, result = attached(machine, config)
    for path in files_below(machine.state_dir):
        Path(path).unlink()

    machine.ok("macvlan", "DEL", {**config, "prevResult": result}, container)

    assert left(machine, container) == NOTHING


def test_delete_of_the_reference(machine: Machine) -> None:
    """Attachments of the Go plugin are removed completely, and the other way round."""
    machine.outside()
    config = network(machine)
    path = f"{REFERENCE_BIN}"
    container = machine.container()
    result = machine.reference("macvlan", "ADD", config, container, path=path)

    machine.ok("macvlan", "DEL", {**config, "prevResult": result}, container)

    assert left(machine, container) == NOTHING
    machine.ok("macvlan", "ADD", config, container)
    machine.reference("macvlan", "DEL", config, container, path=path)
    assert (macvlans(machine, container), machine.leases()) == ([], [])


def test_delete_leaves_others_alone(machine: Machine) -> None:
    """A DEL without record spares a veth, and the interface of another network or container."""
    machine.outside()
    config = network(machine)
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(), container)
    machine.ok("macvlan", "DEL", {**config, "name": f"{machine.name}-2"}, container)
    assert machine.link(container, "eth0") is not None

    second, _ = attached(machine, config, "c2")
    machine.ok("macvlan", "DEL", {**config, "name": f"{machine.name}-2"}, second, containerid="c2")
    machine.ok("macvlan", "DEL", config, second, containerid="c3")
    assert macvlans(machine, second) == ["eth0"]
    assert machine.ping(second, "192.0.2.2")


# --- GC, STATUS, the commands, many at once --------------------------------------------------


def age(machine: Machine) -> None:
    """Make all records and leases older than GC's grace time."""
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for path in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(path, (path.stat().st_mtime - GRACE_SECONDS - 60,) * 2)


@pytest.mark.both_edges
def test_gc(machine: Machine) -> None:
    """GC removes what is not listed and dead, with its address; it spares the listed and living."""
    machine.outside()
    subnet = {"subnet": "10.119.8.0/24"}
    config = network(machine, subnet, ipam={**network(machine, subnet)["ipam"], "routes": []})
    dead, _ = attached(machine, config, "dead")
    listed, _ = attached(machine, config, "listed")
    living, _ = attached(machine, config, "living")
    with machine.process_in(living):
        machine.forget(dead)
        age(machine)
        names = [{"containerID": "listed", "ifname": "eth0"}]
        machine.ok("macvlan", "GC", {**config, KEY: names})

    assert machine.leases() == ["10.119.8.3", "10.119.8.4"]
    assert macvlans(machine, listed) == macvlans(machine, living) == ["eth0"]
    assert len([path for path in files_below(machine.state_dir) if "/macvlan-" in path]) == 2


@pytest.mark.both_edges
def test_status(machine: Machine) -> None:
    """Unlike the reference's, STATUS says when the master is missing, down or without a carrier."""
    config = network(machine)
    assert machine.refused("macvlan", "STATUS", config)["code"] == 50
    outside = machine.outside()
    machine.ok("macvlan", "STATUS", config)
    machine.ok("macvlan", "STATUS", {**config, "ipam": {}})

    assert machine.refused("macvlan", "STATUS", {**config, "mtu": 9000})["code"] == 7
    assert machine.refused("macvlan", "STATUS", network(machine, master=None))["code"] == 50
    machine.do(outside, "ip link set uplink down")
    error = machine.refused("macvlan", "STATUS", config)
    assert (error["code"], "without a carrier" in error["msg"]) == (51, True)
    machine.do(machine.host, "ip link set uplink down")
    error = machine.refused("macvlan", "STATUS", config)
    assert (error["code"], "is down" in error["msg"]) == (51, True)
    # As in the reference, an ADD does not wait for the master.
    attached(machine, config)


def test_status_of_a_full_range(machine: Machine) -> None:
    """STATUS asks the IPAM plugin."""
    machine.outside()
    config = network(machine, {**IPV4, "rangeEnd": "192.0.2.10"})
    attached(machine, config)

    assert machine.refused("macvlan", "STATUS", config)["code"] == 50
    missing = network(machine, ipam={"type": "absent"})
    assert machine.refused("macvlan", "STATUS", missing)["code"] == 50


@pytest.mark.without_engine("the commands know nothing of it")
def test_commands(machine: Machine) -> None:
    """`explain` shows the interface; `audit` and `reclaim` find the record of a dead container."""
    machine.outside()
    subnet = {"subnet": "10.119.9.0/24"}
    config = network(machine, subnet, ipam={**network(machine, subnet)["ipam"], "routes": []})
    container, _ = attached(machine, config, "dead")
    shown = ["address", "device", "mac", "mtu"]

    def objects(status: int) -> Json:
        (one,) = asked(machine, "explain", "dead", status=status)["attachments"]
        assert kinds(one["objects"]) == shown
        return {one["kind"]: one["present"] for one in one["objects"]}

    assert objects(DONE) == dict.fromkeys(shown, True)
    machine.do(container, "ip link set eth0 address 02:00:00:00:00:99")
    assert objects(FOUND) == {**dict.fromkeys(shown, True), "mac": False}
    machine.do(container, "ip link del eth0")
    assert objects(FOUND) == dict.fromkeys(shown, False)
    assert kinds(asked(machine, "audit", status=LACKING)["missing"]) == shown
    machine.forget(container)
    age_for_commands(machine)

    found = asked(machine, "audit", status=FOUND)["findings"]
    assert kinds(found) == ["lease", "record"]
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    age_for_commands(machine)
    assert kinds(asked(machine, "reclaim")["removed"]) == kinds(found)
    assert asked(machine, "audit")["findings"] == []


@pytest.mark.timeout(300)
def test_storm(machine: Machine) -> None:
    """Eight containers that come and go at once get addresses of their own, and leave nothing."""
    machine.outside()
    config = network(machine)

    def rounds(number: int) -> list[str]:
        container, seen = machine.container(), []
        for _ in range(3):
            result = machine.ok("macvlan", "ADD", config, container, containerid=f"c{number}")
            seen += addresses_of(result)
            checked = {**config, "prevResult": result}
            machine.ok("macvlan", "CHECK", checked, container, containerid=f"c{number}")
            machine.ok("macvlan", "DEL", config, container, containerid=f"c{number}")
        return [*seen, *macvlans(machine, container)]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(rounds, range(8)))

    assert [len(one) for one in seen] == [3] * 8
    assert left(machine) == NOTHING


# --- failures ------------------------------------------------------------------------------


def state(machine: Machine, container: str) -> Json:
    """Return what an ADD can change, without the files that stay as long as the network."""
    snapshot = machine.snapshot(container)
    files = snapshot["files"]
    snapshot["files"] = {
        path: text
        for path, text in files.items()
        if not os.path.basename(path).startswith(("last_reserved_ip.", "lock"))
    }
    return snapshot


def is_not_disk(what: str) -> bool:
    """Tell whether an operation is none of host-local's."""
    return not what.startswith("disk")


def arrange(machine: Machine) -> str:
    """Return a container on a machine with an outside."""
    machine.outside()
    container = machine.container()
    calm(machine, container)
    return container


@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("keys", [{}, {"ipam": None, "bcqueuelen": 99}], ids=["ipam", "layer2"])
def test_any_failure_of_an_add_is_taken_back(machine: Machine, keys: Json) -> None:
    """If any operation fails, ADD says so, all is as it was, and the next ADD succeeds."""
    container, config = arrange(machine), network(machine, IPV4, IPV6, **keys)
    before, failed = state(machine, container), 0

    for fault in faults(rehearsal(machine, "macvlan", "ADD", config, container), only=is_not_disk):
        with faulty(machine, fault) as host:
            reply = machine.invoke("macvlan", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            error = error_of(reply.stdout)
            assert INJECTED in error["msg"] or "uplink" in error["msg"], (fault.what, error)
            assert state(machine, container) == before, (fault.what, error)
            machine.ok("macvlan", "ADD", config, container)
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
        machine.ok("macvlan", "DEL", config, container)

    assert failed > 4
    machine.ok("macvlan", "DEL", config, container)
    assert state(machine, container) == before


@alone
@pytest.mark.timeout(300)
def test_terminated_add_is_taken_back(machine: Machine) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    container, config = arrange(machine), network(machine)
    before = state(machine, container)

    keys: Json = {"terminate": True, "only": lambda what: is_act(what) and "disk" not in what}
    for fault in faults(rehearsal(machine, "macvlan", "ADD", config, container), **keys):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("macvlan", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert state(machine, container) == before, fault.what

    assert len(fault.done) > 5


@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("namespace", ["there", "unknown"])
def test_killed_add_is_cleaned_up(machine: Machine, namespace: str) -> None:
    """Wherever a SIGKILL hits an ADD, DEL removes what it leaves, with or without a path."""
    container, config = arrange(machine), network(machine)
    before = state(machine, container)

    for fault in faults(
        rehearsal(machine, "macvlan", "ADD", config, container), kill=True, only=is_act
    ):
        was_killed = killed(machine, config, container, fault)
        machine.ok("macvlan", "DEL", config, container if namespace == "there" else "")
        assert state(machine, container) == before, fault.at
        if not was_killed:
            break

    assert not was_killed
    assert fault.at > 5


def killed(machine: Machine, config: Json, container: str, fault: Fault) -> bool:
    """Run an ADD in a process that a fault kills; False when it never came to that."""

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok("macvlan", "ADD", config, container, host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_failed_delete_is_told_and_can_be_repeated(machine: Machine, recorded: bool) -> None:
    """If any operation fails, DEL says so; then all goes."""
    container, config = arrange(machine), network(machine)
    before, failed = state(machine, container), 0

    def unrecord() -> None:
        for path in files_below(machine.state_dir) if not recorded else ():
            if "/macvlan-" in path:
                Path(path).unlink()

    once = rehearsal(machine, "macvlan", "DEL", config, container, unrecord)
    for fault in faults(once, only=lambda what: what != "open namespace" and is_not_disk(what)):
        result = machine.ok("macvlan", "ADD", config, container)
        unrecord()
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("macvlan", "DEL", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code or not re.fullmatch(TOLERATED_IN_DEL, fault.what):
            failed += 1
            assert error_of(reply.stdout), fault.what
            machine.ok("macvlan", "DEL", {**config, "prevResult": result}, container)
        assert state(machine, container) == before, fault.what

    assert failed > 1
    machine.ok("macvlan", "DEL", config, container)
    assert state(machine, container) == before
