"""portmap: failures, kills and calls at once leave nothing, and harm no other container."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.ports import Node, port
from tests.kernel.sweeps import faults, rehearsal
from tests.machine import Json, Machine, error_of

pytestmark = pytest.mark.timeout(300)
alone = pytest.mark.without_engine(reason="fails in this process")

LIMIT = 200  # operations: more than any ADD or DEL here has
CLIENTS = 12
PORTS = [port(80), port(81, protocol="udp"), port(82, hostIP="192.0.2.1")]
CASES: Mapping[str, Json] = {
    "nftables": {},
    "no snat": {"snat": False},
    "conditions": {"conditionsV4": ["ip", "saddr", "192.0.2.2"]},
    "iptables": {"backend": "iptables"},
}
RANGE = [port(number, number) for number in range(9000, 9032)]
# With a range too, whose maps only the first of its kind makes.
WITH_RANGE: Json = {"runtimeConfig": {"portMappings": [*PORTS, *RANGE]}}
# ADD and DEL go on without these: connections that are not forgotten end by themselves, an owner
# of ports counts for nothing once its record is gone.
TOLERATED = (
    r"list connections.*|forget a connection|list addresses|open namespace|write owners of ports"
)


@pytest.fixture
def node(machine: Machine) -> Node:
    """Give a node."""
    return Node(machine)


def state(node: Node) -> Json:
    """Return all that portmap changes, counters of packets left out."""
    saved = [
        re.sub(r"#.*|\[\d+:\d+\]", "", node.machine.command(node.host, f"{command}-save"))
        for command in ("iptables", "ip6tables")
    ]
    own = [entry for entry in node.machine.nft() if "pycni" in str(entry)]
    return {
        "nft": own,
        "iptables": saved,
        "records": [path.read_text() for path in node.records()],
        "sysctl": node.route_localnet(),
    }


def arrange(node: Node, settings: Json) -> tuple[str, Json]:
    """Attach a container with ports, and one that is to get some; return that and its ADD."""
    other, container = node.attach("other"), node.attach()
    theirs = node.config(port(9), containerid="other", **settings)
    theirs["runtimeConfig"] = {"portMappings": [port(9)]}
    node.ok("ADD", theirs, other, containerid="other")
    return container, node.config(*PORTS, **settings)


@alone
@pytest.mark.parametrize("name", [*CASES, "range"])
def test_any_failure_of_an_add_is_taken_back(node: Node, name: str) -> None:
    """If any operation fails, ADD says so, all is as it was, and the next ADD succeeds."""
    container, config = arrange(node, CASES.get(name, WITH_RANGE))
    before = state(node)
    failed = 0

    for fault in faults(rehearsal(node.machine, "portmap", "ADD", config, container)):
        with faulty(node.machine, fault) as host:
            reply = node.machine.invoke("portmap", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
            assert state(node) == before, fault.what
        else:
            assert re.fullmatch(TOLERATED, fault.what), fault.what
            node.ok("CHECK", config, container)
            node.ok("DEL", config, container)
            assert state(node) == before, fault.what

    assert failed > 4


@pytest.mark.rotating(2)
@alone
@pytest.mark.parametrize("name", CASES)
def test_any_failure_of_the_first_add(node: Node, name: str) -> None:
    """Nor does what all mappings share stay when the node's first ADD fails."""
    container = node.attach()
    config = node.config(*PORTS, **CASES[name])
    before = node.route_localnet()

    for number in range(1, LIMIT):
        fault = Fault(number, only=lambda what: "nft" in what or "sysctl" in what)
        with faulty(node.machine, fault) as host:
            reply = node.machine.invoke("portmap", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert reply.exit_code, fault.what
        assert [e for e in node.machine.nft() if "pycni" in str(e)] == [], fault.what
        assert (node.records(), node.route_localnet()) == ([], before), fault.what

    assert number > 3


@alone
@pytest.mark.parametrize("name", ["nftables", "iptables"])
def test_host_that_fails_for_good(node: Node, name: str) -> None:
    """When nothing works any more, not even the way back, a later DEL removes what is left."""
    container, config = arrange(node, CASES.get(name, WITH_RANGE))
    before = state(node)

    for fault in faults(rehearsal(node.machine, "portmap", "ADD", config, container), lasting=True):
        with faulty(node.machine, fault) as host:
            node.machine.invoke("portmap", "ADD", config, container, host=host)
        node.ok("DEL", config, container)
        assert state(node) == before, fault.rest
        if not fault.happened:
            break


@alone
@pytest.mark.parametrize("name", ["nftables", "iptables", "range"])
def test_failed_del_is_finished_by_the_next(node: Node, name: str) -> None:
    """If any operation of a DEL fails, DEL says so, and the next one removes all."""
    container, config = arrange(node, CASES.get(name, WITH_RANGE))
    before = state(node)

    for fault in faults(rehearsal(node.machine, "portmap", "DEL", config, container)):
        node.ok("ADD", config, container)
        with faulty(node.machine, fault) as host:
            reply = node.machine.invoke("portmap", "DEL", config, container, host=host)
        if reply.exit_code:
            assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        elif fault.happened:
            assert re.fullmatch(TOLERATED, fault.what), fault.what
        node.ok("DEL", config, container)
        assert state(node) == before, fault.what
        if not fault.happened:
            break

    assert len(fault.done) > 3


@alone
def test_failed_del_still_hands_over(node: Node) -> None:
    """If any operation fails, the next DEL leaves the ports to the container's other network."""
    container = node.attach()
    node.attach(ifname="eth1", netns=container)
    configs = {name: node.config(*PORTS, ifname=name) for name in ("eth0", "eth1")}
    before = state(node)

    for fault in faults(rehearsal(node.machine, "portmap", "DEL", configs["eth0"], container)):
        for name, config in configs.items():
            node.ok("ADD", config, container, ifname=name)
        with faulty(node.machine, fault) as host:
            node.machine.invoke("portmap", "DEL", configs["eth0"], container, host=host)
        node.ok("DEL", configs["eth0"], container)
        assert list(node.mapped()) == [f"portmap {node.machine.name} c1 eth1"], fault.what
        node.ok("CHECK", configs["eth1"], container, ifname="eth1")
        node.ok("DEL", configs["eth1"], container, ifname="eth1")
        assert state(node) == before, fault.what
        if not fault.happened:
            break

    assert len(fault.done) > 3


@alone
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed_call(node: Node, command: str) -> None:
    """Wherever a call is killed, DEL removes what is left, and an ADD alone comes up again."""
    container, config = arrange(node, {})
    before = state(node)

    once = rehearsal(node.machine, "portmap", command, config, container)
    for fault in faults(once, kill=True):
        if command == "DEL":
            node.ok("ADD", config, container)
        pid = os.fork()  # noqa: TID251 - whose process is to be killed
        if pid == 0:
            with faulty(node.machine, fault) as host:
                node.machine.invoke("portmap", command, config, container, host=host)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED
        node.ok("DEL", config, container)
        assert state(node) == before
        if not killed:
            break

    assert fault.at > 5


@alone
@pytest.mark.parametrize("name", ["nftables", "iptables"])
def test_terminated_add_is_taken_back(node: Node, name: str) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was."""
    container, config = arrange(node, CASES.get(name, WITH_RANGE))
    before = state(node)

    for fault in faults(
        rehearsal(node.machine, "portmap", "ADD", config, container),
        terminate=True,
        only=lambda what: what != "open namespace",
    ):
        with faulty(node.machine, fault) as host, suppress(Terminated):
            node.ok("ADD", config, container, host=host)
        if not fault.happened:
            break
        assert state(node) == before, fault.what

    assert len(fault.done) > 5


def storm(node: Node, call: Callable[[str, Json, str, str], object], settings: Json) -> None:
    """Add and delete containers from many threads at once, each for its own ports."""
    # With iptables each waits for the others; an engine would send some to one-shot processes.
    clients = 4 if settings.get("backend") == "iptables" else CLIENTS
    netns = {f"c{number}": node.attach(f"c{number}") for number in range(clients)}

    def live(number: int) -> None:
        cid = f"c{number}"
        for turn in range(3):
            ports = [port(1000 + 10 * number + turn), port(53 + number, 53, "udp")]
            config = node.config(*ports, containerid=cid, **settings)
            call("ADD", config, netns[cid], cid)
            call("CHECK", config, netns[cid], cid)
            call("DEL", config, netns[cid], cid)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(live, range(clients)))


@pytest.mark.rotating(2)
@pytest.mark.parametrize("name", CASES)
def test_storm(node: Node, name: str) -> None:
    """ADDs and DELs that meet leave nothing, and make nothing twice."""

    def call(command: str, config: Json, netns: str, cid: str) -> None:
        node.ok(command, config, netns, containerid=cid)

    storm(node, call, CASES[name])

    assert [e for e in node.machine.nft() if "pycni" in str(e)] == []
    assert (node.records(), node.route_localnet()) == ([], "0")
    saved = node.machine.command(node.host, "iptables-save", "-t", "nat")
    assert "CNI-" not in saved
