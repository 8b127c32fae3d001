"""sbr on a real kernel: two interfaces of a container, each answering for itself.

The interfaces are net1 and net2, ports of br1 and br2; behind the host is 192.0.2.2. "Unlike the
reference" begins the account of each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from commands import DONE, FOUND
from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel import secondary
from tests.kernel.secondary import network, routes, rules
from tests.kernel.sweeps import faults
from tests.kernel.test_commands import age, asked, kinds
from tests.kernel.test_rollback import calm, code_of, is_act
from tests.machine import REFERENCE_BIN, Json, Machine, error_of, files_below
from tests.scope import ALL
from tests.waits import GENEROUS

alone = pytest.mark.without_engine(reason="fails in this process")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
OPEN = "open namespace"  # the next user opens it again


class Net(secondary.Net):
    """An interface with sbr."""

    def __init__(
        self, machine: Machine, container: str, number: int = 1, *subnets: str, **keys: Any
    ) -> None:
        super().__init__(machine, container, number, *subnets, type="sbr", **keys)


def state(machine: Machine, container: str) -> Json:
    """Return rules and routes of all tables, and the records of sbr."""
    return {
        "rules": rules(machine, container),
        "routes": routes(machine, container, "all"),
        "records": [path for path in files_below(machine.state_dir) if "/sbr-" in path],
    }


@pytest.fixture
def container(machine: Machine) -> str:
    """A container whose IPv6 addresses can be used at once."""
    made = machine.container()
    calm(machine, machine.host, made)
    return made


# --- ADD -----------------------------------------------------------------------------------


@pytest.mark.both_edges
def test_answers_by_source(machine: Machine, container: str) -> None:
    """Each interface answers for itself to a host that drops what comes by the wrong one."""
    outside = machine.outside()
    machine.do(outside, "ip route add 10.7.0.0/16 via 192.0.2.1")
    slow = network(machine, 1)
    slow["ipam"]["routes"][0]["priority"] = 100
    first, second = Net(machine, container, 1, before=slow), Net(machine, container, 2)
    machine.command(
        machine.host,
        "sh",
        "-c",
        "echo 1 >/proc/sys/net/ipv4/ip_forward;"
        "for bridge in br1 br2; do echo 1 >/proc/sys/net/ipv4/conf/$bridge/rp_filter; done",
    )
    # The default route of net2 has taken over from that of net1.
    assert machine.ping(outside, "10.7.2.2")
    assert not machine.ping(outside, "10.7.1.2")

    assert second.add() == second.result

    assert machine.ping(outside, "10.7.1.2")
    assert machine.ping(outside, "10.7.2.2")
    assert machine.ping(container, "192.0.2.2", "-I", "10.7.2.2")
    assert machine.ping(container, "192.0.2.2")  # by net1, whose routes are in the main table
    assert routes(machine, container) == [
        "10.7.1.0/24 dev net1 proto kernel scope link src 10.7.1.2",
        "default via 10.7.1.1 dev net1 metric 100",
    ]
    for net in (first, second):
        net.call("CHECK", {**net.before, "prevResult": net.result})
    second.check()


def test_versions(machine: Machine, container: str) -> None:
    """Every version of the specification is served, and prevResult passed on."""
    for version in VERSIONS:
        net = Net(machine, container, before=network(machine, 1, cniVersion=version))
        assert net.add() == net.result
        assert rules(machine, container) == ["10.7.1.2:100"]
        if version >= "0.4.0":
            net.check()
        net.delete()
        net.call("DEL", net.before)


def test_tables(machine: Machine, container: str) -> None:
    """Unlike the reference, no table is chosen that another table's routes or reserved ids use."""
    machine.do(
        container,
        "ip link set lo up",
        "ip route add 198.51.100.0/24 dev lo table 100",
        "ip -6 route add 2001:db8:1::/64 dev lo table 101",
        "ip rule add from 198.51.100.7 lookup 102",
        "ip -6 rule add from 2001:db8:1::7 lookup 103",
        "ip rule add from 198.51.100.7 lookup 105",
    )
    before = state(machine, container)
    net = Net(machine, container, 1, "10.7.1.0/24", "10.8.1.0/24", "fd00:7::/64")
    net.add()

    added = [one for one in rules(machine, container) if one not in before["rules"]]
    assert added == ["10.8.1.2:106", "10.7.1.2:104", "fd00:7::2:107"]
    assert routes(machine, container, "104") == [
        "10.7.1.0/24 dev net1 proto kernel scope link src 10.7.1.2",
        "default via 10.7.1.1 dev net1",
    ]
    net.check()
    net.delete()
    net.call("DEL", net.before)
    assert state(machine, container) == before


