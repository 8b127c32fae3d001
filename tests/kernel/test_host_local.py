"""host-local with real processes: the Go plugin on the same store, crashes, storms, namespaces."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host_local.node import Node

REFERENCE = Path(__file__).parents[2] / ".tools" / "reference" / "host-local"
# Not one address of the test host may lie in here: GC spares what is seen in use.
NET4, NET6 = "198.18.64.0/24", "fd5a:18::/64"
FIRST4, FIRST6 = "198.18.64.2", "fd5a:18::2"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without any lease."""
    return Node(tmp_path)


def go(node: Node, command: str, config: dict[str, Any], containerid: str = "c1") -> dict[str, Any]:
    """Call the Go plugin on the same store; return what it printed."""
    assert REFERENCE.exists(), "deploy/prerequisites.sh --reference builds the Go plugins"
    process = subprocess.run(
        [REFERENCE],
        env=node.environ(command, containerid),
        input=json.dumps(config).encode(),
        capture_output=True,
        check=False,
    )
    output: dict[str, Any] = json.loads(process.stdout or b"{}")
    return output


def ours(
    node: Node, command: str, config: dict[str, Any], containerid: str = "c1"
) -> dict[str, Any]:
    """Call our plugin, with the signature of `go`."""
    return node.call(command, config, containerid)


def addresses(output: dict[str, Any]) -> list[str]:
    """Return the addresses of an ADD's result."""
    assert "ips" in output, output
    return [ip["address"].partition("/")[0] for ip in output["ips"]]


# --- the Go plugin on the same store ---------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [(go, ours), (ours, go)], ids=["go-ours", "ours-go"])
def test_store_changes_hands(
    node: Node, one: Callable[..., Any], other: Callable[..., Any]
) -> None:
    """Each implementation continues, checks and frees the other's leases, to the last file."""
    config = node.config(NET4, NET6, routes=[{"dst": "0.0.0.0/0"}])

    assert addresses(one(node, "ADD", config)) == [FIRST4, FIRST6]
    assert addresses(other(node, "ADD", config, "c2")) == ["198.18.64.3", "fd5a:18::3"]
    assert addresses(one(node, "ADD", config, "c3")) == ["198.18.64.4", "fd5a:18::4"]
    for containerid in ("c1", "c2", "c3"):
        assert one(node, "CHECK", config, containerid) == {}
        assert other(node, "CHECK", config, containerid) == {}
    for containerid, first, second in (("c1", other, one), ("c2", one, other), ("c3", other, one)):
        assert first(node, "DEL", config, containerid) == {}
        assert "code" in second(node, "CHECK", config, containerid)
        assert second(node, "DEL", config, containerid) == {}
    assert (node.leases(), node.records()) == ({}, [])
    assert addresses(other(node, "ADD", config, "c4")) == ["198.18.64.5", "fd5a:18::5"]


@pytest.mark.parametrize(("one", "other"), [(go, ours), (ours, go)], ids=["go-ours", "ours-go"])
def test_full_pool_is_full_for_both(
    node: Node, one: Callable[..., Any], other: Callable[..., Any]
) -> None:
    """Neither gives away an address of the other, and both say so in the same words."""
    config = node.config("198.18.64.0/29")
    for number in range(5):
        one(node, "ADD", config, f"c{number}")

    messages = [call(node, "ADD", config, "c9")["msg"] for call in (one, other)]

    for message in messages:
        assert message.startswith(
            "failed to allocate for range 0: no IP addresses available in range set:"
            " 198.18.64.1-198.18.64.6"
        )
    again = other(node, "ADD", config, "c1")["msg"]
    assert "198.18.64.3 has been allocated to c1, duplicate allocation is not allowed" in again


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_same_result_as_the_go_plugin(tmp_path: Path, version: str) -> None:
    """The same ADD on two empty stores prints the same and leaves the same files."""
    outcomes = []
    for call in (go, ours):
        node = Node(tmp_path / call.__name__)
        resolv = tmp_path / "resolv.conf"
        resolv.write_text("# x\nnameserver 10.0.0.1\nsearch a b\noptions c\ndomain d\n")
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "fd00::/8", "gw": "fd5a:18::9", "priority": 7}]
        config = node.config(NET4, NET6, routes=routes, resolvConf=str(resolv))
        config |= {"cniVersion": version, "args": {"cni": {"ips": ["fd5a:18::77"]}}}
        output = call(node, "ADD", config)
        files = {path.name: path.read_bytes() for path in node.store.iterdir()}
        outcomes.append((output, files))

    assert outcomes[0] == outcomes[1]


