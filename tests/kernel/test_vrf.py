"""vrf: what is refused anywhere, and the rest on a kernel that has VRFs.

The interfaces are net1 and net2, ports of br1 and br2. "Unlike the reference" begins the account of
each defect of the Go plugin that this one has not.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plugins.vrf import lifecycle
from tests.faults.inprocess import INJECTED, KILLED, Fault, faulty
from tests.kernel import secondary
from tests.kernel.secondary import network, routes
from tests.kernel.sweeps import faults
from tests.kernel.test_rollback import calm, code_of, is_act
from tests.machine import REFERENCE_BIN, Json, Machine, error_of, files_below
from tests.waits import GENEROUS

full_kernel = pytest.mark.full_kernel
alone = pytest.mark.without_engine(reason="fails in this process")
DUAL = "10.7.1.0/24", "fd00:7::/64"
OPEN = "open namespace"  # the next user opens it again


class Net(secondary.Net):
    """An interface with vrf, which is called blue unless told otherwise."""

    def __init__(
        self, machine: Machine, container: str, number: int = 1, *subnets: str, **keys: Any
    ) -> None:
        keys = {"type": "vrf", "vrfname": "blue", **keys}
        super().__init__(machine, container, number, *subnets, **keys)
        # Where a plugin that makes interfaces does not ask for it, the kernel drops addresses.
        path = f"/proc/sys/net/ipv6/conf/{self.ifname}/keep_addr_on_down"
        machine.command(container, "sh", "-c", f"echo 0 >{path}")


def vrfs(machine: Machine, container: str) -> dict[str, tuple[int, list[str]]]:
    """Return the VRFs by name: table and members."""
    links = machine.ip(container, "link")
    return {
        one["ifname"]: (
            one["linkinfo"]["info_data"]["table"],
            [other["ifname"] for other in links if other.get("master") == one["ifname"]],
        )
        for one in links
        if one.get("linkinfo", {}).get("info_kind") == "vrf"
    }


def state(machine: Machine, container: str) -> Json:
    """Return VRFs, addresses and routes of all tables, and the records of vrf."""
    return {
        "vrfs": vrfs(machine, container),
        "addresses": [machine.addresses(container, f"net{number}") for number in (1, 2)],
        "routes": routes(machine, container, "all"),
        "records": [path for path in files_below(machine.state_dir) if "/vrf-" in path],
    }


@pytest.fixture
def container(machine: Machine) -> str:
    """A container whose IPv6 addresses can be used at once."""
    made = machine.container()
    calm(machine, machine.host, made)
    return made


# --- on any kernel ---------------------------------------------------------------------------

REFUSED: tuple[tuple[Json, str], ...] = (
    ({"vrfname": None}, "valid vrf name"),
    ({"vrfname": ""}, "valid vrf name"),
    ({"vrfname": 5}, "vrfname"),
    ({"vrfname": "a/b"}, "vrfname"),
    ({"vrfname": "x" * 16}, "vrfname"),
    ({"vrfname": "net1"}, "container's interface"),
    ({"vrfname": "other"}, "no VRF but 'veth'"),
    ({"table": -1}, "table"),
    ({"table": 2**32}, "table"),
    ({"table": "5"}, "table"),
    ({"table": 254}, "system uses itself"),
    ({"table": 255}, "system uses itself"),
    ({"prevResult": None}, "prevResult missing"),
    ({"prevResult": {"ips": [{"address": "x"}]}}, "prevResult"),
)


def test_refused(machine: Machine, container: str) -> None:
    """A configuration that cannot work is refused with 7, and nothing is changed."""
    net = Net(machine, container)
    machine.do(container, "ip link add other type veth peer name rehto")
    before = state(machine, container)
    for keys, says in REFUSED:
        config = {k: v for k, v in {**net.chained, **keys}.items() if v is not None}

        error = machine.refused("vrf", "ADD", config, container, ifname="net1")

        assert (error["code"], says in error["msg"]) == (7, True), error
        assert state(machine, container) == before
    error = machine.refused("vrf", "ADD", net.chained, container, ifname="net9")
    assert "'net9'" in error["msg"]
    machine.do(container, "ip link add br0 type bridge", "ip link set net1 master br0")
    error = machine.refused("vrf", "ADD", net.chained, container, ifname="net1")
    assert (error["code"], "has already a master set: 'br0'" in error["msg"]) == (4, True)


def test_without_the_module(machine: Machine, container: str) -> None:
    """Where the kernel has no VRFs, ADD names the module, and nothing is left."""
    net = Net(machine, container, 1, *DUAL)
    before = state(machine, container)
    reply = machine.invoke("vrf", "ADD", net.chained, container, ifname="net1")
    if reply.exit_code == 0:
        pytest.skip("this kernel has VRFs: tests/vm runs the other tests of this file")

    error = error_of(reply.stdout)
    assert (error["code"], "module 'vrf'" in error["msg"]) == (50, True)
    assert state(machine, container) == before
    assert "VRF 'blue' is missing" in net.drift()
    net.delete()


def test_nothing_known(machine: Machine, container: str) -> None:
    """DEL of an attachment that never was succeeds, also if its objects are missing."""
    net = Net(machine, container)
    before = state(machine, container)
    for netns in (container, "", "/no/such/netns"):
        for keys in ({}, {"vrfname": None}, {"vrfname": 5, "table": "x"}, {"vrfname": "net1"}):
            net.call("DEL", {**net.config, **keys}, netns=netns)
    assert state(machine, container) == before


def test_status(machine: Machine) -> None:
    """STATUS looks at the configuration."""
    config: Json = {"cniVersion": "1.1.0", "name": machine.name, "type": "vrf", "vrfname": "a"}
    machine.ok("vrf", "STATUS", config)
    assert machine.refused("vrf", "STATUS", {**config, "table": 253})["code"] == 7


# --- on a kernel that has VRFs ---------------------------------------------------------------


@full_kernel
def test_life(machine: Machine, container: str) -> None:
    """Two interfaces share a VRF, answer from inside it, and the last one takes it away."""
    first = Net(machine, container, 1, *DUAL)
    second = Net(machine, container, 2)
    machine.do(container, "ip link set lo up", "ip route add 198.51.100.0/24 dev lo table 1")
    machine.do(container, "ip rule add from 198.51.100.1 lookup 2")
    before = state(machine, container)

    for net in (first, second):
        assert net.add() == net.result
    # Unlike the reference's: no table that routes or rules of others use.
    assert vrfs(machine, container) == {"blue": (3, ["net1", "net2"])}
    assert routes(machine, container) == []
    assert state(machine, container)["addresses"] == before["addresses"]
    for address in ("10.7.1.2", "10.7.2.2", "fd00:7::2"):
        assert machine.ping(machine.host, address), address
    assert machine.ping(container, "10.7.1.1", "-I", "blue")
    for net in (first, second):
        net.check()

    for _ in range(2):
        first.delete()
    assert vrfs(machine, container) == {"blue": (3, ["net2"])}
    second.check()
    for _ in range(2):
        second.delete(netns="")
    assert state(machine, container) == before
    assert machine.ping(machine.host, "fd00:7::2")
    first.add()
    first.add()  # takes the remains away first
    first.check()
    first.delete()
    assert state(machine, container) == before


@full_kernel
def test_of_others(machine: Machine, container: str) -> None:
    """A VRF of another program is shared and stays; one with another table is refused."""
    net = Net(machine, container, table=7)
    machine.do(container, "ip link add blue type vrf table 8", "ip link set blue up")
    before = state(machine, container)
    error = machine.refused("vrf", "ADD", net.chained, container, ifname="net1")
    assert "already exists with different routing table 8" in error["msg"]
    assert state(machine, container) == before

    net.config["table"] = 8
    net.add()
    net.check()
    net.delete()
    net.delete()
    assert state(machine, container) == before
    # sbr, too, sees that the table is in use, though nothing is in it.
    chosen = secondary.Net(machine, container, 2, type="sbr")
    machine.do(container, "ip link add red type vrf table 100")
    chosen.add()
    assert secondary.rules(machine, container) == ["10.7.2.2:101"]


@full_kernel
@pytest.mark.rotating(2)
@pytest.mark.parametrize("kind", ["ptp", "macvlan"])
def test_behind_other_plugins(machine: Machine, container: str, kind: str) -> None:
    """CHECK of the plugin before holds; unlike the reference, no route on the link is lost."""
    machine.outside()
    own: Json = {"type": kind, "bridge": None, "isGateway": None}
    config = network(machine, 1, *DUAL, **own, master="uplink" if kind == "macvlan" else None)
    config["ipam"]["routes"].append({"dst": "172.22.0.0/16", "table": 500})
    net = Net(machine, container, before=config)
    before = state(machine, container)
    net.add()
    net.check()
    if kind == "ptp":
        assert machine.ping(container, "10.7.1.1", "-I", "blue")
    machine.do(container, "ip route del default vrf blue")
    error = machine.refused(
        kind, "CHECK", {**config, "prevResult": net.result}, container, ifname="net1"
    )
    assert "route to 0.0.0.0/0" in error["msg"]
    net.delete()
    assert state(machine, container) == before


@full_kernel
def test_check_tells(machine: Machine, container: str) -> None:
    """Place, table, route and rule are compared, also by the operators' commands."""
    net = Net(machine, container)
    for line, says in (
        ("ip route del default vrf blue", "route to 0.0.0.0/0 via 10.7.1.1 in table 1"),
        ("ip link set net1 nomaster", "'net1' is not in VRF 'blue'"),
        ("ip link set blue down", "VRF 'blue' is down"),
        ("ip link del blue", "VRF 'blue' is missing"),
    ):
        net.add()
        net.check()
        machine.do(container, line)
        assert says in net.drift()
        net.delete()
    net.add()
    with machine.make_host() as host:
        (record,) = host.records.of_plugin("vrf")
        told = {one.what: one.present for one in lifecycle().present(host, record)}
        assert told["'net1' in 'blue', table 1"]
        machine.do(container, "ip route del default vrf blue", "ip link set net1 nomaster")
        told = {one.what: one.present for one in lifecycle().present(host, record)}
        assert not told["'net1' in 'blue', table 1"]
        assert not told["to 0.0.0.0/0 via 10.7.1.1 in table 1 over 'net1'"]
    net.config["table"] = 9
    assert "has table 1, ADD gave 9" in net.drift()
    machine.do(container, "ip rule del pref 1000")
    assert "no rule leads IPv4 to the tables of VRFs" in net.drift()


