"""After any failure, refusal or kill nothing is left behind, and no other container is harmed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.host import Host
from cni_common.node.interface import MasqueradeFacts, VethFacts
from cni_common.node.record import Records
from cni_common.spec.request import Attachment
from cni_common.spec.result import Result
from tests.faults.inprocess import INJECTED, KILLED, Fault, Terminated, faulty
from tests.kernel.sweeps import faults, rehearsal
from tests.machine import Json, Machine, addresses_of, error_of
from tests.scope import ALL
from tests.snapshot import changes
from tests.waits import longer_if_busy, wait_until

alone = pytest.mark.without_engine(reason="fails in this process")
LIMIT = 400  # operations: more than any ADD or DEL here has
IPV4, IPV6 = "10.9.0.0/24", "fd00:9::/64"

# The next user of the namespace opens it again, or has what is in the record; the next call removes
# .pycni-new; a lease that cannot be read counts as taken by an ADD, and makes a DEL look for it
# once more; without its index host-local reads all leases.
TOLERATED_IN_DEL = (
    r"open namespace|disk unlink \.pycni-new|disk (open|read|fstat) [0-9a-f.:]+"
    r"|disk (utime|pread|pwrite) .*|disk \w+ .*/indexes(/.*)?"
)
# Only the order of later addresses depends on last_reserved_ip.
TOLERATED_IN_ADD = rf"{TOLERATED_IN_DEL}|disk \w+ last_reserved_ip\.[01]"
# Texts that may make a runtime forget an error of DEL, and with it what is left.
FORGETTABLE = ("NOT found", "No such file or directory")


def ipam(machine: Machine, *subnets: str) -> Json:
    """Return host-local settings with a range set for each subnet and default routes."""
    return {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
    }


def network(machine: Machine, *subnets: str, **keys: Any) -> Json:
    """Return a bridge configuration with these subnets; L2 only without any."""
    return machine.network(**{"ipam": ipam(machine, *subnets) if subnets else None, **keys})


def full(machine: Machine) -> Json:
    """Return a configuration that uses all that this kernel has."""
    more = {"macspoofchk": True, "hairpinMode": True, "portIsolation": True, "mtu": 1400}
    return network(machine, IPV4, IPV6, ipMasq=True, **more)


def iptables(machine: Machine) -> Json:
    """Return a configuration that masquerades the way the reference does."""
    return network(machine, IPV4, IPV6, ipMasq=True, ipMasqBackend="iptables")


CASES: Mapping[str, Callable[[Machine], Json]] = {
    "L2": lambda m: network(m, macspoofchk=True),
    "IPv4": lambda m: network(m, IPV4),
    "IPv4-masquerade": lambda m: network(m, IPV4, ipMasq=True),
    "dual-stack": lambda m: network(m, IPV4, IPV6, isDefaultGateway=True, enabledad=True),
    "iptables": iptables,
    "full": full,
}


def pick(*names: str) -> pytest.MarkDecorator:
    """Run a test for each of these cases."""
    return pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name) for name in names])


def operations(case: Callable[[Machine], Json], *with_disk: str) -> Callable[[str], bool]:
    """Which operations to make fail; host-local's disk operations in these cases alone.

    They depend on nothing but the address families.
    """
    is_with_disk = case in [CASES[name] for name in with_disk]
    return lambda what: is_with_disk or not what.startswith("disk")


# --- arrangement and judgement -------------------------------------------------------------


def calm(machine: Machine, *namespaces: str) -> None:
    """Switch off duplicate address detection, as the state must not change by itself.

    Where a configuration switches it on again, it takes milliseconds.
    """
    script = """
        for file in */accept_dad default/dad_transmits default/router_solicitation_delay; do
            echo 0 > $file
        done
    """
    for netns in namespaces:
        machine.command(netns, "sh", "-c", f"cd /proc/sys/net/ipv6/conf && {script}")


def await_bridge(machine: Machine, bridge: str) -> None:
    """Wait until the kernel has finished what the first port of a bridge starts."""

    def is_up() -> bool:
        links = [link for link in machine.ip(machine.host, "addr") if link["ifname"] == bridge]
        local = [info for link in links for info in link["addr_info"] if info["scope"] == "link"]
        return bool(local) and links[0]["operstate"] == "UP"

    wait_until(is_up, f"{bridge} does not come up")


def arrange(machine: Machine, config: Json) -> tuple[str, str]:
    """Attach one container, so that all that is shared exists; return it and a second one."""
    other, container = machine.container(), machine.container()
    calm(machine, machine.host, other, container)
    machine.ok("bridge", "ADD", config, other, containerid="other")
    await_bridge(machine, config["bridge"])
    steady_state(machine, other)
    return other, container


def state(machine: Machine, *containers: str) -> Json:
    """Return a snapshot without the files that stay as long as the network."""
    snapshot = machine.snapshot(*containers)
    snapshot["files"] = {
        path: content
        for path, content in snapshot["files"].items()
        if not os.path.basename(path).startswith(("last_reserved_ip.", "lock"))
    }
    return snapshot


def steady_state(machine: Machine, *containers: str) -> Json:
    """Return the state once the kernel has ended what a new port starts, such as its IPv6."""
    for port in machine.ports():  # asked for by name, it gets its operstate now, not in a second
        machine.command(machine.host, "ip", "link", "show", "dev", port)
    seen = [state(machine, *containers)]

    def is_steady() -> bool:
        time.sleep(longer_if_busy(0.05))
        seen.append(state(machine, *containers))
        return seen[-1] == seen.pop(0)

    wait_until(is_steady, "the state goes on changing by itself")
    return seen[-1]


def assert_attached(machine: Machine, config: Json, container: str, result: Json) -> None:
    """Demand what a normal ADD makes, as `ip` and `nft` see it."""
    own = machine.link(machine.host, result["interfaces"][1]["name"])
    assert own is not None
    assert own["master"] == config["bridge"]
    link = machine.link(container, "eth0")
    assert link is not None
    assert link["address"] == result["interfaces"][2]["mac"]

    def is_up() -> bool:  # the kernel notes it a moment after the port is up, later under load
        link = machine.link(container, "eth0")
        return link is None or link["operstate"] == "UP"

    wait_until(is_up, "the container's interface does not come up")
    assert machine.addresses(container, "eth0") == [ip["address"] for ip in result.get("ips", ())]
    routes = machine.ip(container, "route", "show", "table", "all")
    defaults = [route for route in routes if route["dst"] == "default"]
    assert len(defaults) == len(result.get("routes", ()))
    if config.get("ipMasq") and "ipMasqBackend" not in config:
        assert set(addresses_of(result)) <= set(machine.masqueraded())


def record_of(machine: Machine, containerid: str = "c1") -> Path:
    """Return the file of the bridge plugin's record of a container."""
    for path in Path(machine.state_dir, "attachments").glob("bridge-*"):
        if f'"containerid":"{containerid}"' in path.read_text().replace(" ", ""):
            return path
    raise AssertionError(f"{containerid} has no record")


