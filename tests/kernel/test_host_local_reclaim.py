"""host-local takes back what the dead have left: earlier boots, namespaces that are gone, pods."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.host import Host
from cni_common.node.owned import Holding
from cni_common.serve.protocol import execute
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Request
from plugins import host_local, load
from plugins.host_local import allocate, reclaim
from plugins.host_local.lease import GRACE_SECONDS, Lease
from plugins.host_local.store import Store
from tests.kernel.containers import Container
from tests.mounts import bind, detach
from tests.unit.host_local.node import NETWORK, Node
from tests.waits import wait_until

NET30, NET29 = "198.18.64.0/30", "198.18.64.0/29"
ONLY = "198.18.64.2"  # the one address of NET30
OLD = GRACE_SECONDS + 10
Start = Callable[[], Container]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without any lease."""
    return Node(tmp_path)


def make_old(node: Node, seconds: float = OLD) -> None:
    """Make all leases and records that old, and what the records say of their namespaces' end."""
    moment = time.time() - seconds
    for name in node.leases():
        os.utime(node.store / name, (moment, moment))
    for name in node.records():
        path = node.root / "run" / "attachments" / name
        facts: dict[str, Any] = {}
        for line in path.read_text().splitlines():
            facts |= json.loads(line)
        if facts.get("gone_since"):
            later = {"gone_since": facts["gone_since"] - seconds}
            path.write_text(path.read_text() + json.dumps(later) + "\n")
    node.age_records(seconds)


def reboot(node: Node) -> None:
    """Do as a reboot does: /run is empty, every namespace is gone, all other files are older."""
    shutil.rmtree(node.root / "run", ignore_errors=True)
    make_old(node, time.clock_gettime(time.CLOCK_BOOTTIME) + 86_400)


def sees(node: Node, call: Callable[[Host], Any]) -> Any:
    """Return what a function for operators says."""
    with Host(load, "", node.log.append, execute=execute, state_dir=str(node.root / "run")) as host:
        return call(host)


def holdings(node: Node) -> list[Holding]:
    """Return the list for operators."""
    found: list[Holding] = sees(node, lambda host: reclaim.holdings(host, NETWORK, str(node.store)))
    return found


def reclaimed(node: Node) -> list[str]:
    """Return the addresses that the command takes back."""
    removed = sees(node, lambda host: reclaim.reclaim(host, NETWORK, str(node.store)))
    return [str(lease.address) for lease, _ in removed]


def test_reboot(node: Node) -> None:
    """After a reboot a full range is as good as empty: for STATUS, then for ADD, which says so."""
    config = node.config(NET29)
    for number in range(5):
        node.add(config, f"c{number}")
    reboot(node)

    assert node.call("STATUS", config) == {}
    assert len(node.add(config, "new")) == 1

    assert list(node.leases().values()) == ["new\r\neth0"]
    assert len(node.log) == 5
    assert all(line.endswith("it is of an earlier boot") for line in node.log)
    assert node.call("DEL", config, "c3") == {}


def test_container_started_again_after_a_reboot(node: Node) -> None:
    """A container with a lease of an earlier boot gets the same addresses, as podman needs it."""
    config = node.config(NET29, "fd00:64::/64")
    before = node.add(config, "c1")
    node.add(config, "c2")
    reboot(node)

    assert node.add(config, "c1") == before

    assert sum("took over" in line and "earlier boot" in line for line in node.log) == 2
    assert "duplicate allocation" in node.refusal("ADD", config, "c1")
    assert node.call("DEL", config, "c1") == {}
    assert set(node.leases().values()) == {"c2\r\neth0"}
    assert node.add(config, "c2") != before


def test_another_address_after_a_reboot(node: Node) -> None:
    """A container that wants another address than before the boot gets that one alone."""
    config = node.config(NET29)
    node.add(config, "c1")
    reboot(node)

    fixed = {**config, "runtimeConfig": {"ips": ["198.18.64.5"]}}
    assert node.add(fixed, "c1") == ["198.18.64.5"]

    assert node.leases() == {"198.18.64.5": "c1\r\neth0"}


