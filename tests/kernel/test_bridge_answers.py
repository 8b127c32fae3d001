"""bridge with answers of IPAM, and prevResults, that are well-formed but absurd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.machine import Json, Machine


def answering(machine: Machine, tmp_path: Path, answer: Json) -> Json:
    """Return a network whose IPAM plugin gives `answer` to ADD."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "answer.json").write_text(json.dumps({"cniVersion": "1.1.0", **answer}))
    program = directory / "absurd"
    program.write_text(
        f'#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\ncat "{directory}/answer.json"\n'
    )
    program.chmod(0o755)
    return machine.network(ipam={"type": "absurd"}, ipMasq=True)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (
            {"ips": [{"address": "10.1.2.3/24", "gateway": "fd00::1"}]},
            "gateway fd00::1 for 10.1.2.3",
        ),
        (
            {"ips": [{"address": "fd00::3/64", "gateway": "10.0.0.1"}]},
            "gateway 10.0.0.1 for fd00::3",
        ),
        (
            {
                "ips": [{"address": "10.1.2.3/24"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}],
            },
            "route to 0.0.0.0/0 via fd00::1",
        ),
        (
            {"ips": [{"address": "10.1.2.3/24"}, {"address": "10.1.2.3/24"}]},
            "address 10.1.2.3/24 more than once",
        ),
        ({"ips": [{"address": "255.255.255.255/32"}]}, "no address after 255.255.255.255/32"),
        ({"ips": [{"address": f"{'ffff:' * 7}ffff/128"}]}, "no address after ffff:"),
    ],
    ids=["gateway6", "gateway4", "route", "twice", "last4", "last6"],
)
def test_absurd_answer_is_refused(
    machine: Machine, tmp_path: Path, answer: Json, named: str
) -> None:
    """The error names what cannot be, nothing is left, and the log has no traceback."""
    container = machine.container()
    config = answering(machine, tmp_path, answer)

    error = machine.refused("bridge", "ADD", config, container, path=str(tmp_path / "bin"))

    assert named in error["msg"]
    assert machine.ports() == []
    assert machine.nft() == []
    assert not [line for line in machine.log if "Traceback" in line]


@pytest.mark.parametrize("address", ["10.1.2.3/32", "fd00::5/128"])
def test_subnet_of_one_address_has_the_next_as_its_gateway(
    machine: Machine, tmp_path: Path, address: str
) -> None:
    """A host route's address without a gateway gets the address after it, as in the reference."""
    config = answering(machine, tmp_path, {"ips": [{"address": address}]})

    result = machine.ok("bridge", "ADD", config, machine.container(), path=str(tmp_path / "bin"))

    assert result["ips"][0]["gateway"] in ("10.1.2.4", "fd00::6")


def test_check_with_an_absurd_prev_result(machine: Machine) -> None:
    """CHECK of a prevResult whose gateway is of the other family says that something differs."""
    container = machine.container()
    config = machine.network()
    result = machine.ok("bridge", "ADD", config, container)
    result["ips"][0]["gateway"] = "fd00::1"

    reply = machine.invoke("bridge", "CHECK", {**config, "prevResult": result}, container)

    assert b"internal error" not in reply.stdout
    assert not [line for line in machine.log if "Traceback" in line]


def test_check_leaves_interfaces_of_other_plugins_alone(machine: Machine) -> None:
    """Addresses that a later plugin of the chain has for another interface are not bridge's."""
    container = machine.container()
    config = machine.network(ipMasq=True)
    result: dict[str, Any] = machine.ok("bridge", "ADD", config, container)
    result["interfaces"].append({"name": "eth9", "sandbox": container})
    other = {"address": "172.31.0.5/24", "gateway": "172.31.0.1"}
    result["ips"].append({**other, "interface": len(result["interfaces"]) - 1})

    machine.ok("bridge", "CHECK", {**config, "prevResult": result}, container)


def test_gc_without_iptables(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nat table of nftables' own and no iptables on the host: GC has nothing to look for."""
    machine.command(machine.host, "nft", "add table ip nat")
    chain = "add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }"
    machine.command(machine.host, "nft", chain)
    monkeypatch.setattr("cni_common.kernel.iptables._PATH", "/nonexistent")

    machine.ok("bridge", "GC", machine.network(**{"cni.dev/valid-attachments": []}))


def test_gc_passes_over_a_damaged_record(machine: Machine) -> None:
    """A record that is no file does not keep GC from the rest."""
    config = machine.network(**{"cni.dev/valid-attachments": []})
    container = machine.container()
    machine.ok("bridge", "ADD", machine.network(), container)
    (record,) = [p for p in Path(machine.state_dir).rglob("*") if p.name.startswith("bridge-")]
    (record.parent / f"{record.name[:-1]}~").symlink_to("/nonexistent")

    machine.ok("bridge", "GC", config)


def test_status_of_a_name_that_is_taken(machine: Machine) -> None:
    """STATUS notices that the bridge's name belongs to something else, as ADD would."""
    machine.command(machine.host, "ip", "link", "add", "br0", "type", "veth", "peer", "name", "x")

    error = machine.refused("bridge", "STATUS", machine.network())

    assert "'br0' already exists but is not a bridge" in error["msg"]


@pytest.mark.parametrize("length", [100, 241, 255])
def test_iptables_comment_of_long_names(machine: Machine, length: int) -> None:
    """Names of any length give a comment that iptables takes."""
    container = machine.container()
    config = machine.network(name="n" * length, ipMasq=True, ipMasqBackend="iptables")

    machine.ok("bridge", "ADD", config, container)
    machine.ok("bridge", "DEL", config, container)
