"""Attachment records that cannot be read: a living container keeps all, and its DEL works."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from commands import DONE, FOUND
from tests.kernel.ports import Node, port
from tests.kernel.test_commands import OLD, Alive, age, asked, config, dead, kept, pycni, records
from tests.kernel.walls import Walls
from tests.machine import Json, Machine

pytestmark = pytest.mark.without_engine("the commands know nothing of it")

# The damage of a record's bytes, and the message about it.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "first line": (lambda data: b"\xff" + data, "line 1 cannot be read"),
    "second line": (
        lambda data: data.replace(b"\n", b"\n\0\n", 1),
        "line 2 cannot be read",
    ),
    "garbage": (lambda _data: b"\x00\xff\n" * 500, "line 1 cannot be read"),
    "header lost": (lambda data: data.partition(b"\n")[2], "its first line is missing"),
    "half": (lambda data: data[: data.index(b"\n") // 2], "it is empty"),
    "empty": (lambda _data: b"", "it is empty"),
}


@pytest.fixture
def conf(machine: Machine) -> Json:
    """Return the configuration of a bridge with everything that has a record."""
    return config(machine)


@pytest.fixture
def alive(machine: Machine, conf: Json) -> Iterator[Alive]:
    """Give a container that lives."""
    with ExitStack() as stack:
        yield Alive(machine, stack, conf, "alive")


def damage(machine: Machine, plugin: str, kind: str) -> Path:
    """Damage the plugin's only record, which is then old; return its file."""
    age(machine)
    (path,) = (one for one in records(machine) if one.name.startswith(plugin))
    path.write_bytes(DAMAGE[kind][0](path.read_bytes()))
    os.utime(path, (time.time() - OLD,) * 2)
    return path