CASES: dict[str, Json] = {
    "plain": {},
    "hints": {"addSourceHints": True},
    "gateways": {"gateways": ["fd00:7::9", "10.7.1.9"]},
    "table": {"table": 300},
}


def test_what_is_made(machine: Machine, container: str) -> None:
    """Each address has the routes of its family; the main table has what was asked for."""
    subnets = "10.7.1.0/24", "fd00:7::/64"
    seen = {}
    for name, keys in CASES.items():
        net = Net(machine, container, 1, *subnets, **keys)
        net.add()
        net.check()
        seen[name] = [routes(machine, container, table) for table in ("100", "101", "main")]
        assert len(rules(machine, container)) == 2
        net.delete()
        net.call("DEL", net.before)

    link4 = "10.7.1.0/24 dev net1 proto kernel scope link src 10.7.1.2"
    link6 = "fd00:7::/64 dev net1 proto kernel metric 256 pref medium"
    ways = "default via 10.7.1.1 dev net1", "default via fd00:7::1 dev net1 metric 1024 pref medium"
    assert seen["plain"] == [[link4, ways[0]], [ways[1], link6], []]
    hinted = "fd00:7::/64 dev net1 proto kernel src fd00:7::2 metric 256 pref medium"
    assert seen["hints"] == [*seen["plain"][:2], [link4, hinted]]
    mine = "default via 10.7.1.9 dev net1", "default via fd00:7::9 dev net1 metric 1024 pref medium"
    assert seen["gateways"] == [[link4, mine[0]], [mine[1], link6], []]
    assert seen["table"] == [[], [], sorted([link4, ways[0], ways[1], link6])]


def test_the_other_interface_is_left_alone(machine: Machine, container: str) -> None:
    """Unlike the reference, neither a shared subnet nor a shared default route is taken from it."""
    subnets = "10.7.1.0/24", "fd00:7::/64"
    first = Net(machine, container, 1, *subnets)
    alone = routes(machine, container)
    config = network(machine, 1, *subnets, name=f"{machine.name}-2")
    for one in config["ipam"]["addresses"]:
        one["address"] = one["address"].replace("2/", "3/")
    for keys in ({}, {"addSourceHints": True}):
        second = Net(machine, container, 2, before=config, **keys)
        both = routes(machine, container)
        assert any("nexthop" in line for line in both)  # the kernel has made one route of two
        second.add()

        assert [one for one in routes(machine, container) if "net2" not in one] == alone
        assert not any("default" in one for one in routes(machine, container) if "net2" in one)
        for source, peer, dev in (
            ("10.7.1.2", "198.51.100.1", "net1"),
            ("10.7.1.3", "198.51.100.1", "net2"),
            ("fd00:7::2", "2001:db8:1::1", "net1"),
            ("fd00:7::3", "2001:db8:1::1", "net2"),
        ):
            (way,) = machine.ip(container, "route", "get", peer, "from", source)
            assert way["dev"] == dev
            assert machine.ping(
                container, "fd00:7::1" if ":" in source else "10.7.1.1", "-I", source
            )
        second.check()
        first.call("CHECK", {**first.before, "prevResult": first.result})
        second.delete()
        assert routes(machine, container) == both
        second.call("DEL", second.before)


def test_routes_of_the_chain(machine: Machine, container: str) -> None:
    """Routes by a gateway of no subnet, on the link and with metrics go with the interface."""
    config = network(machine, 1)
    config["ipam"]["routes"] += [
        {"dst": "172.20.0.9/32", "gw": "0.0.0.0", "scope": 253},
        {"dst": "172.21.0.0/16", "gw": "172.20.0.9", "mtu": 1300, "priority": 7},
        {"dst": "172.22.0.0/16", "table": 500},
    ]
    net = Net(machine, container, before=config)
    before = routes(machine, container, "all")
    net.add()

    assert routes(machine, container, "100") == [
        "10.7.1.0/24 dev net1 proto kernel scope link src 10.7.1.2",
        "172.20.0.9 dev net1 scope link",
        "172.21.0.0/16 via 172.20.0.9 dev net1 metric 7 mtu 1300",
        "default via 10.7.1.1 dev net1",
    ]
    assert routes(machine, container, "500") == ["172.22.0.0/16 via 10.7.1.1 dev net1"]
    net.check()
    net.delete()
    assert routes(machine, container, "all") == before