def test_second_add_with_a_clock_that_was_wrong(node: Node, container: Start) -> None:
    """A living container's second ADD is refused, however old its lease seems to be."""
    config = node.config("198.18.69.0/30")
    alive = container()
    node.add(config, CNI_NETNS=alive.netns)
    make_old(node, time.clock_gettime(time.CLOCK_BOOTTIME) + 86_400)
    assert "duplicate allocation" in node.refusal("ADD", config, CNI_NETNS=alive.netns)

    # Nor does the lost record change that while the address is there.
    shutil.rmtree(node.root / "run")
    command = ["ip", "address", "add", "198.18.69.2/24", "dev", "lo"]
    subprocess.run(["nsenter", f"--net={alive.netns}", *command], check=True)
    assert "duplicate allocation" in node.refusal("ADD", config, CNI_NETNS=alive.netns)


def test_reboot_needs_no_address(node: Node) -> None:
    """Leases that nobody needs stay for the DEL that the runtime still owes, or for GC."""
    config = node.config(NET29)
    node.add(config, "c1")
    reboot(node)

    node.add(config, "c2")
    assert len(node.leases()) == 2
    assert node.call("GC", config) == {}

    assert list(node.leases().values()) == ["c2\r\neth0"]
    assert "removed 198.18.64.2 of c1/eth0" in node.log[-1]
    assert "earlier boot" in node.log[-1]


def test_requested_address_of_an_earlier_boot(node: Node) -> None:
    """A fixed address can be had again after a reboot."""
    config = {**node.config(NET29), "runtimeConfig": {"ips": ["198.18.64.5"]}}
    node.add(config, "c1")
    reboot(node)

    assert node.add(config, "c2") == ["198.18.64.5"]
    assert "held by c2/eth0" in node.refusal("ADD", config, "c3")


def test_listed_leases_survive_a_reboot(node: Node) -> None:
    """GC keeps what the runtime lists, however old it is."""
    config = node.config(NET29)
    node.add(config, "c1")
    reboot(node)

    listed = [{"containerID": "c1", "ifname": "eth0"}]
    assert node.call("GC", {**config, "cni.dev/valid-attachments": listed}) == {}
    assert len(node.leases()) == 1


def test_old_lease_that_is_in_use(node: Node, container: Start) -> None:
    """The clock may have been wrong: an address that a namespace has is never taken."""
    only = "198.18.68.2"  # no other test that may run beside this one has leases there
    config = node.config("198.18.68.0/30")
    node.add(config)
    reboot(node)
    process = container()
    command = ["ip", "address", "add", f"{only}/24", "dev", "lo"]
    subprocess.run(["nsenter", f"--net={process.netns}", *command], check=True)

    assert "1 of 1 in use" in node.refusal("ADD", config, "c2")
    assert node.call("GC", config) == {}
    assert reclaimed(node) == []
    assert list(node.leases()) == [only]


def test_old_lease_with_a_record(node: Node, container: Start) -> None:
    """A container with a record is of this boot: its lease looks old, as the clock was wrong."""
    config = node.config(NET30)
    alive = container()
    node.add(config, CNI_NETNS=alive.netns)
    make_old(node, time.clock_gettime(time.CLOCK_BOOTTIME) + 86_400)

    assert "1 of 1 in use" in node.refusal("ADD", config, "c2")
    assert reclaimed(node) == []
    assert list(node.leases()) == [ONLY]


