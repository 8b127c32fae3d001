"""dummy, ipvlan and vlan through a life, on a kernel that has them; the Go plugins beside.

Each interface is in the container alone. Those of ipvlan and vlan are on the host's `uplink` and
have its MAC; behind it are 192.0.2.2 and 2001:db8::2. "Unlike the reference" begins the account of
each defect of the Go plugins that ours have not.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from commands import DONE
from tests.faults.inprocess import INJECTED, KILLED, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.kernel.test_commands import asked
from tests.kernel.test_macvlan import watching
from tests.kernel.test_rollback import TOLERATED_IN_ADD, calm, is_act
from tests.machine import REFERENCE_BIN, Json, Machine, addresses_of, error_of, files_below
from tests.waits import GENEROUS, wait_until

pytestmark = pytest.mark.full_kernel
alone = pytest.mark.without_engine(reason="fails in this process")
every_kind = pytest.mark.parametrize("plugin", ["dummy", "ipvlan", "vlan"])
one_a_day = pytest.mark.rotating(3)  # what the three have in common, and takes seconds there
with_master = pytest.mark.parametrize("plugin", ["ipvlan", "vlan"])

IPV4, IPV6 = "192.0.2.0/24", "2001:db8::/64"
FIRST4, FIRST6 = "192.0.2.10", "2001:db8::10"
KEYS: dict[str, Json] = {
    "dummy": {},
    "ipvlan": {"master": "uplink"},
    "vlan": {"master": "uplink", "vlanId": 5},
}


def network(machine: Machine, plugin: str, *subnets: str, **keys: Any) -> Json:
    """Return a configuration with host-local, with IPv4 unless told otherwise."""
    starts = {IPV4: {"rangeStart": FIRST4}, IPV6: {"rangeStart": FIRST6}}
    ranges = [[{"subnet": one, **starts.get(one, {})}] for one in subnets or (IPV4,)]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    usual = {"type": plugin, "bridge": None, "isGateway": None, "ipam": ipam}
    return machine.network(**{**usual, **KEYS[plugin], **keys})


def left(machine: Machine, *containers: str) -> Json:
    """Return everything that belongs to an attachment."""
    names = [one["ifname"] for netns in containers for one in machine.ip(netns, "link")]
    return {
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
        "links": [name for name in names if name != "lo"],
    }


NOTHING: Json = {"leases": [], "records": [], "links": []}


def arranged(machine: Machine) -> str:
    """Return a container on a machine with an outside."""
    machine.outside()
    container = machine.container()
    calm(machine, container)  # detection of duplicates then takes milliseconds
    return container


@every_kind
def test_life(machine: Machine, plugin: str) -> None:
    """ADD, CHECK and DEL, IPv4 and IPv6; unlike the reference, no temporary name is ever seen."""
    container = arranged(machine)
    config = network(machine, plugin, IPV4, IPV6, dns={"domain": "a"})
    with watching(machine, container) as inside:
        result = machine.ok(plugin, "ADD", config, container)

    link = machine.link(container, "eth0")
    assert link is not None
    assert inside == {"lo", "eth0"}
    assert link["linkinfo"]["info_kind"] == plugin
    assert result["interfaces"] == [
        {"name": "eth0", "mac": link["address"], "mtu": 1500, "sandbox": container}
    ]
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]
    assert result["dns"] == {"domain": "a"}
    machine.do(container, "ip link set lo up")
    assert all(machine.ping(container, one) for one in (FIRST4, FIRST6))
    machine.ok(plugin, "CHECK", {**config, "prevResult": result}, container)
    assert machine.refused(plugin, "ADD", config, machine.container())["code"] == 4
    if plugin == "ipvlan":
        (told,) = asked(machine, "explain", "c1", status=DONE)["attachments"]
        kinds = {one["kind"] for one in (*told["objects"], *told["shared"])}
        assert kinds >= {"device", "mac", "mtu", "address", "master"}
    machine.do(container, "ip link set eth0 down")
    error = machine.refused(plugin, "CHECK", {**config, "prevResult": result}, container)
    assert "is down" in error["msg"]
    machine.ok(plugin, "DEL", {**config, "ipam": None, "master": None}, container)
    machine.ok(plugin, "DEL", config, container)
    assert left(machine, container) == NOTHING


@one_a_day
@every_kind
def test_delete(machine: Machine, plugin: str) -> None:
    """DEL needs neither namespace, path nor master, also after the container changed its name."""
    machine.outside()
    config = network(machine, plugin)
    for namespace in ("unknown", "gone"):
        container = machine.container()
        machine.ok(plugin, "ADD", config, container)
        machine.do(container, "ip link set eth0 down", "ip link set eth0 name other")
        containers = [container]
        if namespace == "gone":
            machine.forget(container)
            containers = []
        else:
            machine.do(machine.host, "ip link set uplink down")

        for _ in range(2):
            machine.ok(plugin, "DEL", config, container if namespace == "gone" else "")
        machine.do(machine.host, "ip link set uplink up")

        assert left(machine, *containers) == NOTHING


@one_a_day
@every_kind
def test_the_reference(machine: Machine, plugin: str) -> None:
    """The result is the Go plugin's, but for the MTU; each deletes what the other has made."""
    container = arranged(machine)
    own: dict[str, Json] = {"ipvlan": {"mode": "l3"}, "vlan": {"mtu": 1400}}

    def call(execute: Callable[..., Json], command: str, **keys: Any) -> Json:
        for last in Path(machine.data_dir).rglob("last_reserved_ip.*"):
            last.unlink()  # both get the same addresses
        return execute(plugin, command, {**config, **keys}, container, path=str(REFERENCE_BIN))

    for version in ("1.1.0", "0.2.0"):
        more = own.get(plugin, {}) if version == "1.1.0" else {}
        config = network(machine, plugin, IPV4, IPV6, cniVersion=version, **more)
        theirs = call(machine.reference, "ADD")
        seen = shown(machine, container)
        call(machine.ok, "DEL", prevResult=theirs)
        assert left(machine, container) == NOTHING

        ours = call(machine.ok, "ADD")
        assert shown(machine, container) == seen
        if version != "0.2.0":
            call(machine.ok, "CHECK", prevResult=ours)
        call(machine.reference, "DEL")
        call(machine.ok, "DEL")

        assert left(machine, container) == NOTHING
        for result in (ours, theirs):
            for one in result.get("interfaces", ()):
                one.pop("mtu", None)
                if plugin == "dummy":
                    one.pop("mac")  # which is random
        assert ours == theirs