def test_odd_addresses_have_the_names_that_go_gives(node: Node) -> None:
    """An IPv6 address is written in one way only, or the two would give it twice."""
    for number, text in enumerate(
        ("fd00:0:0:1::", "fd00:0:1:0:1:0:1:0", "fd00::1:0:0:0", "fd00:1:0:2:0:3:0:4", "fd00::a:b")
    ):
        config = node.config(subnet="fd00::/16", ranges=[])
        config["runtimeConfig"] = {"ips": [text]}
        (written,) = addresses(go(node, "ADD", config, f"go{number}"))
        message = node.refusal("ADD", config, f"our{number}")
        assert f"held by go{number}/eth0" in message
        assert written in node.leases()


def test_go_is_not_misled_by_our_leftovers(node: Node) -> None:
    """A temporary file of a killed call neither blocks nor lives on in the Go plugin's hands."""
    config = node.config(NET4)
    node.add(config)
    os.link(node.store / FIRST4, node.store / ".pycni-new")

    assert addresses(go(node, "ADD", config, "c2")) == ["198.18.64.3"]
    assert go(node, "DEL", config) == {}
    assert list(node.leases()) == ["198.18.64.3"]


# --- storms ----------------------------------------------------------------------------------


def _add_many(root: Path, config: dict[str, Any], worker: int, count: int) -> list[str]:
    node = Node(root)
    return [ip for n in range(count) for ip in node.add(config, f"w{worker}x{n}")]


def _churn(root: Path, config: dict[str, Any], worker: int, count: int) -> list[str]:
    """Add and delete with both implementations in turn; leave one lease per worker."""
    node = Node(root)
    for n in range(count):
        call, back = (ours, go) if (n + worker) % 2 else (go, ours)
        got = addresses(call(node, "ADD", config, f"w{worker}x{n}"))
        for address in got:
            owner = (node.store / address).read_bytes()
            assert owner == f"w{worker}x{n}\r\neth0".encode()
        if n < count - 1:
            assert back(node, "DEL", config, f"w{worker}x{n}") == {}
    return got


def _storm(job: Callable[..., list[str]], node: Node, config: dict[str, Any], *, count: int) -> Any:
    with multiprocessing.get_context("fork").Pool(16) as pool:
        return pool.starmap(job, [(node.root, config, worker, count) for worker in range(16)])


def test_sixteen_processes(node: Node) -> None:
    """16 x 20 dual-stack ADDs at once give 640 addresses, none twice, none skipped."""
    config = node.config("198.18.64.0/22", NET6)

    results = _storm(_add_many, node, config, count=20)

    got = [address for result in results for address in result]
    assert len(got) == len(set(got)) == 640
    assert set(got) == set(node.leases())
    assert "198.18.65.65" in got  # the 320th
    assert "198.18.65.66" not in got


def test_storm_of_both_implementations(node: Node) -> None:
    """Go's and our calls on one store, all at once, never meet each other's addresses."""
    config = node.config("198.18.64.0/27", NET6)

    results = _storm(_churn, node, config, count=8)

    got = [address for result in results for address in result]
    assert len(got) == len(set(got)) == 32
    assert set(got) == set(node.leases())
    assert not [name for name in os.listdir(node.store) if name.startswith(".")]
