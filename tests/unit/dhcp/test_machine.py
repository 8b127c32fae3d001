"""The machine of states of a DHCP client, with time, chance and servers under control."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from plugins.dhcp.daemon import machine
from plugins.dhcp.daemon.machine import Bound, GaveUp, Lease, Lost, Pace, Send
from plugins.dhcp.daemon.v4 import packet
from plugins.dhcp.daemon.v4.machine import Machine, Profile
from plugins.dhcp.daemon.v4.packet import Message
from tests.unit.dhcp.model import Model

MAC = "02:00:00:00:00:01"
PROFILE = Profile(MAC, b"\0c1/net/eth0", {12: b"pod"}, (1, 121, 3))
FIRST, SECOND = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")
PACE = Pace()
ADDRESS, OTHER = IPv4Address("192.0.2.50"), IPv4Address("192.0.2.51")
MASK = {packet.SUBNET_MASK: bytes([255, 255, 255, 0])}


def answer(kind: int, asked: Message, server: IPv4Address = FIRST, **more: Any) -> Message:
    """Return a server's answer; seconds, address and further options by keyword."""
    seconds = more.get("seconds", 3600)
    options = {packet.SERVER_ID: server.packed, **MASK}
    if kind != packet.NAK and seconds is not None:
        options[packet.LEASE_SECONDS] = seconds.to_bytes(4, "big")
    options |= more.get("options", {})
    address = more.get("address", ADDRESS if kind != packet.NAK else packet.NOWHERE)
    return Message(kind, asked.xid, MAC, is_reply=True, yiaddr=address, options=options)


@dataclass
class Client:
    """A machine, and what it has done so far."""

    pace: Pace = PACE
    lease: Lease | None = None
    now: float = 1000.0
    sent: list[Message] = field(default_factory=list)
    servers: list[IPv4Address | None] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the machine, with chance that is none."""
        self.machine = Machine(PROFILE, self.pace, lambda: 0.5, self.lease)

    def do(self, actions: list[machine.Action]) -> None:
        """Note what is to be done."""
        for action in actions:
            if isinstance(action, Send):
                assert isinstance(action.message, Message)
                self.sent.append(action.message)
                self.servers.append(action.server)
            else:
                self.events.append(action)

    def start(self, seconds: float = 75) -> None:
        """Look for an address."""
        self.do(self.machine.start(self.now, seconds))

    def tick(self) -> None:
        """Let the time come at which something is due."""
        self.now = max(self.now, self.machine.deadline)
        self.do(self.machine.tick(self.now))

    def hear(self, kind: int, server: IPv4Address = FIRST, **more: Any) -> None:
        """Have a server answer the last message."""
        self.do(self.machine.receive(answer(kind, self.sent[-1], server, **more), self.now))

    def bind(self, **more: Any) -> Lease:
        """Get a lease."""
        self.start()
        self.hear(packet.OFFER, **more)
        self.hear(packet.ACK, **more)
        assert self.machine.lease
        return self.machine.lease

    @property
    def kinds(self) -> list[str]:
        """The kinds of all messages that were sent."""
        return [packet.NAMES[one.kind] for one in self.sent]


def test_an_address() -> None:
    """DISCOVER and REQUEST say what the profile says; the REQUEST names server and address."""
    client = Client()

    lease = client.bind()

    assert client.kinds == ["DISCOVER", "REQUEST"]
    assert {one.xid for one in client.sent} == {client.sent[0].xid}
    for message in client.sent:
        assert message.options[packet.CLIENT_ID] == b"\0c1/net/eth0"
        assert message.options[packet.PARAMETERS] == bytes([1, 121, 3])
        assert message.options[12] == b"pod"
        assert packet.decode(message.encode()) == message
    assert client.sent[1].address(packet.SERVER_ID) == FIRST
    assert client.sent[1].address(packet.REQUESTED_ADDRESS) == ADDRESS
    assert (lease.renew, lease.rebind, lease.expire) == (2800, 4150, 4600)
    assert client.events == [Bound(lease, is_new=True)]
    assert client.machine.deadline == lease.renew


def test_a_provided_identifier_replaces_the_own() -> None:
    """Also in RELEASE, so that the server knows for whom it is."""
    profile = replace(PROFILE, provided={packet.CLIENT_ID: b"mine"})
    client = Client()
    client.machine = Machine(profile, Pace(), lambda: 0.5)
    client.bind()

    client.do(client.machine.stop())

    assert {one.options[packet.CLIENT_ID] for one in client.sent} == {b"mine"}


def test_nobody_answers() -> None:
    """DISCOVER is sent after 4, 8, 16, 32 s and then each 62 s, until the time is over."""
    client = Client()
    client.start(208)
    times = [client.now]
    while not client.events:
        client.tick()
        times.append(client.now)

    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == [4, 8, 16, 32, 62, 62, 24]
    assert client.kinds == ["DISCOVER"] * 7
    assert [one.secs for one in client.sent] == [0, 4, 12, 28, 60, 122, 184]
    assert client.events == [GaveUp("no DHCP server has answered")]
    assert client.machine.deadline == inf


def test_two_servers() -> None:
    """The first offer is taken; the other server's messages do not matter."""
    client = Client()
    client.start()
    client.hear(packet.OFFER)
    client.hear(packet.OFFER, SECOND, address=OTHER)
    client.hear(packet.NAK, SECOND)
    client.hear(packet.ACK, SECOND)
    assert client.machine.state == machine.REQUESTING

    client.hear(packet.ACK)

    assert client.machine.lease
    assert (client.machine.lease.address, client.machine.lease.server) == (ADDRESS, FIRST)


