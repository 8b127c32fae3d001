"""host-local's operations, as far as they need no namespace and no second process."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cni_common.spec.errors import Code
from plugins.host_local import allocate
from plugins.host_local.store import Store
from tests.unit.host_local.node import NETWORK, Node

DUAL = ("10.0.0.0/29", "fd00::/64")


def test_life_of_an_attachment(node: Node) -> None:
    """ADD leases one address per range set, CHECK finds them, DEL frees them."""
    config = node.config(*DUAL)

    assert node.add(config) == ["10.0.0.2", "fd00::2"]
    assert node.add(config, "c2") == ["10.0.0.3", "fd00::3"]
    assert node.leases()["10.0.0.2"] == node.leases()["fd00::2"] == "c1\r\neth0"
    assert len(node.records()) == 2
    assert node.call("CHECK", config) == {}
    assert node.call("DEL", config) == {}
    assert set(node.leases()) == {"10.0.0.3", "fd00::3"}
    assert len(node.records()) == 1
    assert node.call("DEL", config) == {}


def test_round_robin(node: Node) -> None:
    """A freed address comes last."""
    config = node.config("10.0.0.0/29")
    got = []
    for number in range(6):
        got += node.add(config, f"c{number}")
        node.call("DEL", config, f"c{number}")

    assert got == [f"10.0.0.{number}" for number in (2, 3, 4, 5, 6, 2)]


def test_add_twice(node: Node) -> None:
    """The second ADD is refused with all that is to be known, and changes nothing."""
    config = node.config(*DUAL)
    node.add(config)
    before = (node.leases(), node.records(), (node.store / "last_reserved_ip.0").read_text())

    for requested in ([], ["10.0.0.4"], ["fd00::9"], ["10.0.0.2"]):
        config["runtimeConfig"] = {"ips": requested}
        message = node.refusal("ADD", config)
        assert "10.0.0.2 has been allocated to c1, duplicate allocation is not allowed" in message
        assert f"since {time.strftime('%Y-')}" in message

    assert (node.leases(), node.records()) == before[:2]
    assert (node.store / "last_reserved_ip.0").read_text() == before[2]
    assert node.call("CHECK", config) == {}


@pytest.mark.parametrize("content", ["c1\r\neth0", "c1", " c1\n"])
def test_add_after_the_go_plugins(node: Node, content: str) -> None:
    """A lease that the Go plugin made counts, in both of its forms; no record is left of us."""
    node.lease("fd00::5", content)

    message = node.refusal("ADD", node.config(*DUAL))

    assert "failed to allocate for range 1: fd00::5 has been allocated to c1" in message
    assert node.leases() == {"fd00::5": content}
    assert node.records() == []


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_one_lock_and_one_look(node: Node, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """However many range sets and leases: one lock, no list, and no other's lease is read."""
    config = node.config("10.0.0.0/29", "10.1.0.0/29", "fd00::/64")
    for containerid in ("c2", "c3", "c1"):
        node.add(config, containerid)
    if command == "ADD":
        node.call("DEL", config)
    others = {name for name, text in node.leases().items() if "c1" not in text}
    calls: Counter[str] = Counter()

    class CountingStore(Store):
        def disk(self, call: Any, *args: Any, **kwargs: Any) -> Any:
            calls[args[0] if args[0] in others else call.__name__] += 1
            return call(*args, **kwargs)

    monkeypatch.setattr(allocate, "Store", CountingStore)
    output = node.call(command, config)

    assert "code" not in output
    assert len(others) == 6
    assert not others & set(calls)
    assert (calls["flock"], calls["listdir"]) == (1, 0)


def test_other_interface_is_another_attachment(node: Node) -> None:
    """A container may have several interfaces on a network; each is deleted by itself."""
    config = node.config("10.0.0.0/29")
    node.add(config)
    node.add(config, CNI_IFNAME="net1")

    node.call("DEL", config)

    assert node.leases() == {"10.0.0.3": "c1\r\nnet1"}