def shown(machine: Machine, container: str) -> Json:
    """Return what `ip` shows of the container's interface and routes, but for what is random."""
    link = machine.link(container, "eth0")
    assert link is not None
    if link["linkinfo"]["info_kind"] == "vlan":  # a worker of the kernel notes its state
        wait_until(lambda: _operstate(machine, container) == "UP", "the kernel notes no carrier")
        link["operstate"] = "UP"
    keys = ("mtu", "flags", "operstate", "linkinfo", "link_index")
    routes = machine.ip(container, "route", "show", "table", "main")
    return {
        **{key: link.get(key) for key in keys},
        "addresses": machine.addresses(container, "eth0"),
        "routes": sorted(f"{route['dst']} {route.get('gateway')}" for route in routes),
    }


def _operstate(machine: Machine, container: str) -> object:
    return (machine.link(container, "eth0") or {}).get("operstate")


@one_a_day
@with_master
def test_master_in_the_container(machine: Machine, plugin: str) -> None:
    """With linkInContainer the master is looked for in the container."""
    container = machine.container()
    calm(machine, container)
    machine.do(container, "ip link add net0 type veth peer name net9")
    machine.do(container, "ip link set net9 up", "ip link set net0 up")
    config = network(machine, plugin, master="net0", linkInContainer=True)

    machine.ok(plugin, "STATUS", config)
    result = machine.ok(plugin, "ADD", config, container)

    link = machine.link(container, "eth0")
    assert link is not None
    assert (link["link"], "link_netnsid" in link) == ("net0", False)
    machine.ok(plugin, "CHECK", {**config, "prevResult": result}, container)
    other = {**config, "master": "net9", "prevResult": result}
    assert "on master 'net9'" in machine.refused(plugin, "CHECK", other, container)["msg"]
    machine.ok(plugin, "DEL", config, container)
    assert left(machine, container)["records"] == []
    assert machine.link(container, "eth0") is None


@one_a_day
@with_master
def test_shared_mac(machine: Machine, plugin: str) -> None:
    """All have the master's MAC: a DEL without record spares what another record names."""
    machine.outside()
    first, second = machine.container(), machine.container()
    config = network(machine, plugin)
    others = {**config, "vlanId": 6} if plugin == "vlan" else config
    machine.ok(plugin, "ADD", config, first)
    machine.ok(plugin, "ADD", others, second, containerid="c2")

    machine.ok(plugin, "DEL", config, second, containerid="c3")
    machine.ok(plugin, "DEL", {**config, "name": f"{machine.name}-2"}, first)
    assert all(machine.link(one, "eth0") for one in (first, second))
    (record,) = (path for path in files_below(machine.state_dir) if _is_of(path, "c2"))
    Path(record).unlink()
    machine.ok(plugin, "DEL", others, second, containerid="c2")

    assert machine.link(second, "eth0") is None
    assert machine.link(first, "eth0") is not None


