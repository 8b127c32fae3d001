"""Our DEL and GC remove objects of the Go plugins: masquerading, MAC filters, leases, veths."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest

from cni_common.node.liveness import GRACE_SECONDS
from tests.machine import REFERENCE_BIN, Json, Machine

OLD = GRACE_SECONDS + 60  # and no more: what is older than the boot has no living owner


def networks() -> tuple[str, str]:
    """Return two subnets that no other test uses: GC spares addresses that it sees in use."""
    a, b = uuid4().bytes[:2]
    return f"10.{a}.{b}.0/24", f"fd00:{a:x}:{b:x}::/64"


def configuration(machine: Machine, backend: str, **keys: object) -> Json:
    """Return a dual-stack configuration that uses all of the reference's firewalling."""
    ranges = [[{"subnet": subnet}] for subnet in networks()]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    return machine.network(ipMasq=True, ipMasqBackend=backend, macspoofchk=True, ipam=ipam, **keys)


@pytest.fixture(params=["nftables", "iptables", "iptables-legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    """How the Go plugin masquerades."""
    return str(request.param)


def add(
    machine: Machine, backend: str, config: Json, tmp_path: Path, containerid: str = "c1"
) -> tuple[Json, str]:
    """Run the Go bridge's ADD; return its result and the container."""
    container = machine.container()
    environ = machine.environ("ADD", container, containerid=containerid)
    environ["CNI_PATH"] = str(REFERENCE_BIN)
    if backend == "iptables-legacy":
        for family in ("iptables", "ip6tables"):
            if not (tmp_path / family).exists():
                (tmp_path / family).symlink_to(f"/usr/sbin/{family}-legacy")
        environ["PATH"] = f"{tmp_path}:{environ['PATH']}"
    done = machine.try_command(
        machine.host, str(REFERENCE_BIN / "bridge"), stdin=json.dumps(config), env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), container


def configured(machine: Machine, backend: str, **keys: object) -> Json:
    """Return the configuration for a value of the fixture `backend`."""
    return configuration(machine, backend.removesuffix("-legacy"), **keys)


def traces(machine: Machine) -> list[str]:
    """Return every line of the firewall that is about a container."""
    text = machine.command(machine.host, "nft", "list", "ruleset")
    for command in ("iptables-legacy-save", "ip6tables-legacy-save"):
        text += machine.try_command(machine.host, command, "-t", "nat").stdout
    return [line for line in text.splitlines() if re.search(r"CNI-|cni-br-iface|net: |pycni", line)]


def test_the_go_plugin_leaves_traces(machine: Machine, tmp_path: Path, backend: str) -> None:
    """There is something to remove with each of the backends."""
    add(machine, backend, configured(machine, backend), tmp_path)

    lines = "\n".join(traces(machine))
    assert ("CNI-" in lines) == ("iptables" in backend)
    assert ("net: " in lines) == (backend == "nftables")
    assert "cni-br-iface-c1-eth0-mac" in lines
    if backend == "iptables-legacy":
        nat = machine.command(machine.host, "iptables-legacy-save", "-t", "nat")
        assert "MASQUERADE" in nat


@pytest.mark.parametrize(
    ("netns", "previous", "change"),
    [
        ("there", False, {}),
        ("there", True, {"ipMasq": False, "macspoofchk": False}),
        ("gone", True, {}),
        ("gone", False, {}),
        ("empty", False, {"ipMasqBackend": None, "macspoofchk": None}),
    ],
    ids=["there", "switched-off", "gone", "gone-without-prevResult", "empty"],
)
def test_del_is_complete(
    machine: Machine, tmp_path: Path, backend: str, netns: str, previous: bool, change: Json
) -> None:
    """Our DEL of an attachment of the Go plugin leaves nothing, also if little is still known."""
    config = configured(machine, backend)
    result, container = add(machine, backend, config, tmp_path)
    if netns == "gone":
        machine.forget(container)
    config |= {"prevResult": result} if previous else {}

    machine.ok("bridge", "DEL", config | change, "" if netns == "empty" else container)

    assert traces(machine) == []
    assert machine.leases() == []
    if netns == "there":  # the kernel removes the pair together with a namespace
        assert machine.ports() == []


def test_del_of_one_of_two(machine: Machine, tmp_path: Path, backend: str) -> None:
    """Objects of the Go plugin for another container stay."""
    config = configured(machine, backend)
    add(machine, backend, config, tmp_path, "c1")
    before = traces(machine)
    _, container = add(machine, backend, config, tmp_path, "c2")

    machine.ok("bridge", "DEL", config, container, containerid="c2")

    assert traces(machine) == before
    assert len(machine.leases()) == 2


def age(machine: Machine) -> None:
    """Make every lease older than GC's grace time."""
    for address in machine.leases():
        path = Path(machine.data_dir, machine.name, address)
        os.utime(path, (path.stat().st_mtime - OLD,) * 2)


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_of_the_dead(machine: Machine, tmp_path: Path, backend: str, key: str) -> None:
    """GC removes what belongs to no valid attachment, of both kinds, and keeps the rest."""
    config = configured(machine, backend)
    add(machine, backend, config, tmp_path, "c1")
    kept, leases = traces(machine), machine.leases()
    _, gone = add(machine, backend, config, tmp_path, "c2")
    machine.do(gone, "ip link delete eth0")
    age(machine)

    machine.ok("bridge", "GC", {**config, key: [{"containerID": "c1", "ifname": "eth0"}]})

    assert traces(machine) == kept
    assert machine.leases() == leases


def test_gc_without_a_list(machine: Machine, tmp_path: Path, backend: str) -> None:
    """When the runtime sends no list, nothing tells that a container of Go's is gone: all stays."""
    config = configured(machine, backend)
    _, container = add(machine, backend, config, tmp_path)
    machine.do(container, "ip link delete eth0")
    age(machine)
    before = machine.leases()

    machine.ok("bridge", "GC", config)

    assert machine.leases() == before
    assert ("CNI-" in str(traces(machine))) == ("iptables" in backend)


def test_gc_of_another_network(machine: Machine, tmp_path: Path, backend: str) -> None:
    """GC of a network leaves what is another's."""
    config = configured(machine, backend)
    add(machine, backend, config, tmp_path)
    age(machine)
    before = traces(machine)
    other = configured(machine, backend, name=f"{machine.name}-2")

    machine.ok("bridge", "GC", {**other, "cni.dev/valid-attachments": []})

    assert traces(machine) == before
    assert len(machine.leases()) == 2


@pytest.mark.parametrize("alive", [True, False])
def test_gc_spares_a_living_container(
    machine: Machine, tmp_path: Path, backend: str, alive: bool
) -> None:
    """A container that the runtime does not name but that lives, by its addresses, keeps all."""
    config = configured(machine, backend)
    _, container = add(machine, backend, config, tmp_path)
    age(machine)
    before = traces(machine)

    with machine.process_in(container) if alive else nullcontext():
        machine.ok("bridge", "GC", {**config, "cni.dev/valid-attachments": []})

    spared = [line for line in traces(machine) if "cni-br-iface" not in line]
    assert spared == ([line for line in before if "cni-br-iface" not in line] if alive else [])
    assert len(machine.leases()) == (2 if alive else 0)


def test_odd_rules_of_others(machine: Machine) -> None:
    """A foreign comment with a quotation mark of its own does not stop GC."""
    machine.do(machine.host, "iptables -t nat -N CNI-odd")
    machine.command(
        machine.host,
        *("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.1.2.3"),
        *("-m", "comment", "--comment", "it's \"odd", "-j", "CNI-odd"),
    )
    config = configuration(machine, "iptables")

    machine.ok("bridge", "GC", {**config, "cni.dev/valid-attachments": []})

    assert "CNI-odd" in machine.command(machine.host, "iptables-save", "-t", "nat")