@pytest.mark.parametrize("kind", ["ptp", "macvlan"])
def test_behind_other_plugins(machine: Machine, container: str, kind: str) -> None:
    """Unlike the reference, CHECK of the plugin before still holds, and finds what is wrong."""
    machine.outside()
    subnets = "10.7.1.0/24", "fd00:7::/64"
    own: Json = {"type": kind, "bridge": None, "isGateway": None}
    config = network(machine, 1, *subnets, **own, master="uplink" if kind == "macvlan" else None)
    for name, keys in CASES.items():
        if (kind, name) == ("ptp", "gateways"):
            continue  # nothing but the one gateway is on the link
        net = Net(machine, container, before=config, **keys)
        before = state(machine, container)
        net.add()
        net.check()
        machine.do(
            container,
            "ip route del default table 100"
            if not net.config.get("table")
            else "ip route del default",
        )
        error = machine.refused(
            kind, "CHECK", {**config, "prevResult": net.result}, container, ifname="net1"
        )
        assert "route to 0.0.0.0/0" in error["msg"]
        if "table" not in keys:
            net.delete()
            assert state(machine, container) == before
        net.call("DEL", config)


def test_again(machine: Machine, container: str) -> None:
    """Unlike the reference, DEL restores the main table; ADD works again, also without a DEL."""
    for keys in CASES.values():
        net = Net(machine, container, 1, "10.7.1.0/24", "fd00:7::/64", **keys)
        before = state(machine, container)
        net.add()
        made = {**state(machine, container), "records": []}
        for command in ("ADD", "DEL", "DEL", "ADD"):
            net.call(command, net.chained)
            expected = before if command == "DEL" else made
            found = state(machine, container)
            assert {**found, "records": []} == expected, command
            assert len(found["records"]) == (command == "ADD")
        net.check()
        net.delete()
        net.call("DEL", net.before)


def test_rules_of_others(machine: Machine, container: str) -> None:
    """A rule that was there stays, with and without `table`; the same one is not made twice."""
    net = Net(machine, container, table=300)
    machine.do(
        container,
        "ip rule add from 10.7.1.2 lookup 300",
        "ip rule add from 10.7.1.2 iif lo lookup 300",
    )
    before = state(machine, container)
    net.add()
    assert rules(machine, container) == before["rules"]
    net.check()
    net.delete()
    assert state(machine, container) == before


REFUSED: tuple[tuple[Json, int, str], ...] = (
    ({"table": 0}, 7, "table"),
    ({"table": -1}, 7, "table"),
    ({"table": 2**32}, 7, "table"),
    ({"table": "100"}, 7, "table"),
    ({"gateways": "10.7.1.1"}, 7, "gateways"),
    ({"gateways": ["x"]}, 7, "no address"),
    ({"gateways": [5]}, 7, "gateways"),
    ({"gateways": ["0.0.0.0"]}, 7, "no gateway can have"),
    ({"gateways": ["10.7.1.1", "10.7.1.3"]}, 7, "two addresses of IPv4"),
    ({"gateways": ["10.99.0.1"]}, 7, "'net1' cannot reach"),
    ({"gateways": ["10.7.1.2"]}, 7, "address of 'net1'"),
    ({"addSourceHints": 1}, 7, "addSourceHints"),
    ({"prevResult": None}, 7, "prevResult missing"),
    ({"prevResult": {"cniVersion": "1.1.0"}}, 7, "No IP addresses supplied"),
    ({"prevResult": {"ips": [{"address": "x"}]}}, 7, "prevResult"),
)


def test_refused(machine: Machine, container: str) -> None:
    """A configuration that cannot work is refused, and nothing is changed."""
    net = Net(machine, container)
    before = state(machine, container)
    for keys, code, says in REFUSED:
        config = {k: v for k, v in {**net.chained, **keys}.items() if v is not None}

        error = machine.refused("sbr", "ADD", config, container, ifname="net1")

        assert (error["code"], says in error["msg"]) == (code, True), error
        assert state(machine, container) == before


def test_without_rules_of_an_ip_version(machine: Machine, container: str) -> None:
    """A kernel without IPv6 has no rules for it, which keeps nothing from working."""
    net = Net(machine, container)
    before = state(machine, container)
    for call, at in ((net.add, 2), (net.delete, 1)):  # which lists what it has made
        fault = Fault(at, only="list rules".__eq__, code=errno.EAFNOSUPPORT)
        with faulty(machine, fault) as host:
            call(host=host)
        assert fault.happened
    assert state(machine, container) == before