@full_kernel
@pytest.mark.rotating(2)
@pytest.mark.parametrize("case", ["gone", "no-interface", "no-record", "no-vrf", "renamed"])
def test_delete(machine: Machine, container: str, case: str) -> None:
    """Unlike the reference, DEL succeeds without interface, and needs no name and no path."""
    net = Net(machine, container, 1, *DUAL)
    before = state(machine, container)
    net.add()
    lines = {
        "no-interface": ["ip link del net1"],
        "no-vrf": ["ip link del blue"],
        "renamed": ["ip link set net1 down", "ip link set net1 name other"],
    }
    machine.do(container, *lines.get(case, ()))
    if case == "gone":
        machine.forget(container)
    elif case == "no-record":
        _forget_records(machine)

    changed = {} if case == "no-record" else {"vrfname": 5, "prevResult": None}
    for keys in (changed, {}):
        net.call("DEL", {**net.config, **keys})

    assert [path for path in files_below(machine.state_dir) if "/vrf-" in path] == []
    if case != "gone":
        assert vrfs(machine, container) == {}
    if case == "no-record":
        assert state(machine, container) == before


def _forget_records(machine: Machine) -> None:
    for path in files_below(machine.state_dir):
        if "/vrf-" in path:
            Path(path).unlink()


@full_kernel
def test_the_reference(machine: Machine, container: str) -> None:
    """The result and the VRF are the Go plugin's; each deletes what the other has made."""
    net = Net(machine, container, 1, *DUAL)
    before, path = state(machine, container), f"{REFERENCE_BIN}"
    keys: Json = {"path": path, "ifname": "net1"}
    theirs = machine.reference("vrf", "ADD", net.chained, container, **keys)
    made = state(machine, container)
    net.check()
    net.delete()
    assert state(machine, container) == before
    ours = net.add()
    assert {**state(machine, container), "records": []} == made
    assert ours == theirs
    machine.reference("vrf", "DEL", net.chained, container, **keys)
    assert vrfs(machine, container) == {}
    net.delete()
    assert state(machine, container) == before


