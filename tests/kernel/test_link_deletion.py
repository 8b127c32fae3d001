"""cni_common/kernel/link_deletion.py: interfaces deleted without waiting for the memory."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from threading import Event, get_native_id
from typing import Any

import pytest

from cni_common.kernel.link_deletion import delete_link, hear_only_deletion, orphans_are_reaped
from cni_common.kernel.netlink import Channel, Message, NetlinkError
from cni_common.kernel.netns import NETLINK_ROUTE, NetNS
from cni_common.kernel.rtnetlink import RTM_DELLINK, RTMGRP_LINK
from tests.machine import ROOT, Machine

pytestmark = pytest.mark.without_engine(reason="calls functions of this process")

PATIENCE = 30  # seconds
GROUP = 123456  # a group
SENDS = "/bin/cat"  # sends the request on, and waits for more as it does not look at the answer
SO_LOCK_FILTER = 44  # asm-generic/socket.h


class SlowNetNS(NetNS):
    """A namespace in which the kernel's answers are kept back until the test says so."""

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

    def exchange(
        self, messages: Sequence[Message], *, absent: Collection[int] = ()
    ) -> list[list[Any]]:
        try:
            return super().exchange(messages, absent=absent)
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
    """An interface that is gone already gives False, as with every other deletion."""
    index = index_of(machine, "one")
    machine.do(machine.host, "ip link del one")
    netns.go_on.set()

    assert delete_link(netns, index) is False


def test_refusal(machine: Machine, netns: SlowNetNS) -> None:
    """A refusal by the kernel is raised, and the interface stays."""
    netns.go_on.set()

    with pytest.raises(NetlinkError, match="delete interface 1") as refused:
        delete_link(netns, index_of(machine, "lo"))

    assert refused.value.errno == errno.EOPNOTSUPP
    assert machine.link(machine.host, "lo") is not None


def test_those_of_the_group_go_along(machine: Machine, netns: SlowNetNS) -> None:
    """Interfaces that others have put into the group go by the same request, and no others."""
    for pair in ("three", "five", "seven"):
        machine.do(machine.host, f"ip link add {pair} type veth peer name {pair}peer")
    machine.do(machine.host, f"ip link set three group {GROUP}")
    machine.do(machine.host, f"ip link set five group {GROUP + 1}")

    assert delete_link(netns, index_of(machine, "one"), GROUP) is True

    assert [machine.link(machine.host, name) for name in ("one", "two", "three")] == [None] * 3
    assert machine.link(machine.host, "five") is not None
    assert machine.link(machine.host, "seven") is not None


def test_a_group_that_cannot_be_deleted(machine: Machine, netns: SlowNetNS) -> None:
    """Others have put an interface that cannot be deleted into the group: ours goes alone."""
    machine.do(machine.host, f"ip link set lo group {GROUP}")
    netns.go_on.set()

    assert delete_link(netns, index_of(machine, "one"), GROUP) is True

    assert machine.link(machine.host, "one") is None
    assert machine.link(machine.host, "lo") is not None


def test_absence_in_a_group(machine: Machine, netns: SlowNetNS) -> None:
    """A gone interface gives False there as well, and those that others have put there go."""
    machine.do(machine.host, "ip link add three type veth peer name four")
    machine.do(machine.host, f"ip link set three group {GROUP}")
    index = index_of(machine, "one")
    machine.do(machine.host, "ip link del one")
    netns.go_on.set()

    assert delete_link(netns, index, GROUP) is False
    assert machine.link(machine.host, "three") is None


@pytest.fixture
def children() -> Iterator[Callable[[], list[int]]]:
    """Give a look at the new children of this thread; end them afterwards."""
    path = Path(f"/proc/self/task/{get_native_id()}/children")

    def all_of_them() -> list[int]:
        return [int(word) for word in path.read_text().split()]

    before = all_of_them()
    yield lambda: [pid for pid in all_of_them() if pid not in before]
    for pid in all_of_them():
        if pid not in before:
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture(params=["plain", "sanitized"])
def sender(request: pytest.FixtureRequest, tmp_path: Path, children: object) -> str:
    """Return the program that waits for the kernel; what it starts is one of `children`."""
    path = tmp_path / "netlink-send"
    words = ["make", "-C", str(ROOT / "launcher"), f"OUTPUT={path}", "SOURCE=netlink_send.c"]
    words += ["SANITIZE=yes"] if request.param == "sanitized" else []
    subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE)
    return str(path)


