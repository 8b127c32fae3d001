"""Netlink: whose answers it believes, thousands of requests, and answers that were lost."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import Channel, Message, NetlinkError
from cni_common.kernel.netns import NetNS
from cni_common.kernel.nft_layout import TABLE, Chain, Layout, Set
from cni_common.kernel.route import route_message
from cni_common.spec.result import Route
from tests.machine import Machine

pytestmark = [
    pytest.mark.without_engine(reason="calls functions of this process"),
    pytest.mark.everywhere,
]

RTM_NEWLINK, NLMSG_ERROR = 16, 2
MANY = 3_000  # more than the answers that a socket has room for
NUMBERS = Layout(TABLE, (Set("numbers", nft_table.IPV4_KEY),), ())


@pytest.fixture
def netns(machine: Machine) -> Iterator[NetNS]:
    """Give the machine's namespace."""
    netns = NetNS(machine.host)
    yield netns
    netns.close()


def key(number: int) -> tuple[str, bytes]:
    """Return the key of an element of NUMBERS."""
    return "numbers", number.to_bytes(4, "big")


def has_little_room(netns: NetNS) -> None:
    """Let the kernel have room for two answers or three in the socket to netfilter."""
    netns.netfilter.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


def test_only_the_kernel_answers(machine: Machine) -> None:
    """A message from another socket, as a container with CAP_NET_ADMIN can send, is no answer."""
    netns = NetNS(machine.host)
    channel = netns.netlink.channel
    port = channel.sock.getsockname()[0]
    other = netns.run(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    attribute = struct.pack("=HH8s", 12, 3, b"forged")
    for number in range(1, 20):
        body = struct.pack("=BxHiII", 0, 0, 99, 0, 0) + attribute
        forged = struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, 0, number, port) + body
        done = struct.pack("=IHHIIi", 36, NLMSG_ERROR, 0, number, port, 0) + bytes(16)
        other.sendto(forged, (port, 0))
        other.sendto(done, (port, 0))

    link = netns.netlink.link("lo")

    other.close()
    netns.close()
    assert link is not None
    assert link.name == "lo"