@full_kernel
def test_crossing(machine: Machine, container: str) -> None:
    """Calls that cross share one VRF while there is a member, and leave none."""
    nets = [Net(machine, container, number) for number in (1, 2)]
    before = state(machine, container)

    def rounds(net: Net) -> None:
        for _ in range(2):
            net.add()
            net.check()
            net.delete()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rounds, nets))
    assert state(machine, container) == before


# --- failures ----------------------------------------------------------------------------------


def _rehearsal(net: Net, command: str) -> Any:
    def rehearse(fault: Fault) -> None:
        for one in ("ADD", "DEL"):
            with faulty(net.machine, fault if one == command else Fault()) as host:
                net.call(one, net.chained, host=host)

    return rehearse


def add_fails(machine: Machine, container: str) -> None:
    """Unlike the reference, whichever operation fails, all is as it was."""
    net, failed = Net(machine, container, 1, *DUAL), 0
    before = state(machine, container)
    for fault in faults(_rehearsal(net, "ADD")):
        with faulty(machine, fault) as host:
            reply = machine.invoke("vrf", "ADD", net.chained, container, host=host, ifname="net1")
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        else:
            assert fault.what == OPEN
            net.delete()
        assert state(machine, container) == before, fault.what
    assert failed > 5


def add_is_killed(machine: Machine, container: str) -> None:
    """Wherever a SIGKILL hits an ADD, or all fails from then on, DEL puts all in order."""
    net = Net(machine, container, 1, *DUAL)
    before = state(machine, container)
    for fault in faults(_rehearsal(net, "ADD"), kill=True, only=is_act):
        was_killed = _killed(net, fault)
        net.delete(netns="" if fault.at % 2 else container)
        assert state(machine, container) == before, fault.at
        lasting = Fault(fault.at, lasting=True, only=is_act)
        with faulty(machine, lasting) as host:
            machine.invoke("vrf", "ADD", net.chained, container, host=host, ifname="net1")
        net.delete()
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


def delete_fails(machine: Machine, container: str) -> None:
    """If any operation of a DEL fails, DEL says so, and the next one removes the rest."""
    net, failed = Net(machine, container, 1, *DUAL), 0
    before = state(machine, container)
    for fault in faults(_rehearsal(net, "DEL"), only=lambda what: what != OPEN):
        net.add()
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("vrf", "DEL", net.chained, container, host=host, ifname="net1")
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        net.delete()
        assert state(machine, container) == before, fault.what
        if not fault.happened:
            break
    assert failed > 2


FAILURES = {"add": add_fails, "killed": add_is_killed, "delete": delete_fails}


@full_kernel
@alone
@pytest.mark.timeout(300)
@pytest.mark.rotating(3)
@pytest.mark.parametrize("kind", FAILURES)
def test_failures(machine: Machine, container: str, kind: str) -> None:
    """Nothing is lost and nothing left by an operation that fails, or a process that is killed."""
    FAILURES[kind](machine, container)
