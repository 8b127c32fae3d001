"""host-local while the clock is set: it is really set, so only in a virtual machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.containers import Container
from tests.kernel.test_host_local_reclaim import OLD, make_old
from tests.unit.host_local.node import Node

pytestmark = [
    pytest.mark.full_kernel,
    pytest.mark.later_user_mode,  # the clock is set
    pytest.mark.timeout(300),
]
YEAR = 365 * 86_400
NET29 = "198.18.70.0/29"  # five addresses
VALID = "cni.dev/valid-attachments"
Start = Callable[[], Container]

jumps = pytest.mark.parametrize("jump", [YEAR, -YEAR], ids=["forward", "back"])
ages = pytest.mark.parametrize("age", [0, OLD], ids=["young", "old"])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without any lease."""
    return Node(tmp_path)


@contextmanager
def clock_set_by(seconds: float) -> Iterator[None]:
    """Set the clock by so much, and back at the end."""
    # Never that of a machine which anybody lives on: tests/vm/boot.py names itself there.
    assert "boot_modules=" in Path("/proc/cmdline").read_text(), "not in the virtual machine"
    apart = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_BOOTTIME) + apart)


def populate(node: Node, container: Start, age: float) -> None:
    """Attach a container that lives and one that dies, beside one that the Go plugin has made."""
    config = node.config(NET29)
    dead = container()
    node.add(config, "alive", CNI_NETNS=container().netns)
    node.add(config, "dead", CNI_NETNS=dead.netns)
    node.lease("198.18.70.6", "gomade\r\neth0")
    assert node.call("CHECK", config, "gomade") == {}  # an index that knows when the boot began
    if age:
        make_old(node, age)
    dead.end()


def fill(node: Node, container: Start) -> list[str]:
    """Attach containers until there is no address, and return what they got."""
    config = node.config(NET29)
    got: list[str] = []
    for number in range(6):
        output = node.call("ADD", config, f"more{number}", CNI_NETNS=container().netns)
        if "code" in output:
            assert "no IP addresses available" in output["msg"]
            return got
        got += [ip["address"].partition("/")[0] for ip in output["ips"]]
    raise AssertionError(f"a range of five addresses has given {got}")


def listed(*names: str) -> list[dict[str, str]]:
    """Return the attachments that the runtime tells GC of."""
    return [{"containerID": name, "ifname": "eth0"} for name in names]


def assert_nothing_is_left(node: Node, *names: str) -> None:
    """Demand that DEL frees all, and that all addresses can be had again."""
    config = node.config(NET29)
    for name in ("alive", "dead", "gomade", *(f"more{number}" for number in range(6)), *names):
        assert node.call("DEL", config, name) == {}
    assert (node.leases(), node.records()) == ({}, [])
    for number in range(5):
        node.add(config, f"last{number}")


@pytest.mark.rotating(4)
@jumps
@ages
def test_after_the_jump(node: Node, container: Start, jump: float, age: float) -> None:
    """No possibly living container loses its address to an ADD or GC, with its list or without."""
    config = node.config(NET29)
    populate(node, container, age)

    with clock_set_by(jump):
        got = fill(node, container)
        assert not {"198.18.70.2", "198.18.70.6"} & set(got)
        assert node.call("GC", config) == {}
        assert {"alive\r\neth0", "gomade\r\neth0"} <= set(node.leases().values())
        valid = listed("alive", "gomade", *(f"more{number}" for number in range(6)))
        assert node.call("GC", {**config, VALID: valid}) == {}
        assert {"alive\r\neth0", "gomade\r\neth0"} <= set(node.leases().values())
        assert node.call("CHECK", config, "alive") == {}
        assert_nothing_is_left(node)


@pytest.mark.rotating(4)
@jumps
@ages
def test_jump_and_back(node: Node, container: Start, jump: float, age: float) -> None:
    """A lease made while the clock was wrong is kept, then freed, when the clock is right again."""
    config = node.config(NET29)
    with clock_set_by(jump):
        populate(node, container, age)
    got = fill(node, container)
    assert not {"198.18.70.2", "198.18.70.6"} & set(got)
    assert node.call("GC", config) == {}
    assert {"alive\r\neth0", "gomade\r\neth0"} <= set(node.leases().values())
    assert node.call("CHECK", config, "alive") == {}
    assert_nothing_is_left(node)


@pytest.mark.rotating(2)
@jumps
def test_the_dead_go_all_the_same(node: Node, container: Start, jump: float) -> None:
    """A container seen dead before the jump makes room, by the clock that cannot be set."""
    config = node.config(NET29)
    populate(node, container, OLD)
    for number in range(2):
        node.add(config, f"more{number}", CNI_NETNS=container().netns)
    assert "can be had" in node.refusal("ADD", config, "more2")
    make_old(node)
    make_old(node)

    with clock_set_by(jump):
        output = node.call("ADD", config, "more2", CNI_NETNS=container().netns)
        if jump < 0:  # the lease is of the future: DEL or GC frees it later
            assert "code" in output
            assert node.call("DEL", config, "dead") == {}
            output = node.call("ADD", config, "more2", CNI_NETNS=container().netns)
        assert output["ips"][0]["address"] == "198.18.70.3/29"
        assert_nothing_is_left(node)


@pytest.mark.rotating(2)
@jumps
def test_gc_after_all(node: Node, container: Start, jump: float) -> None:
    """When the clock is right again and time has passed, GC frees the dead of any clock."""
    config = node.config(NET29)
    with clock_set_by(jump):
        populate(node, container, 0)
    make_old(node)

    assert node.call("GC", {**config, VALID: listed("alive", "gomade")}) == {}

    assert set(node.leases().values()) == {"alive\r\neth0", "gomade\r\neth0"}
    assert_nothing_is_left(node)


def test_cooldown(node: Node) -> None:
    """A rest is by the clock that nobody sets: a jump neither ends it nor makes it longer."""
    config = node.config(NET29, releaseCooldown=60)
    node.add(config, "c1")
    node.call("DEL", config, "c1")
    (node.store / "last_reserved_ip.0").unlink()

    for seconds in (YEAR, -YEAR):
        with clock_set_by(seconds):
            assert node.add(config, "c2") == ["198.18.70.3"]
            (node.store / "198.18.70.3").unlink()
            (node.store / "last_reserved_ip.0").unlink()
            node.call("DEL", config, "c2")