def is_act(what: str) -> bool:
    """Tell whether an operation changes anything; before others it leaves nothing new to die."""
    passive = ("open namespace", "run NetNS", "sysctl", "look up", "list", "find record")
    return not what.startswith((*passive, "disk fstat", "disk read", "disk listdir", "disk flock"))


# --- one failure ---------------------------------------------------------------------------


@alone
@pytest.mark.timeout(300)
@pytest.mark.rotating(2)
@pick("L2", "IPv4", "IPv4-masquerade", "dual-stack", "iptables", "full")
def test_any_failure_of_an_add_is_taken_back(
    machine: Machine, case: Callable[[Machine], Json]
) -> None:
    """If any operation fails, ADD says so, all is as it was, and the next ADD succeeds."""
    config = case(machine)
    counted = operations(case, "IPv4", "dual-stack")
    other, container = arrange(machine, config)
    before = state(machine, other, container)
    failed = 0

    for fault in faults(rehearsal(machine, "bridge", "ADD", config, container), only=counted):
        with faulty(machine, fault) as host:
            reply = machine.invoke("bridge", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            error = error_of(reply.stdout)
            assert reply.exit_code == 1
            assert INJECTED in error["msg"], (fault.what, error)
            assert changes(before, state(machine, other, container)) == [], (fault.what, error)
            machine.ok("bridge", "ADD", config, container)
        else:
            assert re.fullmatch(TOLERATED_IN_ADD, fault.what)
            assert_attached(machine, config, container, json.loads(reply.stdout))
        machine.ok("bridge", "DEL", config, container)

    assert failed > (15 if ALL else 5)
    machine.ok("bridge", "DEL", config, container)
    assert changes(before, state(machine, other, container)) == []


@alone
@pytest.mark.timeout(300)
@pytest.mark.full_kernel
def test_failure_of_vlans(machine: Machine) -> None:
    """A port whose VLANs cannot be set goes again, whichever message fails."""
    config = network(machine, IPV4, vlan=5, vlanTrunk=[{"minID": 7, "maxID": 9}])
    other, container = arrange(machine, config)
    before = state(machine, other, container)

    for number in range(1, LIMIT):
        fault = Fault(number, only=lambda what: "VLAN" in what or "br0.5" in what)
        with faulty(machine, fault) as host:
            reply = machine.invoke("bridge", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert INJECTED in error_of(reply.stdout)["msg"], fault.what
        assert changes(before, state(machine, other, container)) == [], fault.what

    assert number > 5
    assert reply.exit_code == 0


@alone
def test_failure_of_the_first_masquerading(machine: Machine) -> None:
    """A failed ADD does not leave its network's chain to a table that other networks use."""
    other_config = network(machine, "10.8.0.0/24", ipMasq=True, name="other", isGateway=None)
    config = network(machine, IPV4, IPV6, ipMasq=True, isGateway=None)
    other, container = arrange(machine, other_config)
    before = state(machine, other, container)

    for number in range(1, LIMIT):
        fault = Fault(number, only=lambda what: what.startswith("nft"))
        with faulty(machine, fault) as host:
            reply = machine.invoke("bridge", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert reply.exit_code == 1
        assert changes(before, state(machine, other, container)) == [], fault.what

    assert number > 2
    machine.ok("bridge", "DEL", config, container)
    assert changes(before, state(machine, other, container)) == []


@alone
@pytest.mark.timeout(300)
@pick("full")
def test_host_that_fails_for_good(machine: Machine, case: Callable[[Machine], Json]) -> None:
    """When nothing works any more, not even the way back, a later DEL removes what is left."""
    config = case(machine)
    other, container = arrange(machine, config)
    before = state(machine, other, container)

    for fault in faults(rehearsal(machine, "bridge", "ADD", config, container), lasting=True):
        with faulty(machine, fault) as host:
            reply = machine.invoke("bridge", "ADD", config, container, host=host)
        machine.ok("bridge", "DEL", config, container)
        assert changes(before, state(machine, other, container)) == [], fault.rest
        if not fault.happened:
            break
        assert INJECTED in error_of(reply.stdout)["msg"]


@alone
@pytest.mark.timeout(300)
@pick("iptables", "full")
def test_terminated_add_is_taken_back(machine: Machine, case: Callable[[Machine], Json]) -> None:
    """Wherever SIGTERM interrupts an ADD, all is as it was; host-local has its own such test."""
    config = case(machine)
    other, container = arrange(machine, config)
    before = state(machine, other, container)

    keys: Json = {"terminate": True, "only": lambda what: is_act(what) and "disk" not in what}
    for fault in faults(rehearsal(machine, "bridge", "ADD", config, container), **keys):
        with faulty(machine, fault) as host, suppress(Terminated):
            machine.ok("bridge", "ADD", config, container, host=host)
        if not fault.happened:
            break
        assert changes(before, state(machine, other, container)) == [], fault.what

    assert len(fault.done) > 8


@alone
def test_terminated_right_behind_ipam(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM between host-local's success and the next step costs no address."""
    config = network(machine, IPV4)
    other, container = arrange(machine, config)
    before = state(machine, other, container)
    delegate = Host.delegate

    def terminated(*args: Any, **keys: Any) -> Result | None:
        result: Result | None = delegate(*args, **keys)
        if (args[1], args[3]) == ("host-local", "ADD"):
            raise Terminated
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Host, "delegate", terminated)
        with pytest.raises(Terminated):
            machine.ok("bridge", "ADD", config, container, host=machine.make_host())

    assert changes(before, state(machine, other, container)) == []


@alone
@pytest.mark.parametrize("code", [errno.ENOENT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_sysctls_that_are_missing_or_read_only(machine: Machine, code: int) -> None:
    """Without the sysctls that are only wished for, an L2 or IPv4 attachment comes up."""
    config = network(machine, IPV4, isGateway=None)
    _other, container = arrange(machine, config)
    fault = Fault(1, lasting=True, code=code, only=lambda what: what.startswith("sysctl"))

    with faulty(machine, fault) as host:
        result = machine.ok("bridge", "ADD", config, container, host=host)

    assert len(fault.done) > 3
    assert_attached(machine, config, container, result)


@alone
@pytest.mark.parametrize("code", [errno.ENOENT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["net/ipv4/ip_forward", "net/ipv6/conf/eth0/disable_ipv6"])
def test_sysctls_that_must_be_set(machine: Machine, name: str, code: int) -> None:
    """Without a sysctl that the attachment needs, ADD names it and takes everything back."""
    config = network(machine, IPV4, IPV6)
    other, container = arrange(machine, config)
    before = state(machine, other, container)
    fault = Fault(1, code=code, only=lambda what: what == f"sysctl {name}")

    with faulty(machine, fault) as host:
        error = machine.refused("bridge", "ADD", config, container, host=host)

    assert f"cannot set sysctl {name}" in error["msg"]
    assert changes(before, state(machine, other, container)) == []


def test_result_that_cannot_be_converted(machine: Machine) -> None:
    """An ADD whose result has no form in the version asked for is taken back like any other."""
    other, container = arrange(machine, network(machine))
    before = state(machine, other, container)

    error = machine.refused("bridge", "ADD", network(machine, cniVersion="0.2.0"), container)

    assert "no valid IP addresses" in error["msg"]
    assert changes(before, state(machine, other, container)) == []


@alone
def test_loopback_failure_sets_lo_down_again(machine: Machine) -> None:
    """If any operation of loopback's ADD fails, lo is as it was."""
    config = {"cniVersion": "1.1.0", "name": machine.name, "type": "loopback"}
    container = machine.container()
    machine.ok("loopback", "ADD", config, container)
    machine.ok("loopback", "DEL", config, container)  # an address that lo once had it keeps
    before = state(machine, container)

    for number in range(1, LIMIT):
        fault = Fault(number)
        with faulty(machine, fault) as host:
            reply = machine.invoke("loopback", "ADD", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            assert changes(before, state(machine, container)) == [], fault.what
        else:
            assert fault.what == "open namespace"
            machine.ok("loopback", "DEL", config, container)

    assert number > 5


# --- DEL -----------------------------------------------------------------------------------


def code_of(number: int) -> int:
    """Return an errno for a failure in DEL; not EBUSY, which says that others need it still."""
    return (errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EIO)[number % 4]


@alone
@pytest.mark.timeout(300)
@pytest.mark.rotating(2)
@pick("L2", "iptables", "full")
def test_failed_delete_is_told_and_can_be_repeated(
    machine: Machine, case: Callable[[Machine], Json]
) -> None:
    """If any operation fails, DEL says so in words that no runtime discards; then all goes."""
    config = case(machine)
    counted = operations(case, "full")
    other, container = arrange(machine, config)
    before = state(machine, other, container)
    failed = 0

    text = " and ".join(FORGETTABLE)
    once = rehearsal(machine, "bridge", "DEL", config, container)
    for fault in faults(once, text=text, only=counted):
        machine.ok("bridge", "ADD", config, container)
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("bridge", "DEL", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code:
            failed += 1
            error = error_of(reply.stdout)
            # A lease that cannot be read is told in host-local's own words.
            assert "missing" in error["msg"] or fault.what.startswith("disk"), (fault.what, error)
            assert not [
                text for text in FORGETTABLE if text.lower() in reply.stdout.decode().lower()
            ]
            machine.ok("bridge", "DEL", config, container)
        assert changes(before, state(machine, other, container)) == [], fault.what
        assert reply.exit_code or re.fullmatch(TOLERATED_IN_DEL, fault.what)

    assert failed > 5
    assert changes(before, state(machine, other, container)) == []


@alone
@pytest.mark.timeout(300)
@pick("full")
def test_failed_delete_without_record(machine: Machine, case: Callable[[Machine], Json]) -> None:
    """The same holds for an attachment that has no record, as those of the reference."""
    config = {**case(machine), "macspoofchk": False}
    other, container = arrange(machine, config)
    before = state(machine, other, container)

    def unrecord() -> None:
        record_of(machine).unlink()

    once = rehearsal(machine, "bridge", "DEL", config, container, unrecord)
    for fault in faults(once, only=lambda what: what != "open namespace"):
        result = machine.ok("bridge", "ADD", config, container)
        unrecord()
        fault.code = code_of(fault.at)
        with faulty(machine, fault) as host:
            reply = machine.invoke("bridge", "DEL", config, container, host=host)
        if not fault.happened:
            break
        if reply.exit_code or not re.fullmatch(TOLERATED_IN_DEL, fault.what):
            assert error_of(reply.stdout), fault.what
            machine.ok("bridge", "DEL", {**config, "prevResult": result}, container)
        assert changes(before, state(machine, other, container)) == [], fault.what

    assert len(fault.done) > 10
    assert changes(before, state(machine, other, container)) == []


# --- refusals ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """An ADD that must be refused while container c1, attached by `full`, lives."""

    code: int
    keys: Mapping[str, Any] = field(default_factory=dict)  # of the configuration
    ipam: Mapping[str, Any] = field(default_factory=dict)  # keys of its "ipam"
    containerid: str = "c2"
    netns: str = ""  # instead of a fresh container's; "c1": that of c1
    args: str = ""


SMALL = [[{"subnet": IPV4, "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.3"}]]
REFUSALS = {
    "interface-exists": Refusal(4, containerid="c1", netns="c1"),
    "interface-of-another-container": Refusal(4, netns="c1"),
    "interface-of-another-network": Refusal(
        4, {"name": "n2", "bridge": "br2"}, containerid="c1", netns="c1"
    ),
    "attached-elsewhere": Refusal(4, containerid="c1"),
    "own-namespace": Refusal(8, netns="host"),
    "no-namespace": Refusal(8, netns="/nonexistent"),
    "plain-file": Refusal(8, netns="/proc/self/environ"),
    "malformed-args": Refusal(4, args="MAC"),
    "unknown-args": Refusal(4, args="COLOUR=blue"),
    "bad-mac": Refusal(7, args="MAC=zz"),
    "unknown-version": Refusal(1, {"cniVersion": "9.9.9"}),
    "wrong-type": Refusal(7, {"mtu": "1500"}),
    "contradiction": Refusal(7, {"promiscMode": True}),
    "unknown-backend": Refusal(7, {"ipMasqBackend": "ipfw"}),
    "no-bridge": Refusal(7, {"bridge": "lo"}),
    "no-vlans": Refusal(7, {"vlan": 5}),
    "small-mtu": Refusal(7, {"mtu": 1000}),
    "no-ipam-plugin": Refusal(50, ipam={"type": "nowhere"}),
    "ipam-plugin-outside": Refusal(7, ipam={"type": "../host-local"}),
    "bad-subnet": Refusal(7, ipam={"ranges": [[{"subnet": "10.9.0.0/33"}]]}),
    "exhausted": Refusal(999, ipam={"ranges": SMALL}),
    "address-taken": Refusal(999, args="IP=10.9.0.3"),
    "address-outside": Refusal(999, args="IP=10.7.0.3"),
    "gateway-conflict": Refusal(7, {"name": "n2"}, {"ranges": [[{"subnet": "10.8.0.0/24"}]]}),
    "masqueraded-for-another": Refusal(999, {"name": "n2"}, args="IP=10.9.0.3"),
}


@pytest.mark.rotating(3)
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refused_add_harms_nobody(machine: Machine, refusal: Refusal) -> None:
    """However an ADD is refused, all that lives keeps what it has."""
    config = full(machine)
    other, container = arrange(machine, config)
    fresh = machine.container()
    live = machine.ok("bridge", "ADD", config, container)
    before = steady_state(machine, other, container, fresh)
    refused = {**config, **refusal.keys, "ipam": {**config["ipam"], **refusal.ipam}}
    netns = {"": fresh, "c1": container, "host": machine.host}.get(refusal.netns, refusal.netns)

    error = machine.refused(
        *("bridge", "ADD", refused, netns), containerid=refusal.containerid, args=refusal.args
    )

    assert error["code"] == refusal.code, error
    assert changes(before, state(machine, other, container, fresh)) == []
    assert_attached(machine, config, container, live)


@pytest.mark.both_edges
def test_refused_add_without_record_harms_nobody(machine: Machine) -> None:
    """A container that only its lease is known of keeps it when its id comes a second time."""
    config = full(machine)
    other, container = arrange(machine, config)
    elsewhere = machine.container()
    machine.ok("bridge", "ADD", config, container)
    record_of(machine).unlink()
    before = state(machine, other, container, elsewhere)

    error = machine.refused("bridge", "ADD", config, elsewhere)

    assert "duplicate allocation is not allowed" in error["msg"]
    assert changes(before, state(machine, other, container, elsewhere)) == []


# --- killed --------------------------------------------------------------------------------


def killed(machine: Machine, config: Json, container: str, fault: Fault) -> bool:
    """Run an ADD in a process that a fault kills; False when it never came to that."""

    def add() -> None:
        with faulty(machine, fault) as host:
            machine.ok("bridge", "ADD", config, container, host=host)

    process = multiprocessing.get_context("fork").Process(target=add)
    process.start()
    process.join()
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


def by_delete(machine: Machine, config: Json, container: str) -> None:
    """DEL."""
    machine.ok("bridge", "DEL", config, container)


def by_delete_without_namespace(machine: Machine, config: Json, container: str) -> None:
    """DEL by a runtime that does not know the namespace any more."""
    machine.ok("bridge", "DEL", config, "")


def by_delete_after_namespace(machine: Machine, config: Json, container: str) -> None:
    """DEL when the namespace is gone."""
    machine.forget(container)
    machine.ok("bridge", "DEL", config, container)


def by_gc(machine: Machine, config: Json, container: str) -> None:
    """GC, later, when the namespace is gone."""
    machine.end(container)
    for directory in (machine.state_dir, machine.data_dir):
        for path in Path(directory).rglob("*"):
            os.utime(path, (0, 0))
    valid = [{"containerID": "other", "ifname": "eth0"}]
    machine.ok("bridge", "GC", {**config, "cni.dev/valid-attachments": valid})


def by_another_add(machine: Machine, config: Json, container: str) -> None:
    """ADD again, which succeeds or says that there is something already."""
    before = steady_state(machine, container)
    reply = machine.invoke("bridge", "ADD", config, container)
    if reply.exit_code:
        error = error_of(reply.stdout)
        assert (error["code"], "already exists" in error["msg"]) == (4, True)
        assert changes(before, state(machine, container)) == []
    else:
        assert_attached(machine, config, container, json.loads(reply.stdout))
    machine.ok("bridge", "DEL", config, container)


def by_add_elsewhere(machine: Machine, config: Json, container: str) -> None:
    """ADD of the same container in a new namespace, as after its restart."""
    elsewhere = machine.container()
    calm(machine, elsewhere)
    reply = machine.invoke("bridge", "ADD", config, elsewhere)
    if reply.exit_code:
        error = error_of(reply.stdout)
        assert (error["code"], "DEL it first" in error["msg"]) == (4, True)
    else:
        assert_attached(machine, config, elsewhere, json.loads(reply.stdout))
    machine.ok("bridge", "DEL", config, elsewhere)
    machine.forget(elsewhere)


def with_another_container(machine: Machine, config: Json, container: str) -> None:
    """DEL, after another container has come and gone."""
    third = machine.container()
    calm(machine, third)
    result = machine.ok("bridge", "ADD", config, third, containerid="third")
    machine.ok("bridge", "DEL", config, container)
    assert_attached(machine, config, third, result)
    machine.ok("bridge", "DEL", config, third, containerid="third")
    machine.forget(third)


REMOVALS = (
    by_delete,
    by_delete_without_namespace,
    by_delete_after_namespace,
    by_gc,
    by_another_add,
    by_add_elsewhere,
    with_another_container,
)


@pytest.mark.rotating(3)
@alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("case", "remove"),
    [*((full, remove) for remove in REMOVALS), (iptables, by_delete_without_namespace)],
    ids=lambda value: value.__name__.replace("_", "-"),
)
def test_killed_add_is_cleaned_up(
    machine: Machine,
    case: Callable[[Machine], Json],
    remove: Callable[[Machine, Json, str], None],
) -> None:
    """Wherever a SIGKILL hits an ADD, its leftovers can be removed completely."""
    config = case(machine)
    other, container = arrange(machine, config)
    before = state(machine, other)

    once = rehearsal(machine, "bridge", "ADD", config, container)
    for fault in faults(once, kill=True, only=is_act):
        was_killed = killed(machine, config, container, fault)
        remove(machine, config, container)
        assert changes(before, state(machine, other)) == [], fault.at
        if remove in (by_delete_after_namespace, by_gc):
            container = machine.container()
            calm(machine, container)
        else:
            assert machine.link(container, "eth0") is None
        if not was_killed:
            break

    assert not was_killed
    assert fault.at > 12


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    """A line that is noted after a kill has cut the last one short can be read."""
    whose = Attachment("c1", "eth0")
    records = Records(str(tmp_path))
    path = Path(records.begin("bridge", "n1", whose, {"netns": "/n"}).path)
    records.close()
    path.write_bytes(path.read_bytes() + b'{"veth": {"host_end": "v')

    record = records.find("bridge", "n1", whose)
    assert record is not None
    record.put(MasqueradeFacts("nftables"))
    records.close()

    (one,) = records.of_plugin("bridge")
    assert one.facts["netns"] == "/n"
    assert (one.get(MasqueradeFacts), one.get(VethFacts)) == (MasqueradeFacts("nftables", []), None)
