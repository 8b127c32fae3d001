"""Plugins that are killed before each system call in turn that could change something."""

from __future__ import annotations

import json

import pytest

from tests.faults.inject import Injection
from tests.faults.rig import Rig, attachments, configuration, sweep

# The engine's worker runs the same code; only the process that notices its death differs.
ROUTES = [
    ("one-shot", "ipv4", "DEL"),
    ("one-shot", "dual", "ADD"),
    ("one-shot", "dual", "GC"),
    ("engine", "dual", "DEL"),
]
routes = pytest.mark.parametrize(("edge", "kind", "recovery"), ROUTES)
edges = pytest.mark.parametrize(("edge", "kind"), [("one-shot", "dual"), ("engine", "ipv4")])


def put_in_order(rig: Rig, recovery: str) -> None:
    """Bring a node in order on which a call for c1 was killed."""
    if recovery == "GC":  # the runtime has forgotten it
        rig.end("c1")
        rig.age()
        rig.collect()
    if recovery == "DEL":
        rig.ok("DEL", "c1")
        rig.assert_clean()
    result = rig.add("new")
    if recovery == "ADD":  # of another one, before anything else
        rig.check("new", result)
        rig.assert_unique()
        rig.ok("DEL", "c1")
    rig.ok("DEL", "new")
    rig.assert_clean()


@routes
def test_add(request: pytest.FixtureRequest, rig: Rig, kind: str, recovery: str) -> None:
    """Wherever an ADD is killed, DEL or GC removes what it made, and ADDs work."""
    rig.config = configuration(kind)

    def scenario(injection: Injection) -> None:
        if recovery == "DEL":  # the node's first, which makes bridge and table
            rig.wipe()
        rig.container("c1")
        rig.inject(injection, "ADD", "c1")
        put_in_order(rig, recovery)

    sweep(rig, request, scenario)


@edges
def test_add_again(request: pytest.FixtureRequest, rig: Rig, kind: str) -> None:
    """An ADD that was killed can be tried again, or is refused until there was a DEL."""
    rig.config = configuration(kind)
    rig.add("living")

    def scenario(injection: Injection) -> None:
        rig.container("c1")
        rig.inject(injection, "ADD", "c1")
        again = rig.run("ADD", "c1")
        assert again.returncode == 0 or json.loads(again.stdout)["code"] == 4, again.stdout
        rig.assert_unique()
        rig.ok("DEL", "c1")
        rig.add("c1")
        rig.assert_unique()
        rig.ok("DEL", "c1")

    sweep(rig, request, scenario)
    rig.ok("DEL", "living")
    rig.assert_clean()


@routes
def test_del(request: pytest.FixtureRequest, rig: Rig, kind: str, recovery: str) -> None:
    """Wherever a DEL is killed, another one or GC goes on with it, and ADDs work."""
    rig.config = configuration(kind)

    def scenario(injection: Injection) -> None:
        rig.add("c1")
        rig.inject(injection, "DEL", "c1")
        put_in_order(rig, recovery)

    sweep(rig, request, scenario)


def test_del_with_mac_filter(request: pytest.FixtureRequest, rig: Rig) -> None:
    """The same of a MAC filter, which leaves no table behind."""
    rig.config = configuration("ipv4", ipMasq=False, macspoofchk=True)

    def scenario(injection: Injection) -> None:
        rig.add("c1")
        rig.inject(injection, "DEL", "c1")
        rig.ok("DEL", "c1")
        rig.assert_clean()

    sweep(rig, request, scenario)


@edges
def test_gc(request: pytest.FixtureRequest, rig: Rig, kind: str) -> None:
    """Wherever a GC is killed, the next one goes on with it, and valid attachments stay."""
    rig.config = configuration(kind)
    living = rig.add("living")

    def scenario(injection: Injection) -> None:
        rig.add("dead")
        rig.end("dead")
        rig.age()
        rig.inject(injection, "GC", **attachments("living"))
        rig.collect("living")
        rig.check("living", living)
        assert len(rig.node.traces("br0")["links"]) == 1
        rig.assert_unique()

    sweep(rig, request, scenario)
    rig.ok("DEL", "living")
    rig.assert_clean()


@pytest.mark.parametrize(("edge", "kind"), [("one-shot", "dual")])
@pytest.mark.parametrize("command", ["STATUS", "CHECK"])
def test_question(request: pytest.FixtureRequest, rig: Rig, kind: str, command: str) -> None:
    """A killed question leaves nothing behind, however often it is asked."""
    rig.config = configuration(kind)

    def scenario(injection: Injection) -> None:
        prev = {"prevResult": rig.add("c1")} if command == "CHECK" else {}
        rig.inject(injection, command, "c1" if prev else "", **prev)
        if prev:
            rig.ok("DEL", "c1")
        rig.ok("STATUS")
        rig.assert_clean()

    sweep(rig, request, scenario)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_loopback(request: pytest.FixtureRequest, rig: Rig, command: str) -> None:
    """Wherever loopback is killed, it can be called again."""
    rig.config = {"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}
    rig.container("c1")

    def scenario(injection: Injection) -> None:
        if command == "DEL":
            rig.ok("ADD", "c1", plugin="loopback")
        rig.inject(injection, command, "c1", plugin="loopback")
        rig.ok("ADD", "c1", plugin="loopback")
        rig.ok("DEL", "c1", plugin="loopback")
        assert "UP" not in rig.node.ip("/run/netns/c1", "link")[0]["flags"]

    sweep(rig, request, scenario)
