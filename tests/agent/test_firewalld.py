"""A firewalld that begins anew beside the agent, which puts pods back into its zone.

firewalld is the real one, on a message bus of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.wake import Wake
from tests.agent.test_pods import Host
from tests.kernel.test_firewall_firewalld import NAME, UNPACKED, Firewalld
from tests.machine import Machine
from tests.resident import visiting
from tests.waits import GENEROUS

pytestmark = pytest.mark.timeout(300)
OUTSIDE = "192.0.2.2"


class Watched:
    """A node with firewalld and a pod with a host port, which firewalld lets through by its zone.

    Rounds follow events, and a problem, as those of the agent do.
    """

    def __init__(self, machine: Machine, folder: Path, stack: ExitStack) -> None:
        self.firewalld = Firewalld(machine, folder, stack)
        self.host = Host(machine)
        stack.callback(self.host.fabric.close)
        self.host.apply()
        self.pod = self.host.add_pod(firewall=True)
        self.machine = machine
        self.wake = Wake()
        with visiting(machine.host):
            listener = self.host.fabric.listen(self.wake)
        stack.callback(listener.close)

    def follow(self) -> tuple[str, ...]:
        """Make the round that an event asks for; return its problems."""
        assert self.wake.wait(GENEROUS), "no event tells of firewalld"
        return self.host.apply().problems

    def settle(self) -> None:
        """Make rounds until nothing is wrong."""
        problems = self.follow()
        while problems:
            self.wake.wait(1.0)
            problems = self.host.apply().problems

    def leaves(self) -> bool:
        """Tell whether the pod reaches a host outside, which has no route to the pod."""
        return self.machine.ping(self.pod, OUTSIDE)


@pytest.fixture
def watched(machine: Machine, tmp_path: Path) -> Iterator[Watched]:
    """A node."""
    assert (UNPACKED / "complete").exists(), "run deploy/prerequisites.sh --reference"
    folder = tmp_path / "firewalld"
    folder.mkdir()
    with ExitStack() as stack:
        yield Watched(machine, folder, stack)


def test_a_reload(watched: Watched) -> None:
    """The zone has the pod again at once; host port and masquerading are never lost."""
    firewalld, before = watched.firewalld, watched.firewalld.sources()
    assert (watched.leaves(), watched.host.reaches(watched.pod)) == (True, True)

    assert firewalld.call("reload", interface=NAME).returncode == 0
    assert (watched.leaves(), watched.host.reaches(watched.pod)) == (False, True)
    watched.settle()

    assert firewalld.sources() == before != []
    assert (watched.leaves(), watched.host.reaches(watched.pod)) == (True, True)


def test_a_restart(watched: Watched) -> None:
    """The same; until it starts again nothing is in the pod's way, and the agent sleeps."""
    firewalld, before = watched.firewalld, watched.firewalld.sources()

    firewalld.stop()
    assert watched.leaves()
    assert watched.wake.wait(0) == frozenset()
    firewalld.start()
    assert (watched.leaves(), watched.host.reaches(watched.pod)) == (False, True)
    watched.settle()

    assert firewalld.sources() == before != []
    assert (watched.leaves(), watched.host.reaches(watched.pod)) == (True, True)


def test_a_flush_while_firewalld_is_away(watched: Watched) -> None:
    """The zone is a problem until firewalld is there; all else is back at once."""
    firewalld, before = watched.firewalld, watched.firewalld.sources()
    firewalld.stop()
    watched.machine.command(watched.machine.host, "nft", "flush", "ruleset")

    (problem,) = watched.follow()
    assert "firewalld is not on the message bus" in problem
    assert watched.host.reaches(watched.pod)
    assert watched.host.apply().problems == (problem,)
    firewalld.start()
    watched.settle()

    assert firewalld.sources() == before != []
    assert watched.host.apply().problems == ()
    assert watched.leaves()