def test_add_takes_over_an_interrupted_add(node: Node) -> None:
    """A record without lease is of an ADD that was killed: it stands in nobody's way."""
    config = node.config("10.0.0.0/29")
    node.add(config)
    (node.store / "10.0.0.2").unlink()

    assert node.add(config) == ["10.0.0.3"]
    node.call("DEL", config)
    assert (node.leases(), node.records()) == ({}, [])


@pytest.mark.parametrize("sets", [("10.0.0.0/29", "10.1.0.0/30"), ("10.1.0.0/30", "10.0.0.0/29")])
def test_exhausted(node: Node, sets: tuple[str, ...]) -> None:
    """One set without address fails the ADD, names the holder, and takes nothing elsewhere."""
    node.lease("10.1.0.2", "c9\r\neth0", age=5)
    index = sets.index("10.1.0.0/30")

    message = node.refusal("ADD", node.config(*sets))

    assert message.startswith(
        f"failed to allocate for range {index}: no IP addresses available in range set:"
        " 10.1.0.1-10.1.0.2: 1 of 1 in use; the oldest lease is 10.1.0.2 of c9/eth0 since 20"
    )
    assert list(node.leases()) == ["10.1.0.2"]
    assert node.records() == []


@pytest.mark.parametrize(
    ("ips", "message"),
    [
        (["10.0.0.4", "10.0.0.3"], "failed to allocate all requested IPs: 10.0.0.4 10.0.0.3: "),
        (["10.9.9.9"], "IPs: 10.9.9.9: 10.9.9.9, which runtimeConfig.ips asks for, is in no range"
                       " set of network 'testnet' (its ranges: 10.0.0.1-10.0.0.6, "),
        (["fd00::5", "10.9.9.9", "fd00::4"], "requested IPs: 10.9.9.9 fd00::5 fd00::4: "),
        (["10.0.0.1"], "failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway"),
        (["10.0.0.5"], "failed to allocate for range 0: requested IP address 10.0.0.5 is not"
                       " available in range set 10.0.0.1-10.0.0.6: held by c9/eth0 since"),
        (["fd00::6"], "range 1: requested IP address fd00::6 is not available in range set"),
    ],
)  # fmt: skip
def test_requested_address_refused(node: Node, ips: list[str], message: str) -> None:
    """A requested address that cannot be had fails the whole ADD, every time alike."""
    node.lease("10.0.0.5", "c9\r\neth0")
    node.lease("fd00::6", "")  # young, so perhaps being written by the Go plugin
    before = node.leases()
    config = {**node.config(*DUAL), "runtimeConfig": {"ips": ips}}

    assert message in node.refusal("ADD", config)
    assert node.leases() == before
    assert node.records() == []


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0"])
def test_versions(node: Node, version: str) -> None:
    """Every layout of results has room for one address of each family."""
    config = {**node.config(*DUAL), "cniVersion": version}

    output = node.call("ADD", config)

    if version < "0.3":
        assert (output["ip4"]["ip"], output["ip6"]["ip"]) == ("10.0.0.2/29", "fd00::2/64")
    else:
        assert [ip["address"] for ip in output["ips"]] == ["10.0.0.2/29", "fd00::2/64"]


@pytest.mark.parametrize(
    "change",
    [
        {"ipam": {"subnet": "nonsense"}},
        {"ipam": {"subnet": "10.7.0.0/24"}},
        {"ipam": {"subnet": 5, "dataDir": ["x"]}},
        {"ipam": {"dataDir": "relative"}},
        {"ipam": {"resolvConf": "/none"}},
        {"ipam": "x"},
        {"ipam": None},
        {"runtimeConfig": 7},
        {"args": {"cni": {"ips": [None]}}, "dns": 5},
        {"prevResult": {"cniVersion": "9", "ips": 3}},
    ],
    ids=str,
)
def test_delete_with_any_configuration(node: Node, change: dict[str, Any]) -> None:
    """Leases of ADD are freed with any later configuration."""
    node.add(node.config(*DUAL))

    assert node.call("DEL", {"cniVersion": "1.1.0", "name": NETWORK, **change}) == {}
    assert (node.leases(), node.records()) == ({}, [])


