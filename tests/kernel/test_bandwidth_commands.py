"""`pycni audit`, `reclaim` and `explain` about limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import FOUND
from tests.kernel.limits import BOTH, NOTHING, config, container, ifb_of, left
from tests.kernel.test_commands import age, asked, end, kinds
from tests.machine import Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(300),
]


def test_limits_of_the_dead(machine: Machine) -> None:
    """The ifb of a container that is gone is shown with its record, and goes at the second look."""
    living = container(machine, 2)
    with machine.process_in(living):
        conf = config(machine, 2, **BOTH)
        machine.ok("bandwidth", "ADD", conf, living, containerid="alive")
        before = left(machine)
        netns = container(machine)
        machine.ok("bandwidth", "ADD", config(machine, **BOTH), netns, containerid="dead")
        end(machine, netns, ["host2"])
        age(machine)

        found = asked(machine, "audit", status=FOUND)["findings"]
        assert kinds(found) == ["ifb", "record"]
        assert {one["containerid"] for one in found} == {"dead"}
        asked(machine, "reclaim", status=FOUND)
        age(machine)
        assert kinds(asked(machine, "reclaim")["removed"]) == ["ifb", "record"]

        after = left(machine)
        assert (after["ifbs"], after["qdiscs"]) == (before["ifbs"], before["qdiscs"])
        machine.ok("bandwidth", "CHECK", conf, living, containerid="alive")


def test_ifb_of_nobody(machine: Machine) -> None:
    """An ifb without record goes at the second look when nothing is redirected to it."""
    netns = container(machine)
    with machine.process_in(netns):
        used = ifb_of(machine.ok("bandwidth", "ADD", config(machine, **BOTH), netns))
        for path in Path(machine.state_dir, "attachments").iterdir():
            path.unlink()
        machine.do(
            machine.host,
            "ip link add bwp0123456789ab type ifb",
            "ip link add ifb7 type ifb",
            "ip link add bwpother type bridge",
        )

        found = asked(machine, "audit", status=FOUND)["findings"]
        assert [(one["kind"], one["what"][:18]) for one in found] == [("ifb", "'bwp0123456789ab' ")]
        asked(machine, "reclaim", status=FOUND)
        age(machine)
        assert kinds(asked(machine, "reclaim")["removed"]) == ["ifb"]

        names = {link["ifname"] for link in machine.ip(machine.host, "link")}
        assert {used, "ifb7", "bwpother"} <= names
        assert "bwp0123456789ab" not in names


def test_explain(machine: Machine) -> None:
    """Limits, ifb and redirection are among what a container owns, and told when missing."""
    netns, conf = container(machine), config(machine, **BOTH)
    ifb = ifb_of(machine.ok("bandwidth", "ADD", conf, netns))

    (attachment,) = asked(machine, "explain", "c1")["attachments"]
    assert [(one["kind"], one["present"]) for one in attachment["objects"]] == [
        *(("limit", True), ("ifb", True), ("redirection", True))
    ]
    assert ifb in attachment["objects"][1]["what"]

    machine.do(machine.host, "tc qdisc del dev host1 root", f"ip link del {ifb}")
    (attachment,) = asked(machine, "explain", "c1", status=FOUND)["attachments"]
    assert [one["present"] for one in attachment["objects"]] == [False, False, False]
    machine.ok("bandwidth", "DEL", conf)
    assert left(machine) == NOTHING
