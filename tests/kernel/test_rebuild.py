"""`pycni repair` and damaged records: written anew as they were, or left with the reason."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.record import Records
from cni_common.spec.request import Attachment
from commands import DONE, FOUND, LACKING
from tests.kernel.ports import Node, port
from tests.kernel.test_commands import asked, kept, pycni
from tests.machine import Json, Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(120),
]
PORTS = [port(8080), port(53, 53, "udp")]
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u1"
OF_RUNTIME = ("name", "cniVersion", "runtimeConfig", "prevResult")


class Attached:
    """A living container with host ports, and what libcni would have kept of its ADD."""

    def __init__(
        self,
        machine: Machine,
        stack: ExitStack,
        results: Path,
        *,
        netns: str = "",
        ifname: str = "eth0",
        **keys: Any,
    ) -> None:
        """`netns`: of the container if it is attached to another network already."""
        self.machine, self.results, self.ifname = machine, results, ifname
        self.netns = netns or machine.container()
        if not netns:
            stack.enter_context(machine.process_in(self.netns))
        first: Json = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
        first = {"name": machine.name, "cniVersion": "1.1.0", **first, **keys}
        first["ipam"] = first.get("ipam") or Node(machine).network()["ipam"]
        how: Json = {"args": ARGS, "ifname": ifname}
        result = machine.ok(first["type"], "ADD", first, self.netns, **how)
        second: Json = {
            **{key: first[key] for key in ("name", "cniVersion")},
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": PORTS},
            "prevResult": result,
        }
        machine.ok("portmap", "ADD", second, self.netns, **how)
        self.chain = [first, second]
        self.keep(result)

    def keep(self, result: Json, **changes: object) -> None:
        """Write the file of libcni."""
        plugins = [
            {key: value for key, value in one.items() if key not in OF_RUNTIME}
            for one in self.chain
        ]
        network = {key: self.chain[0][key] for key in ("name", "cniVersion")}
        text = json.dumps({**network, "plugins": plugins}).encode()
        content = {
            "kind": "cniCacheV1",
            "containerId": "c1",
            "config": base64.b64encode(text).decode(),
            "ifName": self.ifname,
            "networkName": self.chain[0]["name"],
            "netns": self.netns,
            "cniArgs": [one.split("=") for one in ARGS.split(";")],
            "capabilityArgs": {"portMappings": PORTS},
            "result": result,
            **changes,
        }
        self.results.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(content))
        self.file.chmod(0o600)

    @property
    def file(self) -> Path:
        """The file of libcni."""
        return self.results / f"{self.chain[0]['name']}-c1-{self.ifname}"

    def record(self, plugin: str) -> Path:
        """Return the file of a record."""
        owner = self.chain[0]["name"], Attachment("c1", self.ifname)
        return Path(Records(self.machine.state_dir).path_of(plugin, *owner))

    def repair(self, *words: str, status: int = DONE) -> Json:
        """Return what repair says."""
        words = ("repair", "c1", "--results-dir", str(self.results), *words)
        return asked(self.machine, *words, status=status)

    def delete(self) -> None:
        """Detach it."""
        for one in reversed(self.chain):
            self.machine.ok(one["type"], "DEL", one, self.netns, ifname=self.ifname)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The directory of libcni."""
    return tmp_path / "results"


@pytest.fixture
def attached(machine: Machine, results: Path) -> Iterator[Attached]:
    """A container on a bridge."""
    with ExitStack() as stack:
        yield Attached(machine, stack, results, macspoofchk=True)


def facts(path: Path) -> Json:
    """Return what a record says."""
    found: Json = {}
    for line in path.read_text().splitlines():
        found |= json.loads(line)
    if "stdin" in found:
        found["stdin"] = json.loads(found["stdin"])
    return found


CHAINS: dict[str, Json] = {
    "bridge": {"macspoofchk": True},
    "bridge with iptables": {"ipMasqBackend": "iptables", "mtu": 1400},
    "ptp": {"type": "ptp"},
}


@pytest.mark.parametrize("damage", [b"\xff", b""])
@pytest.mark.parametrize("chain", CHAINS)
def test_as_it_was(machine: Machine, results: Path, chain: str, damage: bytes) -> None:
    """Each record says again what it said, one at a time and all at once; DEL leaves nothing."""
    with ExitStack() as stack:
        attached = Attached(machine, stack, results, **CHAINS[chain])
        plugins = [attached.chain[0]["type"], "host-local", "portmap"]
        before = {plugin: facts(attached.record(plugin)) for plugin in plugins}

        for lost in (*([one] for one in plugins), plugins):
            for plugin in lost:
                attached.record(plugin).write_bytes(damage)
            would = attached.repair("--dry-run", status=FOUND)
            told = attached.repair()

            names = {one["plugin"] for one in told["rebuilt"]}
            assert names == {one["plugin"] for one in would["rebuilt"]} == set(lost)
            assert told["damaged"] == would["damaged"] == told["missing"] == []
            found = {plugin: facts(attached.record(plugin)) for plugin in plugins}
            for plugin in plugins:  # of the path libcni knows nothing; the other is a later look's
                for one in (found[plugin], before[plugin]):
                    one.pop("cni_path", None)
                    one.pop("gone_since", None)
            assert found == before

        assert pycni(machine, "audit").returncode == DONE
        attached.delete()
    left = kept(machine)
    assert (left["files"], left["leases"], left["ports"]) == ([], [], [])
    ruleset = str(machine.nft())  # iptables leaves its own tables
    assert ("pycni" in ruleset, "CNI-" in ruleset) == (False, False)