def test_missing(machine: Machine, container: str) -> None:
    """An interface that is not there is named; addresses of another one are none of its own."""
    net = Net(machine, container)
    before = state(machine, container)
    net.result["interfaces"][-1]["name"] = "net2"
    error = machine.refused("sbr", "ADD", net.chained, container, ifname="net2")
    assert "'net2' is missing" in error["msg"]
    error = machine.refused("sbr", "ADD", net.chained, container, ifname="net1")
    assert "No IP addresses" in error["msg"]  # where the reference flushes the main table
    assert state(machine, container) == before


# --- CHECK, DEL ----------------------------------------------------------------------------


def test_check_tells(machine: Machine, container: str) -> None:
    """A rule or route that is gone, or a route that is back, is named; so is a lost record's."""
    net = Net(machine, container, addSourceHints=True)
    for line, says in (
        ("ip rule del from 10.7.1.2", "rule from 10.7.1.2 to table 100"),
        ("ip route del default table 100", "route to 0.0.0.0/0 via 10.7.1.1 in table 100"),
        ("ip route add default via 10.7.1.1", "0.0.0.0/0 via 10.7.1.1 in table 254"),
        ("ip link set net1 down", "10.7.1.0/24 in table 100"),
    ):
        net.add()
        net.check()
        machine.do(container, line)
        assert says in net.drift()
        machine.do(container, "ip link set net1 up")
    _forget_records(machine)
    net.call("CHECK", net.chained)
    machine.do(container, "ip rule del from 10.7.1.2")
    assert "no rule leads from 10.7.1.2 to a table of its own" in net.drift()


def _forget_records(machine: Machine) -> None:
    for path in files_below(machine.state_dir):
        if "/sbr-" in path:
            Path(path).unlink()


def test_delete(machine: Machine) -> None:
    """DEL leaves nothing, also if parts are gone; it succeeds twice, and with invalid keys."""
    for case in ("there", "gone", "unknown", "no-interface", "no-record"):
        container = machine.container()
        net = Net(machine, container)
        before = state(machine, container)
        net.add()
        if case == "gone":
            machine.forget(container)
        elif case == "no-interface":
            machine.do(container, "ip link del net1")
        elif case == "no-record":
            _forget_records(machine)

        for keys in ({"gateways": 5, "prevResult": {"ips": [{"address": "x"}]}}, {}):
            net.call("DEL", {**net.config, **keys}, netns="" if case == "unknown" else container)

        assert [path for path in files_below(machine.state_dir) if "/sbr-" in path] == []
        if case != "gone":
            assert rules(machine, container) == routes(machine, container, "100") == []
        if case in ("there", "unknown"):
            assert state(machine, container) == before
        net.call("DEL", net.before, netns="" if case == "gone" else container)


def test_nothing_known(machine: Machine, tmp_path: Path) -> None:
    """Unlike the reference, DEL needs no path, and neither ADD nor DEL makes a file of it."""
    path = tmp_path / "netns"
    net = Net(machine, machine.container())
    for command in ("ADD", "CHECK"):
        error = machine.refused("sbr", command, net.chained, str(path), ifname="net1")
        assert error["code"] == 8
    for netns in (str(path), "", net.container):
        net.delete(netns=netns)
        net.call("DEL", net.config, netns=netns)
    assert not path.exists()
    assert state(machine, net.container)["rules"] == []


def test_changed_by_the_container(machine: Machine, container: str) -> None:
    """Where the main table cannot have its routes again, DEL removes the rest and succeeds."""
    for line in ("ip addr del 10.7.1.2/24 dev net1", "ip link set net1 down", "ip link del net1"):
        net = Net(machine, container)
        net.add()
        machine.do(container, line)
        net.delete()
        assert rules(machine, container) == []
        assert "100" not in str(routes(machine, container, "all"))
        net.call("DEL", net.before)


