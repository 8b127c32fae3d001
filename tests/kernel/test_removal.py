"""An interface is deleted without waiting until the kernel has freed its memory."""

import errno
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

import pytest

from cni_common.netlink import Channel, Message, NetlinkError
from cni_common.netns import NetNS
from cni_common.removal import delete_link
from tests.machine import Machine

PATIENCE = 30  # seconds


class SlowNetNS(NetNS):
    """A namespace in which the kernel's answers are kept back until somebody says so."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.deleted, self.go_on, self.ended = Event(), Event(), Event()
        self.deaf = False  # to events

    def channel(self, protocol: int, groups: int = 0) -> Channel:
        """Return a new channel."""
        channel = super().channel(protocol, 0 if self.deaf else groups)
        if groups:
            return channel
        slow = _SlowChannel(channel.sock)
        slow.netns = self
        return slow


class _SlowChannel(Channel):
    netns: SlowNetNS

    def exchange(self, messages: Sequence[Message]) -> list[list[Any]]:
        try:
            return super().exchange(messages)
        finally:
            self.netns.deleted.set()
            assert self.netns.go_on.wait(PATIENCE)

    def close(self) -> None:
        super().close()
        self.netns.ended.set()


@pytest.fixture
def netns(machine: Machine) -> Iterator[SlowNetNS]:
    """Give the host's namespace with a veth pair in it."""
    machine.do(machine.host, "ip link add one type veth peer name two")
    netns = SlowNetNS(machine.host)
    yield netns
    netns.go_on.set()
    netns.close()


def index_of(machine: Machine, name: str) -> int:
    """Return the index of an interface of the host."""
    link = machine.link(machine.host, name)
    assert link is not None
    return int(link["ifindex"])


def test_returns_before_the_answer(machine: Machine, netns: SlowNetNS) -> None:
    """The kernel's event is enough: both ends are gone, and a thread takes the answer later."""
    index = index_of(machine, "one")

    assert delete_link(netns, index) is True

    assert not netns.go_on.is_set()
    assert machine.link(machine.host, "one") is None
    assert machine.link(machine.host, "two") is None
    assert not netns.ended.is_set()
    netns.go_on.set()
    assert netns.ended.wait(PATIENCE)


def test_outlives_its_namespace(machine: Machine, netns: SlowNetNS) -> None:
    """Closing the handle does not take the socket from the thread that waits."""
    assert delete_link(netns, index_of(machine, "one")) is True
    netns.deleted.wait(PATIENCE)
    netns.close()

    netns.ended.clear()  # the handle closed its own channels
    netns.go_on.set()

    assert netns.ended.wait(PATIENCE)


def test_the_answer_counts_where_events_are_lost(machine: Machine, netns: SlowNetNS) -> None:
    """Without an event the kernel's answer is waited for."""
    netns.deaf = True
    netns.go_on.set()

    assert delete_link(netns, index_of(machine, "one")) is True
    assert machine.link(machine.host, "one") is None


def test_absence(machine: Machine, netns: SlowNetNS) -> None:
    """What is gone already is False, as with every other deletion."""
    index = index_of(machine, "one")
    machine.do(machine.host, "ip link del one")
    netns.go_on.set()

    assert delete_link(netns, index) is False


def test_refusal(machine: Machine, netns: SlowNetNS) -> None:
    """What the kernel refuses to delete is raised, and stays."""
    netns.go_on.set()

    with pytest.raises(NetlinkError, match="delete interface 1") as refused:
        delete_link(netns, index_of(machine, "lo"))

    assert refused.value.errno == errno.EOPNOTSUPP
    assert machine.link(machine.host, "lo") is not None