def test_delete_in_both_directories(node: Node) -> None:
    """The recorded directory is cleaned, and that of the configuration too."""
    node.add(node.config(*DUAL))
    other = node.root / "other" / NETWORK
    other.mkdir(parents=True)
    (other / "10.0.0.6").write_bytes(b"c1\r\neth0")
    (other / "10.0.0.5").write_bytes(b"c2\r\neth0")

    assert node.call("DEL", node.config(*DUAL, dataDir=str(other.parent))) == {}

    assert node.leases() == {}
    assert sorted(path.name for path in other.iterdir()) == ["10.0.0.5", "lock"]


def test_add_with_another_directory(node: Node) -> None:
    """While the old directory has a lease of the attachment, it gets none in another one."""
    node.add(node.config(*DUAL))
    moved = node.config(*DUAL, dataDir=str(node.root / "other"))

    message = node.refusal("ADD", moved)

    assert "duplicate allocation is not allowed" in message
    assert str(node.store) in message
    assert set(node.leases()) == {"10.0.0.2", "fd00::2"}
    node.call("DEL", moved)
    assert node.add(moved) == ["10.0.0.2", "fd00::2"]


def test_delete_legacy_leases(node: Node) -> None:
    """A bare id is freed through any interface, but only when the attachment has no other."""
    config = node.config("10.0.0.0/24")
    for address in ("10.0.0.7", "10.0.0.8"):
        node.lease(address, "c1")
    node.lease("10.0.0.9", "c1\r\neth0")
    node.lease("10.0.0.10", "c10")

    node.call("DEL", config)
    assert set(node.leases()) == {"10.0.0.7", "10.0.0.8", "10.0.0.10"}
    assert node.call("CHECK", config, CNI_IFNAME="eth5") == {}
    node.call("DEL", config, CNI_IFNAME="eth5")
    assert set(node.leases()) == {"10.0.0.10"}


def test_one_owner_of_many_addresses(node: Node) -> None:
    """Hundreds of leases with one content, as reservations have it, cost as much as others."""
    config = node.config("10.0.0.0/16")
    for number in range(600):
        node.lease(f"10.0.{2 + number // 200}.{number % 200}", "reserved")

    assert node.add(config) == ["10.0.0.2"]
    (index,) = (node.root / "run" / "indexes").iterdir()
    assert index.stat().st_size < 1 << 30

    node.call("DEL", config, "reserved")
    assert set(node.leases()) == {"10.0.0.2"}


@pytest.mark.parametrize("content", ["", "\0\0\0\0"])
def test_delete_frees_a_torn_lease(node: Node, content: str) -> None:
    """A file that names nobody, at an address that the record names, goes with the record."""
    config = node.config(*DUAL)
    address, _ = node.add(config)
    (node.store / address).write_text(content)
    node.lease("10.0.0.9", content)

    assert node.call("DEL", config) == {}

    assert (set(node.leases()), node.records()) == ({"10.0.0.9"}, [])
    assert node.add(config, "c2")[0] != address  # the search goes on behind it
    (node.store / "last_reserved_ip.0").unlink()
    assert node.add(config, "c3")[0] == address


def test_delete_tells_what_it_cannot_read(node: Node) -> None:
    """A recorded lease that is unreadable now is not passed over in silence."""
    config = node.config(*DUAL)
    node.add(config)
    (node.store / "10.0.0.2").unlink()
    (node.store / "10.0.0.2").symlink_to("/dev/null")

    message = node.refusal("DEL", config)

    assert f"cannot read the lease of 10.0.0.2 in '{node.store}'" in message
    assert len(node.records()) == 1
    (node.store / "10.0.0.2").unlink()
    assert node.call("DEL", config) == {}
    assert (node.leases(), node.records()) == ({}, [])


def test_delete_stays_in_its_directory(node: Node) -> None:
    """Files that are no leases, and sub-directories, are not touched."""
    node.add(node.config("10.0.0.0/29"))
    for path in (node.store / "sub" / "10.0.0.5", node.store / "notes"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"c1\r\neth0")

    node.call("DEL", node.config("10.0.0.0/29"))

    assert (node.store / "sub" / "10.0.0.5").exists()
    assert list(node.leases()) == ["notes"]