def test_an_offer_is_refused() -> None:
    """After a NAK the client begins anew, but not at once; at last it tells the server's words."""
    client = Client()
    client.start(3)
    for _ in range(2):
        client.hear(packet.OFFER)
        before = client.now
        client.hear(packet.NAK, options={packet.TEXT: b"no way"})
        client.tick()
        assert client.now == before + 1
    client.tick()

    assert client.kinds == ["DISCOVER", "REQUEST", "DISCOVER", "REQUEST", "DISCOVER"]
    assert client.events == [GaveUp(f"DHCP server {FIRST} refuses: no way")]


def test_the_server_falls_silent_after_its_offer() -> None:
    """After four REQUESTs the client asks all servers again."""
    client = Client()
    client.start(500)
    client.hear(packet.OFFER)
    for _ in range(4):
        client.tick()

    assert client.kinds == ["DISCOVER", *["REQUEST"] * 4, "DISCOVER"]


@pytest.mark.parametrize(
    ("options", "seconds", "expected"),
    [
        ({}, 100, (50, 87.5, 100)),
        ({58: 30, 59: 60}, 100, (30, 60, 100)),
        ({58: 60, 59: 30}, 100, (50, 87.5, 100)),
        ({58: 30, 59: 100}, 100, (50, 87.5, 100)),
        ({}, None, (1800, 3150, 3600)),  # as in the reference
        ({}, 0, (0.5, 0.875, 1)),
        ({}, 0xFFFFFFFF, (inf, inf, inf)),
    ],
)
def test_times(
    options: dict[int, int], seconds: int | None, expected: tuple[float, float, float]
) -> None:
    """The server's times count if they are in order; a lease can be without end."""
    client = Client()
    told = {code: value.to_bytes(4, "big") for code, value in options.items()}

    lease = client.bind(seconds=seconds, options=told)

    assert (lease.renew - 1000, lease.rebind - 1000, lease.expire - 1000) == expected


def test_renewal() -> None:
    """Half of the time later the client asks the server, at its address, from its own."""
    client = Client()
    client.bind()
    client.tick()
    assert client.machine.state == machine.RENEWING
    assert (client.servers[-1], client.sent[-1].ciaddr) == (FIRST, ADDRESS)
    assert {packet.SERVER_ID, packet.REQUESTED_ADDRESS}.isdisjoint(client.sent[-1].options)

    client.now += 1
    client.hear(packet.ACK, options={packet.SERVER_ID: b"", packet.SUBNET_MASK: b"\xff" * 4})

    lease = client.machine.lease
    assert lease
    assert (lease.server, lease.expire) == (FIRST, 2800 + 3600)
    assert client.events[-1] == Bound(lease, is_new=False)


