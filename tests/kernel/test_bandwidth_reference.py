"""bandwidth beside the Go plugin: the same limits, and each copes with what the other made."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import pytest

from tests.kernel.limits import (
    BOTH,
    MBIT,
    NOTHING,
    by_runtime,
    config,
    container,
    ifb_of,
    left,
    qdiscs,
    redirections,
)
from tests.machine import Json, Machine

pytestmark = pytest.mark.without_engine("it is about two programs")
LIMITS: Mapping[str, Json] = {
    "both": BOTH,
    "ingress": {"ingressRate": 3 * MBIT + 7, "ingressBurst": 777_777},
    "egress": {"egressRate": 123 * MBIT, "egressBurst": 7 * MBIT},
    "runtime": by_runtime(
        ingressRate=10 * MBIT,
        ingressBurst=80 * MBIT,
        egressRate=MBIT,
        egressBurst=MBIT,
    ),
    "large": {"ingressRate": 40_000 * MBIT, "ingressBurst": 4_000 * MBIT},
    "small": {"egressRate": 10_000, "egressBurst": 100_000},
}


def old(conf: Json) -> Json:
    """Return a configuration of a version that the Go plugin answers with the same keys."""
    previous = {**conf["prevResult"], "cniVersion": "1.0.0"}
    return {**conf, "cniVersion": "1.0.0", "prevResult": previous}


def made(machine: Machine, result: Json) -> Json:
    """Return what an ADD has made, without what is random."""
    interfaces = [entry["name"] for entry in result["interfaces"]]
    found: Json = {"interfaces": interfaces, "redirections": set(redirections(machine, "host1"))}
    for name in {"host1", *interfaces[2:]}:
        link = machine.link(machine.host, name) or {}
        found[name] = [qdiscs(machine, name), link["mtu"], "UP" in link["flags"]]
    return found


def shapers(found: Json) -> list[Json]:
    """Return the options of each tbf in the result of `made`."""
    entries = [
        one for key, one in sorted(found.items()) if key not in ("interfaces", "redirections")
    ]
    return [qdisc["options"] for one in entries for qdisc in one[0] if qdisc["kind"] == "tbf"]


def queues(found: Json) -> list[int]:
    """Return the queue lengths in the result of `made`, in bytes."""
    return [options["limit"] for options in shapers(found)]


def without_queues(found: Json) -> Json:
    """Return the result of `made` without the queue lengths and what depends on them."""
    rest = deepcopy(found)
    for options in shapers(rest):
        for key in ("limit", "lat"):
            options.pop(key, None)
    return rest


@pytest.mark.parametrize("name", LIMITS)
def test_same_limits(machine: Machine, name: str) -> None:
    """Rates, bursts and names are the same, and each passes the other's CHECK.

    The queues are the same up to a burst of 64 KiB; with a larger one ours are shorter.
    """
    netns, conf = container(machine, mtu=1400), old(config(machine, **LIMITS[name]))
    theirs = machine.reference("bandwidth", "ADD", conf, netns)
    by_them = made(machine, theirs)
    machine.ok("bandwidth", "CHECK", {**conf, "prevResult": theirs}, netns)
    machine.reference("bandwidth", "DEL", conf, netns)

    ours = machine.ok("bandwidth", "ADD", conf, netns)  # on what their DEL has left

    by_us = made(machine, ours)
    if name == "small":
        assert by_us == by_them
        machine.reference("bandwidth", "CHECK", {**conf, "prevResult": ours}, netns)
    assert without_queues(by_us) == without_queues(by_them)
    assert all(one <= other for one, other in zip(*map(queues, (by_us, by_them)), strict=True))
    machine.ok("bandwidth", "CHECK", {**conf, "prevResult": ours}, netns)


@pytest.mark.parametrize("name", ["both", "ingress", "egress"])
def test_delete_of_theirs(machine: Machine, name: str) -> None:
    """DEL removes what the Go plugin has made, and what it leaves itself."""
    netns, conf = container(machine), old(config(machine, **LIMITS[name]))

    machine.reference("bandwidth", "ADD", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)

    assert left(machine) == NOTHING


def test_add_to_theirs(machine: Machine) -> None:
    """ADD takes the place of one of the Go plugin's that lives."""
    netns, conf = container(machine), old(config(machine, **BOTH))
    theirs = machine.reference("bandwidth", "ADD", conf, netns)

    ours = machine.ok("bandwidth", "ADD", conf, netns)

    assert ifb_of(ours) == ifb_of(theirs)
    machine.ok("bandwidth", "CHECK", conf, netns)
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == NOTHING


def test_their_delete_of_ours(machine: Machine) -> None:
    """After the Go plugin's DEL, ours removes the rest."""
    netns, conf = container(machine), old(config(machine, **BOTH))
    machine.ok("bandwidth", "ADD", conf, netns)

    machine.reference("bandwidth", "DEL", conf, netns)

    assert left(machine)["ifbs"] == []
    machine.ok("bandwidth", "DEL", conf, netns)
    assert left(machine) == NOTHING