def assert_is_one_answer(
    channel: Channel, looks: dict[str, Callable[[], bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assert that the kernel sends one message to each of `looks`, and that each is true."""
    answers: list[bytes] = []
    receive = channel._receive

    def note(flags: int = 0) -> bytes:
        answers.append(receive(flags))
        return answers[-1]

    monkeypatch.setattr(channel, "_receive", note)
    for what, look in looks.items():
        answers.clear()
        assert look(), what
        assert len(answers) == 1, what
        with pytest.raises(BlockingIOError):
            channel.sock.recv(1, socket.MSG_DONTWAIT)


def test_a_look_at_one_object_is_one_answer(
    machine: Machine, netns: NetNS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says once what there is, or why there is nothing: no more is left to read."""
    netlink, elsewhere = netns.netlink, NetNS(machine.container())
    machine.command(machine.host, "ip", "link", "set", "lo", "up")
    looks: dict[str, Callable[[], bool]] = {
        "a link": lambda: netlink.link("lo") is not None,
        "no link": lambda: netlink.link("none") is None,
        "a route": lambda: netlink.is_local(IPv4Address("127.0.0.1")),
        "no route": lambda: netlink.route_to(IPv6Address("2001:db8::1")) == (0, 0),
        "a namespace without a number": lambda: netlink.nsid(elsewhere.fd) is None,
    }
    assert_is_one_answer(netlink.channel, looks, monkeypatch)
    elsewhere.close()


def test_a_look_at_one_object_of_nftables_is_one_answer(
    machine: Machine, netns: NetNS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with links: a table, chain, rule, set or element, and each that there is not."""
    del machine
    chained = Layout(TABLE, NUMBERS.sets, (Chain("chained"),))
    mine = [TABLE.add_rule("chained"), TABLE.add_element(*key(1))]
    nft_table.apply(netns, [*chained.base(), *mine])
    handle = TABLE.rules(netns, "chained")[0].handle
    looks: dict[str, Callable[[], bool]] = {
        "a table": lambda: TABLE.holds(netns) == 2,
        "no table": lambda: nft_table.Table(nft_table.INET, "none").holds(netns) == 0,
        "a chain": lambda: TABLE.has_chain(netns, "chained"),
        "no chain": lambda: not TABLE.has_chain(netns, "none"),
        "a rule": lambda: TABLE.rule(netns, "chained", handle) is not None,
        "no rule": lambda: TABLE.rule(netns, "chained", handle + 1) is None,
        "a set": lambda: TABLE.uncounted(netns, ["numbers"]) == ["numbers"],
        "no set": lambda: TABLE.uncounted(netns, ["none"]) == [],
        "an element": lambda: TABLE.present(netns, [key(1)]) != [None],
        "no element": lambda: TABLE.present(netns, [key(2)]) == [None],
    }
    assert_is_one_answer(netns.netfilter, looks, monkeypatch)


def test_thousands_of_routes(machine: Machine, netns: NetNS) -> None:
    """Each of thousands of requests is carried out and answered, and a refused one is named."""
    loopback = netns.netlink.link("lo")
    assert loopback is not None
    netns.netlink.set_up(loopback.index)
    subnets = list(IPv4Network("20.0.0.0/8").subnets(new_prefix=24))[:MANY]
    messages = [route_message(loopback.index, Route(one), exclusive=True) for one in subnets]

    netns.netlink.channel.exchange(messages[:-1])
    with pytest.raises(NetlinkError, match=r"add route 20\.0\.7\.0/24: File exists"):
        netns.netlink.channel.exchange([messages[7], messages[-1]])

    listing = machine.command(machine.host, "ip", "route", "show", "dev", "lo")
    assert len(listing.splitlines()) == MANY


def test_thousands_of_elements_are_one_transaction(netns: NetNS) -> None:
    """All are added, or none where one is refused; the error names the cause."""
    nft_table.apply(netns, NUMBERS.base())
    ours = [key(number) for number in range(MANY)]
    nft_table.apply(netns, [TABLE.add_element(*ours[-1])])

    with pytest.raises(NetlinkError, match=r"add element to 'numbers'.*File exists"):
        nft_table.apply(netns, [TABLE.add_element(*one) for one in ours])
    assert [one.key for one in TABLE.elements(netns, "numbers")] == [ours[-1][1]]
    nft_table.apply(netns, [TABLE.add_element(*one) for one in ours[:-1]])

    assert [one and one.key for one in TABLE.present(netns, ours)] == [one for _, one in ours]
    absent = TABLE.present(netns, [key(MANY), ours[0], key(MANY + 1)])
    assert [one is not None for one in absent] == [False, True, False]
    assert len(NUMBERS.remove(netns, ours)) == MANY
    assert TABLE.is_empty(netns, "numbers")


def test_refusals_that_the_socket_has_no_room_for(netns: NetNS) -> None:
    """The first ones tell the cause, and none of them is taken for an answer to what follows."""
    has_little_room(netns)
    refused = [TABLE.delete_chain(f"chain{number}") for number in range(100)]

    with pytest.raises(NetlinkError, match="chain0") as caught:
        nft_table.apply(netns, refused)
    nft_table.apply(netns, NUMBERS.base())

    assert caught.value.errno == errno.ENOENT
    assert NUMBERS.is_used(netns) is False


def test_answers_that_the_socket_has_no_room_for(netns: NetNS) -> None:
    """The outcome is unknown, which is an error at once; the socket can be used again."""
    nft_table.apply(netns, [*NUMBERS.base(), *(TABLE.add_element(*key(n)) for n in range(50))])
    has_little_room(netns)

    with pytest.raises(NetlinkError) as caught:
        TABLE.present(netns, [key(number) for number in range(50)])

    assert caught.value.errno == errno.ENOBUFS
    assert TABLE.element(netns, *key(7)) is not None
    assert TABLE.element(netns, *key(50)) is None


def test_lost_answer_to_a_transaction(netns: NetNS, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is looked at: additions and deletions that were carried out have succeeded."""
    ours = [TABLE.add_element(*key(number)) for number in range(3)]
    losing: list[int] = []

    def transact(*frame: object) -> None:
        send(*frame)  # type: ignore[arg-type]
        if losing:
            losing.pop()
            raise NetlinkError(errno.ENOBUFS, "lost")

    send = netns.netfilter.transact
    monkeypatch.setattr(netns.netfilter, "transact", transact)
    nft_table.apply(netns, NUMBERS.base())
    chain = Layout(TABLE, NUMBERS.sets, (Chain("numbers"),))

    def missing() -> list[Message]:
        present = TABLE.present(netns, [key(number) for number in range(3)])
        return [one for one, found in zip(ours, present, strict=True) if not found]

    losing += [0]
    chain.add(netns, ours, take_over=missing)
    assert len(TABLE.elements(netns, "numbers")) == 3
    losing += [0]
    chain.remove(netns, [key(number) for number in range(3)])

    assert losing == []
    assert TABLE.is_empty(netns, "numbers")