def _is_of(path: str, containerid: str) -> bool:
    text = Path(path).read_text()
    return "/attachments/" in path and f'"{containerid}"' in text and '"device"' in text


@one_a_day
@every_kind
def test_gc(machine: Machine, plugin: str) -> None:
    """GC removes the lease of a dead container, and spares a living one."""
    machine.outside()
    config = network(machine, plugin, "10.119.54.0/24")
    dead, living = machine.container(), machine.container()
    machine.ok(plugin, "ADD", config, dead, containerid="dead")
    others = {**config, "vlanId": 6} if plugin == "vlan" else config
    machine.ok(plugin, "ADD", others, living, containerid="living")
    machine.forget(dead)
    leases = [Path(machine.data_dir, machine.name, address) for address in machine.leases()]
    for file in (*map(Path, files_below(machine.state_dir)), *leases):
        os.utime(file, (file.stat().st_mtime - GRACE_SECONDS - 60,) * 2)

    machine.ok(plugin, "GC", {**config, "cni.dev/valid-attachments": []})

    assert machine.leases() == ["10.119.54.3"]
    assert machine.link(living, "eth0") is not None


@with_master
def test_traffic(machine: Machine, plugin: str) -> None:
    """The first packets reach the outside; those of a VLAN only there."""
    outside = machine.outside()
    container = machine.container()
    calm(machine, container)
    result = machine.ok(plugin, "ADD", network(machine, plugin, IPV4, IPV6), container)
    if plugin == "vlan":
        assert not machine.ping(container, "192.0.2.2")
        machine.do(
            outside,
            "ip addr flush dev uplink",
            "ip link add link uplink name tagged type vlan id 5",
            "ip addr add 192.0.2.2/24 dev tagged",
            "ip link set tagged up",
            "ip link show dev tagged",  # asked for by name, it is ready now and not in a second
        )
        machine.do(container, "ip neigh flush all")  # the search for the untagged one goes on
    assert machine.ping(container, "192.0.2.2")
    assert machine.ping(outside, addresses_of(result)[0])


# --- sweeps ----------------------------------------------------------------------------------


def failing_adds(machine: Machine, plugin: str) -> None:
    """Unlike the reference, neither interface nor address is left, whichever operation fails."""
    container, failed = arranged(machine), 0
    config = network(machine, plugin, IPV4, IPV6)

    once = rehearsal(machine, plugin, "ADD", config, container)
    for fault in faults(once, only=lambda what: not what.startswith("disk")):
        with faulty(machine, fault) as host:
            reply = machine.invoke(plugin, "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            message = error_of(reply.stdout)["msg"]
            assert INJECTED in message or "uplink" in message, (fault.what, message)
            assert left(machine, container) == NOTHING, fault.what
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
            machine.ok(plugin, "DEL", config, container)

    assert failed > 4
    machine.ok(plugin, "DEL", config, container)
    assert left(machine, container) == NOTHING


def killed_adds(machine: Machine, plugin: str) -> None:
    """Wherever a SIGKILL hits an ADD, DEL removes what it leaves, without a path."""
    container, config = arranged(machine), network(machine, plugin)

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok(plugin, "ADD", config, container, host=host)

    once = rehearsal(machine, plugin, "ADD", config, container)
    for fault in faults(once, kill=True, only=is_act):
        process = multiprocessing.get_context("fork").Process(target=add)
        process.start()
        process.join(GENEROUS)
        assert process.exitcode in (0, KILLED)
        machine.ok(plugin, "DEL", config, "")
        assert left(machine, container) == NOTHING, fault.at
        if process.exitcode == 0:
            break

    assert fault.at > 5


def failing_deletes(machine: Machine, plugin: str) -> None:
    """If any operation fails, DEL says so or does without; then all goes."""
    container, config = arranged(machine), network(machine, plugin)

    once = rehearsal(machine, plugin, "DEL", config, container)
    for fault in faults(once, only=lambda what: not what.startswith(("disk", "open namespace"))):
        machine.ok(plugin, "ADD", config, container)
        with faulty(machine, fault) as host:
            reply = machine.invoke(plugin, "DEL", config, container, host=host)
        if reply.exit_code:
            assert error_of(reply.stdout), fault.what
            machine.ok(plugin, "DEL", config, container)
        assert left(machine, container) == NOTHING, fault.what
        if not fault.happened:
            break


@pytest.mark.rotating(9)  # what the three have in common, and takes a quarter of a minute there
@alone
@every_kind
@pytest.mark.parametrize("sweep", [failing_adds, killed_adds, failing_deletes])
def test_sweep(machine: Machine, plugin: str, sweep: Callable[[Machine, str], None]) -> None:
    """An ADD that fails or is killed leaves nothing, and a DEL that fails can be repeated."""
    sweep(machine, plugin)