def test_the_reference(machine: Machine, container: str) -> None:
    """Objects of the Go plugin are removed; those of another container are not."""
    net = Net(machine, container)
    path = f"{REFERENCE_BIN}"
    machine.reference("sbr", "ADD", net.chained, container, path=path, ifname="net1")
    assert rules(machine, container) == ["10.7.1.2:100"]
    net.call("CHECK", net.chained)
    net.delete()
    assert rules(machine, container) == []
    assert routes(machine, container, "100") == []
    net.call("DEL", net.before)

    net = Net(machine, container)
    net.add()
    made = state(machine, container)
    net.delete(containerid="another")  # of a namespace that had the same path
    assert state(machine, container) == made
    error = machine.refused("sbr", "ADD", net.chained, machine.container(), ifname="net1")
    assert "missing" in error["msg"]
    assert state(machine, container) == made


def test_in_another_namespace(machine: Machine, container: str) -> None:
    """An attachment that is alive elsewhere keeps its rules when it is added once more."""
    net = Net(machine, container)
    net.add()
    made = state(machine, container)
    other = machine.container()
    Net(machine, other, before=network(machine, 1, name="other"))
    error = machine.refused("sbr", "ADD", net.chained, other, ifname="net1")
    assert (error["code"], "DEL it first" in error["msg"]) == (4, True)
    assert state(machine, container) == made


# --- many, commands, failures ----------------------------------------------------------------


@pytest.mark.both_edges
def test_crossing(machine: Machine, container: str) -> None:
    """ADDs that cross in one namespace have a table each, and DELs that cross leave none."""
    nets = [Net(machine, container, number) for number in range(1, 7)]
    before = state(machine, container)
    for _ in range(2):
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(Net.add, nets))
        tables = [one.rpartition(":")[2] for one in rules(machine, container)]
        assert sorted(tables) == [str(number) for number in range(100, 106)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(Net.delete, nets))
        assert state(machine, container) == before


def test_held_by_the_container(machine: Machine, container: str) -> None:
    """Unlike the reference, a process that locks the namespace keeps no call waiting."""
    net = Net(machine, container)
    descriptor = os.open(container, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        net.add()
        net.delete()
    finally:
        os.close(descriptor)


@pytest.mark.without_engine("measures this process")
def test_many(machine: Machine, container: str) -> None:
    """Hundreds of addresses in as many subnets take time in proportion to their number."""
    count = 1000 if ALL else 300
    net = Net(machine, container)
    at = [f"20.{number // 256}.{number % 256}" for number in range(count)]
    machine.do(container, *(f"ip addr add {one}.2/24 dev net1" for one in at))
    net.result["ips"] = [{"address": f"{one}.2/24", "gateway": f"{one}.1"} for one in at]
    del net.result["interfaces"]
    before = state(machine, container)
    started = time.process_time()
    net.add()
    net.call("CHECK", net.chained)
    net.delete()
    assert time.process_time() - started < count / 250  # seconds; a third of it, usually
    assert state(machine, container) == before


@pytest.mark.without_engine("the commands know nothing of it")
def test_commands(machine: Machine, container: str) -> None:
    """`explain` shows rules and routes; those of the bridge are found where they went."""
    net = Net(machine, container)
    net.add()

    def objects(status: int) -> dict[str, bool]:
        (one,) = asked(machine, "explain", "c1", status=status)["attachments"]
        return {f"{o['kind']} {o['what']}": o["present"] for o in one["objects"]}

    found = objects(DONE)
    assert found["rule from 10.7.1.2 to table 100"]
    assert found["route to 0.0.0.0/0 via 10.7.1.1 in table 100"]
    machine.do(container, "ip rule del from 10.7.1.2")
    assert not objects(FOUND)["rule from 10.7.1.2 to table 100"]
    missing = asked(machine, "audit", status=4)["missing"]
    assert kinds(missing) == ["route", "rule"]  # the bridge's is nowhere that packets look
    machine.end(container)
    age(machine)
    assert kinds(asked(machine, "audit", status=FOUND)["findings"]) == ["record", "record"]
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    age(machine)
    assert kinds(asked(machine, "reclaim")["removed"]) == ["record", "record"]
    assert files_below(f"{machine.state_dir}/attachments") == {}


def _arranged(machine: Machine, container: str) -> tuple[Net, Json]:
    """Return net2, whose routes are to be moved, beside net1, whose are."""
    Net(machine, container, 1).add()
    subnets = "10.7.2.0/24", "fd00:72::/64"
    net = Net(machine, container, 2, *subnets, addSourceHints=True)
    return net, state(machine, container)


def _rehearsal(net: Net, command: str) -> Any:
    def rehearse(fault: Fault) -> None:
        for one in ("ADD", "DEL"):
            with faulty(net.machine, fault if one == command else Fault()) as host:
                net.call(one, net.chained, host=host)

    return rehearse


@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for-good"])
def test_any_failure_of_an_add_is_taken_back(
    machine: Machine, container: str, lasting: bool
) -> None:
    """Unlike the reference, whichever operation fails, all is as it was; else after the DEL."""
    net, before = _arranged(machine, container)
    failed = 0
    for fault in faults(_rehearsal(net, "ADD"), lasting=lasting):
        with faulty(machine, fault) as host:
            reply = machine.invoke("sbr", "ADD", net.chained, container, host=host, ifname="net2")
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        else:
            assert fault.what == OPEN
        if lasting or not reply.exit_code:
            net.delete()
        assert state(machine, container) == before, fault.what
    assert failed > 5
    net.delete()


@alone
@pytest.mark.timeout(300)
def test_terminated_add_is_taken_back(machine: Machine, container: str) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    net, before = _arranged(machine, container)
    for fault in faults(_rehearsal(net, "ADD"), terminate=True, only=is_act):
        with faulty(machine, fault) as host, suppress(Terminated):
            net.add(host=host)
        if not fault.happened:
            break
        assert state(machine, container) == before, fault.what
    assert len(fault.done) > 3


@alone
@pytest.mark.timeout(300)
def test_killed_add_is_cleaned_up(machine: Machine, container: str) -> None:
    """Wherever a SIGKILL hits an ADD, DEL or the next ADD puts all in order."""
    net, before = _arranged(machine, container)
    for fault in faults(_rehearsal(net, "ADD"), kill=True, only=is_act):
        was_killed = _killed(net, fault)
        if fault.at % 2:
            net.add()
            net.check()
        net.delete(netns="" if fault.at % 3 else container)
        assert state(machine, container) == before, fault.at
        if not was_killed:
            break
    assert not was_killed


def _killed(net: Net, fault: Fault) -> bool:
    def add() -> None:
        with faulty(net.machine, fault) as host:
            net.add(host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join(GENEROUS)
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "unrecorded"])
def test_failed_delete_is_finished_by_the_next(
    machine: Machine, container: str, recorded: bool
) -> None:
    """If any operation of a DEL fails, DEL says so, and the next one removes the rest."""
    net, before = _arranged(machine, container)
    net.config.pop("addSourceHints")
    failed = 0
    for fault in faults(_rehearsal(net, "DEL"), only=lambda what: what != OPEN):
        net.add()
        if not recorded:
            _forget_of(machine, "net2")
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("sbr", "DEL", net.chained, container, host=host, ifname="net2")
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        net.delete()
        after = state(machine, container)
        if not recorded:  # nothing knows what the main table had
            net.call("DEL", net.before)
            net.result = net.call("ADD", net.before)
            after = state(machine, container)
        assert after == before, fault.what
        if not fault.happened:
            break
    assert failed > 2