def test_namespace_seen_gone_twice(node: Node, container: Start) -> None:
    """The first ADD that finds no room notes gone owners, one a grace time later takes a lease."""
    config = node.config(NET30)
    process = container()
    node.add(config, "dead", CNI_NETNS=process.netns)
    make_old(node)
    assert "gone" not in node.refusal("ADD", config, "new")  # it lives
    process.end()

    def is_gone() -> bool:
        return "1 of them are of containers that are gone" in node.refusal("ADD", config, "new")

    # Tests beside this one look at all namespaces, and each look keeps a namespace for a moment.
    wait_until(is_gone, "the namespace is not seen to be gone")
    assert is_gone()
    assert node.call("STATUS", config) == {}
    make_old(node)

    assert node.add(config, "new") == [ONLY]
    assert node.leases() == {ONLY: "new\r\neth0"}
    assert len(node.records()) == 1
    assert f"reclaimed {ONLY} of dead/eth0" in node.log[-1]
    assert f"its network namespace '{process.netns}' is gone" in node.log[-1]


def test_path_without_its_mount(node: Node, container: Start, tmp_path: Path) -> None:
    """Where something else is at the path nobody is taken for dead, GC's list or not."""
    config, at = node.config(NET30), tmp_path / "netns"
    process = container()
    bind(process.netns, at)
    try:
        node.add(config, "hidden", CNI_NETNS=str(at))
    finally:
        detach(at)
    process.end()
    for _ in range(2):
        make_old(node)
        assert "1 of 1 in use" in node.refusal("ADD", config, "new")
    assert node.call("GC", config) == {}
    assert (holdings(node)[0].alive, list(node.leases())) == (None, [ONLY])

    assert node.call("GC", {**config, "cni.dev/valid-attachments": []}) == {}
    assert list(node.leases()) == [ONLY]
    at.unlink()
    assert node.call("GC", {**config, "cni.dev/valid-attachments": []}) == {}
    assert node.leases() == {}


def test_young_leases_stay(node: Node, container: Start) -> None:
    """An ADD may be at work in what looks gone."""
    config = node.config(NET30)
    process = container()
    node.add(config, "dead", CNI_NETNS=process.netns)
    process.end()

    assert "gone" not in node.refusal("ADD", config, "new")
    assert reclaimed(node) == []
    assert node.call("STATUS", config)["code"] == Code.PLUGIN_NOT_AVAILABLE


def test_status_keeps_no_record(node: Node, container: Start) -> None:
    """A STATUS that looks at records keeps none of them from others."""
    config = node.config(NET29)
    alive = container()
    for number in range(5):
        node.add(config, f"c{number}", CNI_NETNS=alive.netns)
    make_old(node)
    req = Request.parse(node.environ("STATUS", ""), json.dumps(config).encode())

    with Host(load, "", node.log.append, execute=execute, state_dir=str(node.root / "run")) as host:
        with pytest.raises(CNIError, match="no IP addresses available"):
            host_local.status(req, host)

        assert len(node.records()) == 5
        for name in node.records():
            with (node.root / "run" / "attachments" / name).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _of_earlier_boot(node: Node, address: str) -> None:
    moment = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - 86_400
    os.utime(node.store / address, (moment, moment))


def _of_nobody(node: Node, address: str) -> None:
    node.lease(address, "", age=OLD)


def _freed(node: Node, address: str) -> None:
    (node.store / address).unlink()


@pytest.mark.parametrize("become", [_of_earlier_boot, _of_nobody, _freed])
def test_status_looks_at_all(node: Node, become: Callable[[Node, str], None]) -> None:
    """STATUS finds the one of many addresses that an ADD could have, at any place."""
    config = node.config("198.18.64.0/22")
    addresses = [f"198.18.{64 + n // 256}.{n % 256}" for n in range(2, 1023)]
    for address in addresses:
        node.lease(address, f"c{address}\r\neth0", age=OLD)
    assert node.call("STATUS", config)["code"] == Code.PLUGIN_NOT_AVAILABLE

    become(node, addresses[-100])
    assert node.call("STATUS", config) == {}

    assert node.add(config, "new") == [addresses[-100]]
    assert node.call("STATUS", config)["code"] == Code.PLUGIN_NOT_AVAILABLE