def test_a_process_that_ends_leaves_the_wait_behind(
    machine: Machine, netns: SlowNetNS, children: Callable[[], list[int]]
) -> None:
    """A program waits for the answer, and has no stream that a runtime reads to its end."""
    assert delete_link(netns, index_of(machine, "one"), sender=SENDS) is True

    assert machine.link(machine.host, "one") is None
    [child] = children()
    streams = [str(Path(f"/proc/{child}/fd/{fd}").readlink()) for fd in range(3)]
    assert {name.partition(":")[0] for name in streams} == {"socket"}


def test_the_program_closes_what_it_inherits(machine: Machine, sender: str) -> None:
    """A file that a runtime has left open in its plugins is none of the program's."""
    netns = NetNS(machine.host)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    with ours, theirs, netns.channel(NETLINK_ROUTE).sock as kernel:
        process = subprocess.Popen(
            [sender], stdin=theirs.fileno(), stdout=kernel.fileno(), pass_fds=[writing]
        )
        os.close(writing)

        assert os.read(reading, 1) == b""  # its last writer has closed it
        assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1"]

        theirs.close()
        ours.close()  # without a request
        assert process.wait(PATIENCE) == 1
    os.close(reading)


def test_a_program_each(machine: Machine, netns: SlowNetNS, sender: str) -> None:
    """One process after the other leaves its wait to a program of its own."""
    for pair in ("three", "five", "seven"):
        machine.do(machine.host, f"ip link add {pair} type veth peer name {pair}peer")

    for name in ("one", "three", "five", "seven"):
        assert delete_link(netns, index_of(machine, name), sender=sender) is True
        assert machine.link(machine.host, name) is None


def test_a_program_waits_for_nftables_too(
    machine: Machine, netns: SlowNetNS, children: Callable[[], list[int]]
) -> None:
    """The last close of a socket of nfnetlink waits: it comes with the end of the program."""
    port = netns.netfilter.sock.getsockname()[0]

    def is_open() -> bool:
        rows = machine.command(machine.host, "cat", "/proc/net/netlink").splitlines()[1:]
        return ["12", str(port)] in [row.split()[1:3] for row in rows]  # NETLINK_NETFILTER

    assert delete_link(netns, index_of(machine, "one"), sender=SENDS) is True
    [child] = children()
    os.kill(child, SIGSTOP)  # it would end with the connection
    netns.close()

    assert is_open()
    os.kill(child, SIGKILL)
    os.waitpid(child, 0)
    assert not is_open()


def test_the_answer_of_a_program_counts_where_events_are_lost(
    machine: Machine, netns: SlowNetNS, sender: str
) -> None:
    """Without an event the program's answer is waited for."""
    netns.deaf = True

    assert delete_link(netns, index_of(machine, "one"), sender=sender) is True
    assert machine.link(machine.host, "one") is None


def test_absence_and_refusal_told_by_a_program(
    machine: Machine, netns: SlowNetNS, sender: str
) -> None:
    """They are what the kernel says without a program."""
    index = index_of(machine, "one")
    machine.do(machine.host, "ip link del one")
    netns.go_on.set()

    assert delete_link(netns, index, sender=sender) is False
    with pytest.raises(NetlinkError, match="delete interface 1") as refused:
        delete_link(netns, index_of(machine, "lo"), sender=sender)

    assert refused.value.errno == errno.EOPNOTSUPP
    assert machine.link(machine.host, "lo") is not None


@pytest.mark.parametrize("program", ["/bin/false", "/bin/none"])
def test_a_program_that_does_nothing(machine: Machine, netns: SlowNetNS, program: str) -> None:
    """One that ends before it has sent anything, or is not there: the process asks by itself."""
    netns.go_on.set()

    assert delete_link(netns, index_of(machine, "one"), sender=program) is True

    assert machine.link(machine.host, "one") is None