def test_a_renewal_may_say_less() -> None:
    """A value that the server does not repeat is as it was."""
    client = Client()
    client.bind(options={packet.ROUTERS: FIRST.packed})
    client.tick()
    short = answer(packet.ACK, client.sent[-1])
    bare = replace(short, options={packet.LEASE_SECONDS: bytes([0, 0, 0, 9])})
    client.do(client.machine.receive(bare, client.now))

    assert client.machine.lease
    assert client.machine.lease.options[packet.ROUTERS] == FIRST.packed
    assert client.machine.lease.options[packet.SUBNET_MASK] == MASK[packet.SUBNET_MASK]


def test_the_server_is_gone_at_renewal() -> None:
    """Any server may extend the lease at seven eighths of its time."""
    client = Client()
    client.bind()
    while client.machine.state != machine.REBINDING:
        client.tick()
    assert client.now == 4150
    assert client.servers[-1] is None
    assert client.sent[-1].ciaddr == ADDRESS
    assert 3 <= client.kinds.count("REQUEST") <= 9

    client.hear(packet.ACK, SECOND)

    assert client.machine.lease
    assert client.machine.lease.server == SECOND


def test_the_end_of_a_lease() -> None:
    """Its address is lost at that time; the client goes on to ask for it, and takes no other."""
    client = Client()
    lease = client.bind(seconds=8)
    while not isinstance(client.events[-1], Lost):
        client.tick()
    assert client.now == lease.expire
    assert client.events[-1] == Lost(lease, "the lease has expired, no DHCP server has answered")
    assert client.sent[-1].address(packet.REQUESTED_ADDRESS) == ADDRESS

    client.hear(packet.OFFER, SECOND, address=OTHER)
    assert client.machine.state == machine.SELECTING
    for _ in range(20):
        client.tick()
    client.hear(packet.OFFER, SECOND)
    client.hear(packet.ACK, SECOND)

    assert client.machine.lease
    assert client.events[-1:] == [Bound(client.machine.lease, is_new=True)]


@pytest.mark.parametrize("state", [machine.RENEWING, machine.REBINDING, machine.REBOOTING])
def test_a_refusal_ends_a_lease(state: str) -> None:
    """RFC 2131 section 4.4.5: the client must stop using the address at once."""
    client = Client()
    lease = client.bind()
    if state == machine.REBOOTING:
        client.do(client.machine.verify(client.now))
    while client.machine.state != state:
        client.tick()

    client.hear(packet.NAK)

    assert client.events[-1] == Lost(lease, f"DHCP server {FIRST} refuses")
    assert client.kinds[-1] == "DISCOVER"


def test_another_server_does_not_end_a_lease() -> None:
    """While the client asks its own."""
    client = Client()
    client.bind()
    client.tick()

    client.hear(packet.NAK, SECOND)

    assert client.machine.state == machine.RENEWING


def test_another_address_at_renewal() -> None:
    """It is none of the container's; the one that it has is not extended."""
    client = Client()
    lease = client.bind()
    client.tick()

    client.hear(packet.ACK, address=OTHER)

    assert client.events[-1] == Lost(
        lease, f"DHCP server {FIRST} gives {OTHER} instead of {ADDRESS}"
    )


def test_the_link_was_away() -> None:
    """INIT-REBOOT (RFC 2131 section 3.2): a REQUEST without server, from no address, to all."""
    client = Client()
    client.bind()
    client.now += 100
    client.do(client.machine.verify(client.now))
    message = client.sent[-1]
    assert client.servers[-1] is None
    assert message.ciaddr == packet.NOWHERE
    assert message.address(packet.REQUESTED_ADDRESS) == ADDRESS
    assert packet.SERVER_ID not in message.options

    client.hear(packet.ACK)

    assert client.machine.lease
    assert client.machine.lease.expire == 1100 + 3600
    assert client.events[-1] == Bound(client.machine.lease, is_new=False)