def refusal(attached: Attached, plugin: str = "bridge") -> str:
    """Damage a record, and return why it is left as it is."""
    path = attached.record(plugin)
    path.write_bytes(b"\xff\n")
    told = attached.repair(status=LACKING)
    assert path.read_bytes() == b"\xff\n"
    assert told["rebuilt"] == []
    (one,) = told["damaged"]
    assert (one["plugin"], one["record"]) == (plugin, str(path))
    return str(one["reason"])


def test_without_a_result(attached: Attached) -> None:
    """Nothing tells what the runtime has asked for."""
    attached.file.unlink()

    assert "No such file" in refusal(attached)


def test_of_another_user(attached: Attached) -> None:
    """A file that others can write is not believed."""
    attached.file.chmod(0o666)

    assert "not a file that root alone can write" in refusal(attached)


def test_of_another_attachment(attached: Attached) -> None:
    """A file that is not what its name says is not believed."""
    attached.keep(attached.chain[1]["prevResult"], containerId="c2")

    assert "is of another attachment" in refusal(attached)


def test_with_other_addresses(attached: Attached) -> None:
    """A result that the configuration does not lead to is not believed."""
    result = json.loads(json.dumps(attached.chain[1]["prevResult"]))
    result["ips"][0]["address"] = "10.99.0.2/24"
    attached.keep(result)

    assert refusal(attached)


def test_what_the_node_does_not_have(attached: Attached) -> None:
    """Where an object is gone, nothing says that it was the attachment's."""
    attached.machine.do(attached.machine.host, "nft flush ruleset")

    assert "does not have all of it" in refusal(attached)


@pytest.mark.parametrize("key", ["name", "mac"])
def test_another_interface(attached: Attached, key: str) -> None:
    """An interface of the host that is not the one of the result is not believed."""
    result = json.loads(json.dumps(attached.chain[1]["prevResult"]))
    result["interfaces"][1][key] = {"name": "veth9", "mac": "02:00:00:00:00:09"}[key]
    attached.keep(result)

    assert "does not have all of it" in refusal(attached)


def test_what_was_there_before(machine: Machine, results: Path) -> None:
    """A plugin that gives back what it has found noted that, and nothing else knows it."""
    with ExitStack() as stack:
        attached = Attached(machine, stack, results)
        tuning: Json = {**attached.chain[1], "type": "tuning", "mtu": 1400}
        tuning = {key: tuning[key] for key in tuning if "apabilit" not in key}
        machine.ok("tuning", "ADD", tuning, attached.netns, args=ARGS)
        attached.chain.append(tuning)
        attached.keep(tuning["prevResult"])

        assert "may have noted what was on the node before" in refusal(attached, "tuning")
        shown = pycni(machine, "repair", "c1", "--results-dir", str(results)).stdout

    assert "damaged record of container c1" in shown
    assert "it stays, for its DEL: its part" in " ".join(shown.split())


@pytest.mark.parametrize("lost", [[0], [1], [0, 1], [2, 1], [0, 1, 2]])
def test_networks_that_wait_for_a_port(machine: Machine, results: Path, lost: list[int]) -> None:
    """A container's other networks wait for its ports as before, and get them one by one."""
    with ExitStack() as stack:
        attached: list[Attached] = []
        for number in range(3):
            ipam = {"type": "host-local", "dataDir": machine.data_dir}
            keys: Json = {
                "name": f"{machine.name}-{number}",
                "bridge": f"br{number}",
                "ipam": {**ipam, "subnet": f"10.{10 + number}.0.0/24"},
                "netns": attached[0].netns if attached else "",
            }
            attached.append(Attached(machine, stack, results, ifname=f"eth{number}", **keys))
        before = [facts(one.record("portmap")) for one in attached]
        for number in lost:
            attached[number].record("portmap").write_bytes(b"\xff")

        told = attached[0].repair()

        assert len(told["rebuilt"]) == len(lost)
        assert told["damaged"] == told["missing"] == []
        waiting = [facts(one.record("portmap"))["host-ports"]["waiting"] for one in attached]
        assert waiting == [one["host-ports"]["waiting"] for one in before]
        assert [len(one) for one in waiting] == [2, 0, 0]
        for number in range(3):
            ports = machine.command(
                machine.host, "nft", "list", "map", "inet", "pycni", "hostports4"
            )
            owners = set(re.findall(r'comment "([^"]*)"', ports))
            assert owners == {f"portmap {machine.name}-{number} c1 eth{number}"}
            attached[number].delete()