def test_status_and_an_address_in_use(node: Node, container: Start) -> None:
    """STATUS does not count on a lease that ADD would not free, as a namespace has the address."""
    only = "198.18.69.2"  # no other test that may run beside this one has leases there
    config = node.config("198.18.69.0/30")
    node.lease(only, "", age=OLD)
    process = container()
    command = ["ip", "address", "add", f"{only}/24", "dev", "lo"]
    subprocess.run(["nsenter", f"--net={process.netns}", *command], check=True)

    assert node.call("STATUS", config)["code"] == Code.PLUGIN_NOT_AVAILABLE
    assert "1 of 1 in use" in node.refusal("ADD", config)


def test_room_is_not_made_without_need(node: Node, container: Start) -> None:
    """While there is a free address the dead of this boot keep theirs."""
    config = node.config(NET29)
    process = container()
    node.add(config, "dead", CNI_NETNS=process.netns)
    process.end()
    make_old(node)

    for number in range(4):
        node.add(config, f"c{number}")
    assert "dead\r\neth0" in node.leases().values()


def test_command(node: Node, container: Start) -> None:
    """Operators see each lease with its owner; the command frees leases seen dead twice."""
    config = node.config(NET29)
    alive, dead = container(), container()
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=1-2"
    node.add(config, "alive", CNI_NETNS=alive.netns, CNI_ARGS=pod)
    node.add(config, "dead", CNI_NETNS=dead.netns)
    node.lease("198.18.64.5", "unknown\r\neth0")
    node.lease("198.18.64.6", "")
    dead.end()
    make_old(node)
    before = node.records(), node.leases()

    seen = holdings(node)
    assert [(str(one.address), one.pod, one.alive, one.reason) for one in seen] == [
        ("198.18.64.2", "ns/web", True, ""),
        ("198.18.64.3", "", False, ""),
        ("198.18.64.5", "", None, ""),
        ("198.18.64.6", "", None, "its file names no owner"),
    ]
    assert seen[0].netns == alive.netns
    assert (node.records(), node.leases()) == before

    assert reclaimed(node) == ["198.18.64.6"]
    make_old(node)
    assert [one.reason for one in holdings(node)][1] == (
        f"its network namespace '{dead.netns}' is gone"
    )
    assert reclaimed(node) == ["198.18.64.3"]
    assert set(node.leases().values()) == {"alive\r\neth0", "unknown\r\neth0"}


POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID="


def test_pod_takes_over(node: Node, container: Start) -> None:
    """The next try to start a pod has the addresses of the one that failed, at once."""
    config = node.config(NET29, "fd5a:18::/64")
    failed, alive = container(), container()
    first = node.add(config, "try1", CNI_ARGS=f"{POD}1", CNI_NETNS=failed.netns)
    node.add(config, "other", CNI_ARGS=f"{POD}2", CNI_NETNS=alive.netns)
    failed.end()

    again = node.add(config, "try2", CNI_ARGS=f"{POD}1", CNI_NETNS=alive.netns)

    assert again == first
    assert f"took over {first[0]} of try1/eth0" in node.log[0]
    assert node.call("DEL", config, "try1", CNI_ARGS=f"{POD}1") == {}
    assert node.call("CHECK", config, "try2") == {}
    assert len(node.records()) == 2
    assert node.call("DEL", config, "try2") == {}
    assert set(node.leases().values()) == {"other\r\neth0"}
    assert len(node.records()) == 1


def test_pod_with_a_living_sandbox(node: Node, container: Start) -> None:
    """A sandbox that lives keeps its address, whatever the pod is called."""
    config = node.config(NET29)
    alive = container()
    node.add(config, "try1", CNI_ARGS=f"{POD}1", CNI_NETNS=alive.netns)

    assert node.add(config, "try2", CNI_ARGS=f"{POD}1") == ["198.18.64.3"]
    assert node.add(config, "try1", CNI_ARGS=f"{POD}1", CNI_IFNAME="eth1") == ["198.18.64.4"]


