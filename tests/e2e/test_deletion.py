"""A DEL without an engine leaves work to a child: no caller waits for it, and it is over soon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node import Node, network, node_with
from tests.e2e.upgrades import install
from tests.machine import DIST
from tests.waits import wait_until


@pytest.fixture
def node() -> Iterator[Node]:
    """A pretend host without an engine."""
    with node_with(DIST) as made:
        yield made


def processes(node: Node) -> list[str]:
    """Return state and name of each process of the node, less the one that looks."""
    lines = node.command("ps", "-eo", "stat=,comm=").splitlines()
    return sorted(line for line in lines if not line.endswith(" ps"))


@pytest.mark.parametrize("keys", [{}, {"ipMasq": True, "macspoofchk": True}], ids=["plain", "nft"])
def test_no_process_stays(node: Node, keys: dict[str, Any]) -> None:
    """When DEL has answered the interface is gone, and so is each process soon after."""
    listed = network("1.1.0", ["10.83.0.0/24"], **keys)
    config = {"cniVersion": "1.1.0", "name": listed["name"], **listed["plugins"][0]}
    node.container("c1")
    before = processes(node)
    for _ in range(3):
        added = node.execute("bridge", "ADD", config, "/run/netns/c1")
        [port] = [one for one in json.loads(added.stdout)["interfaces"] if "veth" in one["name"]]

        done = node.execute("bridge", "DEL", config, "/run/netns/c1")

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert port["name"] not in node.links("")
        assert "eth0" not in node.links("/run/netns/c1")
    wait_until(lambda: processes(node) == before, "a process stays")


def test_the_program_of_the_bundle_waits(node: Node, tmp_path: Path) -> None:
    """DEL starts the one beside it, and goes on without it where it is gone."""
    install(DIST, tmp_path / "bin", "none")
    [program] = (tmp_path / "bin/.pycni").glob("*/netlink-send")
    real = program.rename(program.with_name("real"))
    program.write_text(f"#!/bin/sh\n: >{tmp_path}/started\nexec {real}\n")
    program.chmod(0o755)
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}
    node.container("c1")

    def cycle() -> None:
        for command in ("ADD", "DEL"):
            done = node.execute(
                "bridge", command, config, "/run/netns/c1", bin_dir=str(tmp_path / "bin")
            )
            assert done.returncode == 0, done.stdout
        assert "eth0" not in node.links("/run/netns/c1")

    cycle()
    wait_until((tmp_path / "started").exists, "DEL does not start it")
    program.unlink()
    cycle()