@pytest.mark.parametrize(
    ("ips", "message"),
    [
        (["10.0.0.2/29", "fd00::2/64"], ""),
        (["192.0.2.1/24", "10.0.0.2/29"], ""),
        (["192.0.2.1/24"], ""),
        (
            ["10.0.0.3/29"],
            "host-local: 10.0.0.3 should be reserved for c1 (eth0) but is held by c2",
        ),
        (
            ["10.0.0.2/29", "fd00::7/64"],
            "fd00::7 should be reserved for c1 (eth0) but is not reserved",
        ),
    ],
)
def test_check_compares_with_prev_result(node: Node, ips: list[str], message: str) -> None:
    """CHECK demands each address of the result that lies in our ranges, and only those."""
    config = node.config(*DUAL)
    node.add(config)
    node.add(config, "c2")
    config["prevResult"] = {"cniVersion": "1.1.0", "ips": [{"address": ip} for ip in ips]}

    output = node.call("CHECK", config)

    assert message in output.get("msg", "")
    assert bool(message) == bool(output)


def test_check_without_lease(node: Node) -> None:
    """CHECK names the container without an address, and does not make the directory."""
    message = node.refusal("CHECK", node.config("10.0.0.0/29"))

    assert message.startswith("host-local: Failed to find address added by container c1")
    assert not node.store.exists()


def test_status_of_a_full_range(node: Node) -> None:
    """STATUS is quiet while there is an address."""
    config = node.config("10.0.0.0/24", "10.1.0.0/30")

    assert node.call("STATUS", config) == {}
    node.lease("10.1.0.2", "c9\r\neth0")
    output = node.call("STATUS", config)

    assert output["code"] == Code.PLUGIN_NOT_AVAILABLE
    assert (
        "range set 1: no IP addresses available in range set: 10.1.0.1-10.1.0.2: 1 of 1 in use"
        in output["msg"]
    )
    assert set(node.leases()) == {"10.1.0.2"}


@pytest.mark.parametrize("where", ["networks", "run"])
def test_status_of_an_unusable_directory(node: Node, where: str) -> None:
    """STATUS tells that leases or records cannot be written."""
    (node.root / where).write_text("a file in the way")

    output = node.call("STATUS", node.config("10.0.0.0/24"))

    assert output["code"] == Code.PLUGIN_NOT_AVAILABLE
    assert str(node.root / where) in output["msg"]


def test_closed(node: Node) -> None:
    """A closed network gives out nothing and says why; its leases are kept, and freed.

    STATUS is as ever: by a STATUS that fails a cluster takes the pods away that run.
    """
    config = node.config("10.0.0.0/29")
    added = node.call("ADD", config)
    closed = node.config("10.0.0.0/29", closed="10.0.0.0/29 is of node b, too")

    refused = node.call("ADD", closed, "c2")
    status = node.call("STATUS", closed)

    assert refused["code"] == Code.TRY_AGAIN_LATER
    assert "network testnet is closed: 10.0.0.0/29 is of node b, too" in refused["msg"]
    assert status == {}
    assert node.call("CHECK", {**closed, "prevResult": added}) == {}
    assert node.leases() == {"10.0.0.2": "c1\r\neth0"}
    assert node.call("DEL", closed) == {}
    assert node.leases() == {}


def test_not_ready(node: Node, tmp_path: Path) -> None:
    """Until its file is there a network gives out nothing, and frees what it has given out."""
    path = tmp_path / "none" / "ready"
    config = node.config("10.0.0.0/29", readinessIndicatorFile=str(path))
    added = node.call("ADD", node.config("10.0.0.0/29"))

    refused, status = node.call("ADD", config, "c2"), node.call("STATUS", config)

    why = f"network testnet is not ready on this node: '{path}' is not there"
    assert (refused["code"], status["code"]) == (11, 50)
    assert why in refused["msg"]
    assert why in status["msg"]
    assert node.call("CHECK", {**config, "prevResult": added}) == {}
    assert node.call("DEL", config) == {}
    assert node.leases() == {}

    path.parent.mkdir()
    path.touch()
    assert node.call("STATUS", config) == {}
    assert node.call("ADD", config, "c2")["ips"][0]["address"] == "10.0.0.3/29"