def test_take_over_is_taken_back(
    node: Node, container: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ADD that fails after a take-over leaves the address free, and nothing of the dead."""
    config = node.config(NET29, NET29.replace("64", "65"))
    failed = container()
    first = node.add(config, "try1", CNI_ARGS=f"{POD}1", CNI_NETNS=failed.netns)
    failed.end()
    formers: list[Lease | None] = []

    class FullStore(Store):
        def claim(self, *args: Any, **kwargs: Any) -> None:
            formers.append(kwargs["replace"])
            if len(formers) == 2:
                raise OSError(errno.ENOSPC, "No space left")
            super().claim(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(allocate, "Store", FullStore)
        assert "No space left" in node.refusal("ADD", config, "try2", CNI_ARGS=f"{POD}1")

    assert [str(one.address) for one in formers if one] == first
    assert node.leases() == {first[1]: "try1\r\neth0"}
    assert len(node.records()) == 1
    assert node.add(config, "try3", CNI_ARGS=f"{POD}1")[1] == first[1]
    assert node.call("DEL", config, "try1", CNI_ARGS=f"{POD}1") == {}
    assert set(node.leases().values()) == {"try3\r\neth0"}


def test_nothing_to_take_over(node: Node, container: Start) -> None:
    """Where another range has no address the dead keep theirs: nothing was taken."""
    config = node.config(NET29, NET29.replace("64", "65"))
    failed = container()
    node.add(config, "try1", CNI_ARGS=f"{POD}1", CNI_NETNS=failed.netns)
    failed.end()
    (node.store / "198.18.65.2").unlink()
    for number in range(2, 7):
        node.lease(f"198.18.65.{number}", "x\r\neth0")

    assert "range 1: no IP addresses" in node.refusal("ADD", config, "try2", CNI_ARGS=f"{POD}1")
    assert node.leases()["198.18.64.2"] == "try1\r\neth0"


def test_release_cooldown(node: Node) -> None:
    """A freed address rests; it is given when there is no other; without the key it is not."""
    config = node.config(NET29, releaseCooldown=3600)
    wanted = {**config, "runtimeConfig": {"ips": ["198.18.64.2"]}}
    for _ in range(2):
        assert node.add(wanted) == ["198.18.64.2"]  # a container that asks for it gets it
        assert node.call("DEL", config) == {}
    got = [node.add(config, f"c{number}")[0] for number in range(4)]
    assert got == [f"198.18.64.{number}" for number in (3, 4, 5, 6)]
    assert node.call("STATUS", config) == {}
    assert node.add(config, "c4") == ["198.18.64.2"]
    assert "5 of 5 in use" in node.refusal("ADD", config, "c5")


def test_cooldown_ends(node: Node) -> None:
    """After its rest an address is like any other, also when others have changed the leases."""
    config = node.config(NET29, releaseCooldown=1)
    node.add(config, "c1")
    (node.store / "last_reserved_ip.0").unlink()
    node.call("DEL", config, "c1")
    node.lease("198.18.64.6", "x\r\neth0")  # the index is made anew, and knows of the rest

    assert node.add(config, "c2") == ["198.18.64.3"]
    time.sleep(1.1)
    (node.store / "last_reserved_ip.0").unlink()
    assert node.add(config, "c3") == ["198.18.64.2"]


@pytest.mark.parametrize("value", [-1, 86_401, "10", 1.5])
def test_cooldown_refused(node: Node, value: object) -> None:
    """Seconds are a whole number up to a day; DEL goes on all the same."""
    config = node.config(NET29)
    node.add(config)
    bad = node.config(NET29, releaseCooldown=value)

    assert "releaseCooldown" in node.refusal("ADD", bad, "c2")
    assert node.call("DEL", bad) == {}
    assert node.leases() == {}