@pytest.mark.rotating(2)
@pytest.mark.parametrize("plugin", ["bridge", "host-local"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_of_the_living(machine: Machine, conf: Json, alive: Alive, plugin: str, kind: str) -> None:
    """It is shown with its owner and its damage, and everything stays until DEL."""
    path = damage(machine, plugin, kind)
    before = kept(machine), machine.addresses(alive.netns, "eth0")

    (found,) = asked(machine, "audit", status=FOUND)["findings"]
    removed = asked(machine, "reclaim", status=DONE)["removed"]
    machine.ok("bridge", "GC", {**conf, "cni.dev/valid-attachments": []})
    machine.ok("bridge", "GC", conf)

    assert (found["kind"], found["what"], found["reclaim"]) == ("record", str(path), "no")
    assert (found["network"], found["containerid"]) == (machine.name, "alive")
    assert "killed" not in found["reason"]
    assert "'pycni repair' may write it anew" in found["reason"]
    assert removed == []
    assert (kept(machine), machine.addresses(alive.netns, "eth0")) == before
    machine.ok("bridge", "DEL", conf, alive.netns, containerid="alive")
    left = kept(machine)
    assert (left["files"], left["leases"], left["ports"]) == ([], [], [])
    assert machine.masqueraded() == {}


@pytest.mark.parametrize("kind", ["first line", "garbage", "half"])
def test_gc_with_its_owner_on_the_list(
    machine: Machine, conf: Json, alive: Alive, kind: str
) -> None:
    """GC finds the owner of a record that does not name it by the name of the file."""
    path = damage(machine, "bridge", kind)
    content = path.read_bytes()
    valid = [{"containerID": "alive", "ifname": "eth0"}]

    machine.ok("bridge", "GC", {**conf, "cni.dev/valid-attachments": valid})

    assert path.read_bytes() == content
    assert len(machine.leases()) == len(machine.masqueraded()) == 1
    assert alive.address in machine.leases()


@pytest.mark.parametrize("kind", DAMAGE)
def test_explain(machine: Machine, alive: Alive, kind: str) -> None:
    """Nothing is missing: the damage, and what the kernel has under the container's names."""
    damage(machine, "bridge", kind)

    (attachment,) = asked(machine, "explain", "alive")["attachments"]
    shown = pycni(machine, "explain", "alive").stdout

    states = {one["plugin"]: one["damage"] for one in attachment["records"]}
    assert states == {"bridge": DAMAGE[kind][1], "host-local": ""}
    assert f"damaged: {DAMAGE[kind][1]}" in shown
    assert attachment["netns"]["alive"] is True
    objects = {one["kind"]: one for one in attachment["objects"]}
    assert objects["masquerade"]["present"] is True
    assert alive.address in objects["masquerade"]["what"]


def test_of_nobody(machine: Machine, alive: Alive) -> None:
    """A damaged record whose owner nothing tells is kept and shown; `explain` says that it is."""
    odd = records(machine)[0].with_name(f"bridge-{'0' * 32}-{'1' * 32}")
    os.mkfifo(odd)
    os.utime(odd, (time.time() - OLD,) * 2)

    (found,) = asked(machine, "audit", status=FOUND)["findings"]
    asked(machine, "reclaim", status=DONE)
    explained = pycni(machine, "explain", "alive")

    assert (found["what"], found["containerid"]) == (str(odd), "")
    assert "it is a FIFO" in found["reason"]
    assert odd.exists()
    assert explained.returncode == DONE
    assert alive.address in explained.stdout
    assert "1 attachment records do not say of which container" in explained.stderr


def test_of_the_dead(machine: Machine, conf: Json) -> None:
    """A damaged record of a dead container stays until DEL, as its content is unknown."""
    dead(machine, conf)
    path = damage(machine, "bridge", "second line")

    for _ in range(2):
        for one in asked(machine, "reclaim", status=FOUND)["removed"]:
            assert one["kind"] != "record"
        os.utime(path, (time.time() - OLD,) * 2)
    machine.ok("bridge", "GC", {**conf, "cni.dev/valid-attachments": []})

    assert path.exists()
    assert any(f"its record '{path}' is damaged, line 2" in line for line in machine.log)
    machine.ok("bridge", "DEL", conf, containerid="dead")
    assert records(machine) == []
    assert machine.masqueraded() == {}


@pytest.mark.usefixtures("alive")
def test_add_over_a_damaged_record(machine: Machine, conf: Json) -> None:
    """A second ADD is refused, says what to do, and harms nothing."""
    path = damage(machine, "bridge", "garbage")
    before = kept(machine), path.read_bytes()

    error = machine.refused("bridge", "ADD", conf, machine.container(), containerid="alive")

    assert error["code"] == 4
    assert f"'{path}' is damaged (line 1 cannot be read); DEL it first" in error["msg"]
    assert (kept(machine), path.read_bytes()) == before


def test_add_of_an_address_writes_the_record_anew(machine: Machine) -> None:
    """host-local has in its leases what its record says, and repairs that with the next ADD."""
    conf = machine.network()
    container = machine.container()
    machine.ok("host-local", "ADD", conf, container)
    path = damage(machine, "host-local", "garbage")
    Path(machine.data_dir, machine.name, machine.leases()[0]).unlink()

    machine.ok("host-local", "ADD", conf, container)

    (line,) = path.read_bytes().splitlines()
    assert json.loads(line)["lease"]["addresses"] == machine.leases()


def test_isolation_that_a_damaged_record_may_need(machine: Machine) -> None:
    """A bridge stays isolated when another container leaves it, if a record cannot be read."""
    walls = Walls(machine)
    walls.admitted("c1", "c2", ingressPolicy="same-bridge")
    isolated = [one for one in machine.nft() if "br0" in str(one)]
    path = next(
        one for one in records(machine) if b'"c1"' in one.read_bytes() and "firewall-" in one.name
    )
    path.write_bytes(b"\xff\n")

    walls.ok("DEL", "c2", ingressPolicy="same-bridge")
    walls.ok("GC", "c2", ingressPolicy="same-bridge")
    for _ in range(2):
        left = asked(machine, "reclaim", status=DONE)["kept"]
        assert [one["kind"] for one in left].count("firewall") == 3
        age_first_seen(machine)

    assert [one for one in machine.nft() if "br0" in str(one)] == isolated


def age_first_seen(machine: Machine) -> None:
    """Have time pass since `reclaim` saw objects without a record for the first time."""
    path = Path(machine.state_dir, "reclaim.json")
    first = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value - OLD for key, value in first.items()}))


def test_port_that_a_damaged_record_has(machine: Machine) -> None:
    """After a flush of the ruleset, too, no other container gets the port."""
    node = Node(machine)
    owner, other = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080)), owner)
    damage(machine, "portmap", "garbage")
    machine.do(machine.host, "nft flush ruleset")

    config = node.config(port(8080), containerid="c2")
    error = machine.refused("portmap", "ADD", config, other, containerid="c2")
    node.ok("DEL", node.config(port(8080)), owner)
    node.ok("ADD", config, other, containerid="c2")

    assert "8080/tcp" in error["msg"]
    assert "it cannot be told whether it is alive" in error["msg"]


def test_odd_file_of_ports(machine: Machine) -> None:
    """In the place of a file of ports it keeps an ADD from its ports, and no DEL from its own."""
    node = Node(machine)
    first, second = node.attach(), node.attach("c2")
    node.ok("ADD", node.config(port(8080)), first)
    (path,) = (one for one in Path(machine.state_dir, "hostports").iterdir() if ":" not in one.name)
    path.unlink()
    os.mkfifo(path)

    config = node.config(port(81), containerid="c2")
    error = machine.refused("portmap", "ADD", config, second, containerid="c2")
    node.ok("DEL", node.config(port(8080)), first)

    assert f"'{path}' is a FIFO, where a file of this suite belongs; remove it" in error["msg"]
    assert node.mapped() == {}
    assert node.records() == []