def _forget_of(machine: Machine, ifname: str) -> None:
    for path in files_below(machine.state_dir):
        if "/sbr-" in path and f'"{ifname}"' in Path(path).read_text():
            Path(path).unlink()


def test_gc(machine: Machine) -> None:
    """GC forgets the dead, and leaves the living as they are."""
    nets = [Net(machine, machine.container(), number) for number in (1, 2)]
    for number, net in enumerate(nets):
        net.config["name"] = machine.name
        net.add(containerid=f"c{number}")
    before = state(machine, nets[1].container)
    age(machine)
    machine.forget(nets[0].container)
    with machine.process_in(nets[1].container):
        machine.ok("sbr", "GC", {**nets[1].config, "cni.dev/valid-attachments": []})
    after = state(machine, nets[1].container)
    assert len(before["records"]) - len(after["records"]) == 1
    assert {**after, "records": []} == {**before, "records": []}
    nets[1].delete(containerid="c1")


def test_status(machine: Machine) -> None:
    """STATUS looks at the configuration, and whether a record can be written."""
    config: Json = {"cniVersion": "1.1.0", "name": machine.name, "type": "sbr"}
    machine.ok("sbr", "STATUS", config)
    assert machine.refused("sbr", "STATUS", {**config, "gateways": ["x"]})["code"] == 7
    Path(machine.state_dir).parent.mkdir(parents=True, exist_ok=True)
    os.rename(machine.state_dir, f"{machine.state_dir}-away")
    Path(machine.state_dir).write_text("")
    assert machine.refused("sbr", "STATUS", config)["code"] == 50