def test_nobody_knows_after_the_link_was_away() -> None:
    """The lease is used until its end, and renewed at its time."""
    client = Client()
    lease = client.bind()
    client.do(client.machine.verify(client.now))
    while client.machine.state == machine.REBOOTING:
        client.tick()

    assert (client.machine.state, client.machine.deadline) == (machine.BOUND, lease.renew)
    assert client.machine.lease == lease


def test_a_kept_lease() -> None:
    """A daemon that was restarted goes on where it was, late as it may be."""
    lease = Lease(ADDRESS, FIRST, 900, 950, 2000, MASK)
    client = Client(lease=lease)
    assert client.machine.holds

    client.tick()

    assert client.machine.state == machine.REBINDING


def test_release() -> None:
    """It names address, server and client; nothing is due any more."""
    client = Client()
    client.bind()
    client.do(client.machine.stop())

    assert client.kinds[-1] == "RELEASE"
    assert (client.servers[-1], client.sent[-1].ciaddr) == (FIRST, ADDRESS)
    assert client.sent[-1].address(packet.SERVER_ID) == FIRST
    assert client.machine.deadline == inf
    assert client.machine.stop() == []


def test_messages_of_others() -> None:
    """For another client, of another exchange, or no answer at all."""
    client = Client()
    client.start()
    offer = answer(packet.OFFER, client.sent[-1])
    for other in (
        replace(offer, xid=offer.xid + 1),
        replace(offer, mac="02:00:00:00:00:02"),
        replace(offer, is_reply=False),
        replace(offer, yiaddr=packet.NOWHERE),
        replace(offer, options={}),
    ):
        client.do(client.machine.receive(other, client.now))

    assert client.kinds == ["DISCOVER"]


class Model4(Model):
    """Servers of DHCPv4."""

    def make(self, chance: float, lease: Lease | None) -> Machine:
        """Return a machine."""
        return Machine(PROFILE, Pace(), lambda: chance, lease)

    def judge(self, sent: Send) -> None:
        """Only from an address that is used a message is sent, and to a server."""
        assert isinstance(sent.message, Message)
        if int(sent.message.ciaddr):
            assert self.used
            assert sent.message.ciaddr == self.used.address
        assert sent.server is None or self.used

    @precondition(lambda self: not self.ended)
    @rule(
        kind=st.sampled_from([packet.OFFER, packet.ACK, packet.NAK, packet.DISCOVER]),
        server=st.sampled_from([FIRST, SECOND]),
        address=st.sampled_from([ADDRESS, ADDRESS, OTHER]),
        seconds=st.sampled_from([0, 1, 4, 60, 3600, 0xFFFFFFFF, None]),
        back=st.integers(1, 3),
    )
    def hear(
        self, kind: int, server: IPv4Address, address: IPv4Address, seconds: int | None, back: int
    ) -> None:
        """A server answers one of the last messages, whatever that was."""
        said = answer(kind, self.asked_before(back), server, address=address, seconds=seconds)
        self.take(said.encode(), MAC)

    @precondition(lambda self: not self.ended and not self.used)
    @rule(seconds=st.sampled_from([1, 60, 3600]), address=st.sampled_from([ADDRESS, OTHER]))
    def get_a_lease(self, seconds: int, address: IPv4Address) -> None:
        """All goes as it should."""
        for kind in (packet.OFFER, packet.ACK):
            said = answer(kind, self.asked_before(1), FIRST, address=address, seconds=seconds)
            self.take(said.encode(), MAC)

    def asked_before(self, back: int) -> Message:
        """Return one of the last messages."""
        message = self.asked[-min(back, len(self.asked))]
        assert isinstance(message, Message)
        return message


TestModel = Model4.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=40)