def test_no_more_descriptors_for_a_program(
    machine: Machine, netns: SlowNetNS, sender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that cannot be heard is not started: a thread waits."""
    netns.go_on.set()

    def refuse(_fd: int) -> int:
        raise OSError(errno.EMFILE, "dup")

    monkeypatch.setattr(os, "dup", refuse)

    assert delete_link(netns, index_of(machine, "one"), sender=sender) is True
    assert machine.link(machine.host, "one") is None


def test_orphans_are_left_only_to_a_process_that_reaps() -> None:
    """Process 1 of a sandbox is bash, which does; of others it is not known."""
    assert orphans_are_reaped()
    program = "from cni_common.kernel.link_deletion import *; print(orphans_are_reaped())"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "False\n"


class _Unmarking(Channel):
    """Does not put the interface into the group, as if another program took it out again."""

    def exchange(
        self, messages: Sequence[Message], *, absent: Collection[int] = ()
    ) -> list[list[Any]]:
        return super().exchange(messages[-1:], absent=absent)


class UnmarkingNetNS(NetNS):
    """A namespace in which nothing stays in a group."""

    def channel(self, protocol: int, groups: int = 0) -> Channel:
        """Return a new channel."""
        channel = super().channel(protocol, groups)
        return channel if groups else _Unmarking(channel.sock)


@pytest.mark.parametrize("others", [0, 1])
def test_out_of_the_group_again(machine: Machine, others: int) -> None:
    """It goes all the same, whether the request has found others in the group or nobody."""
    for pair in ("one", "three"):
        machine.do(machine.host, f"ip link add {pair} type veth peer name {pair}peer")
    if others:
        machine.do(machine.host, f"ip link set three group {GROUP}")
    netns = UnmarkingNetNS(machine.host)

    assert delete_link(netns, index_of(machine, "one"), GROUP) is True

    assert machine.link(machine.host, "one") is None
    assert (machine.link(machine.host, "three") is None) == bool(others)
    netns.close()


class UnfilteredNetNS(NetNS):
    """A namespace in which the kernel takes no filter for a socket."""

    def channel(self, protocol: int, groups: int = 0) -> Channel:
        """Return a new channel."""
        channel = super().channel(protocol, groups)
        channel.sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
        return channel


def test_no_filter(machine: Machine) -> None:
    """Where the kernel takes no filter the interface goes all the same."""
    machine.do(machine.host, "ip link add one type veth peer name two")
    netns = UnfilteredNetNS(machine.host)
    assert hear_only_deletion(netns.channel(NETLINK_ROUTE), 1) is False

    assert delete_link(netns, index_of(machine, "one"), GROUP) is True

    assert machine.link(machine.host, "one") is None
    netns.close()


def test_deletions_side_by_side(machine: Machine) -> None:
    """Each caller hears of its own interface, and an interface of others stays."""
    names = [f"pair{number}" for number in range(24)]
    for name in ("other", *names):
        machine.do(machine.host, f"ip link add {name} type veth peer name {name}peer")

    def delete(name: str) -> bool:
        netns = NetNS(machine.host)
        try:
            return delete_link(netns, index_of(machine, name), GROUP)
        finally:
            netns.close()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(delete, names)) == [True] * len(names)

    assert [machine.link(machine.host, name) for name in names] == [None] * len(names)
    assert machine.link(machine.host, "other") is not None


def test_events_of_others_wake_nobody(machine: Machine) -> None:
    """Of all that the kernel tells, only the deletion of that interface arrives."""
    for pair in ("three", "five"):
        machine.do(machine.host, f"ip link add {pair} type veth peer name {pair}peer")
    netns = NetNS(machine.host)
    events = netns.channel(NETLINK_ROUTE, RTMGRP_LINK)
    hear_only_deletion(events, index_of(machine, "five"))

    machine.do(machine.host, "ip link set five up")
    machine.do(machine.host, "ip link del three")
    assert events.read_events() == []
    machine.do(machine.host, "ip link del five")
    assert [kind for kind, _ in events.read_events()] == [RTM_DELLINK]

    netns.close()
