"""The machine of states of a DHCPv6 client, with time, chance and servers under control."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from plugins.dhcp.daemon import machine
from plugins.dhcp.daemon.machine import Bound, GaveUp, Lease, Lost, Pace, Send
from plugins.dhcp.daemon.v6 import packet
from plugins.dhcp.daemon.v6.machine import Machine, Profile
from plugins.dhcp.daemon.v6.packet import Association, Given, Message, Status
from tests.unit.dhcp.model import Model

PROFILE = Profile(b"\0\4" + b"u" * 16, 1)
FIRST, SECOND = IPv6Address("fe80::2"), IPv6Address("fe80::3")
ADDRESS, OTHER = IPv6Address("2001:db8::50"), IPv6Address("2001:db8::51")
RAPID = {packet.RAPID_COMMIT: b""}
SERVER_IDS = {FIRST: b"\0\3first", SECOND: b"\0\3second"}


def answer(kind: int, asked: Message, server: IPv6Address = FIRST, **more: Any) -> Message:
    """Return a server's answer; address, valid, preferred, times, status by keyword."""
    valid = more.get("valid", 3600)
    given = Given(more.get("address", ADDRESS), more.get("preferred", valid), valid)
    status = Status(more.get("status", packet.SUCCESS))
    addresses = (given,) if status.code == packet.SUCCESS else ()
    renew, rebind = more.get("times", (0, 0))
    association = Association(PROFILE.number, renew, rebind, addresses, status)
    return Message(
        kind,
        asked.xid,
        PROFILE.identifier,
        SERVER_IDS[server],
        more.get("associations", (association,)),
        more.get("options", {}),
        server,
    )


def advice(number: int) -> dict[int, bytes]:
    """Return the option with a server's preference."""
    return {packet.PREFERENCE: bytes([number])}


def status(code: int) -> dict[int, bytes]:
    """Return the option with a status of the whole message."""
    return {packet.STATUS: code.to_bytes(2, "big") + b"because"}


@dataclass
class Client:
    """A machine, and what it has done so far."""

    lease: Lease | None = None
    now: float = 1000.0
    sent: list[Message] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the machine, with chance that is none."""
        self.machine = Machine(PROFILE, Pace(), lambda: 0.5, self.lease)

    def do(self, actions: list[machine.Action]) -> None:
        """Note what is to be done; each message is what its bytes say."""
        for action in actions:
            if isinstance(action, Send):
                assert isinstance(action.message, Message)
                assert packet.decode(action.message.encode()) == action.message
                self.sent.append(action.message)
            else:
                self.events.append(action)

    def start(self, seconds: float = 75) -> None:
        """Look for an address."""
        self.do(self.machine.start(self.now, seconds))

    def tick(self) -> None:
        """Let the time come at which something is due."""
        self.now = max(self.now, self.machine.deadline)
        self.do(self.machine.tick(self.now))

    def hear(self, kind: int, server: IPv6Address = FIRST, **more: Any) -> None:
        """Have a server answer the last message."""
        data = answer(kind, self.sent[-1], server, **more).encode()
        self.do(self.machine.hear(data, str(server), self.now))

    def bind(self, **more: Any) -> Lease:
        """Get a lease by four messages."""
        self.start()
        self.hear(packet.ADVERTISE, options=advice(255))
        self.hear(packet.REPLY, **more)
        assert self.machine.lease
        return self.machine.lease

    @property
    def kinds(self) -> list[str]:
        """The kinds of all messages that were sent."""
        return [one.name for one in self.sent]

    @property
    def asked(self) -> IPv6Address | None:
        """The address in the last message."""
        (association,) = self.sent[-1].associations
        return association.addresses[0].address if association.addresses else None


# --- looking for an address ---


def test_four_messages() -> None:
    """Solicit and Request have the client's identifier; the Request names server and address."""
    client = Client()

    lease = client.bind()

    assert client.kinds == ["SOLICIT", "REQUEST"]
    assert [one.client for one in client.sent] == [PROFILE.identifier] * 2
    assert [one.server for one in client.sent] == [b"", SERVER_IDS[FIRST]]
    assert client.asked == ADDRESS
    assert packet.RAPID_COMMIT in client.sent[0].options
    assert client.sent[1].options[packet.REQUESTED] == bytes([0, 23, 0, 24, 0, 56, 0, 82])
    assert (lease.address, lease.server) == (ADDRESS, FIRST)
    assert (lease.renew, lease.rebind, lease.expire) == (2800, 3880, 4600)
    assert client.events == [Bound(lease, is_new=True)]


def test_two_messages() -> None:
    """A Reply with Rapid Commit is a lease at once; one without is none."""
    client = Client()
    client.start()
    client.hear(packet.REPLY)
    assert client.events == []

    client.hear(packet.REPLY, options=RAPID)

    assert client.kinds == ["SOLICIT"]
    assert client.events == [Bound(client.machine.lease, is_new=True)]  # type: ignore[arg-type]


def test_nobody_answers() -> None:
    """RFC 8415 section 15: 1, 2, 4 s and so on, each with the time since the first, bounded."""
    client = Client()
    client.start(75)
    times = [client.now]
    while not client.events:
        client.tick()
        times.append(client.now)

    assert [later - earlier for earlier, later in pairwise(times)] == [1, 2, 4, 8, 16, 32, 12]
    elapsed = [int.from_bytes(one.options[packet.ELAPSED], "big") for one in client.sent]
    assert elapsed == [0, 100, 300, 700, 1500, 3100, 6300]
    assert client.events == [GaveUp("no DHCPv6 server has answered")]
    assert client.machine.deadline == inf


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.99])
def test_waits_are_spread(chance: float) -> None:
    """By a tenth at most; the first one is never shorter than a second (section 18.2.1)."""
    started = Machine(PROFILE, Pace(), lambda: chance)
    started.start(0, 75)
    first = started.deadline
    started.tick(first)
    second = started.deadline - first

    assert 1 <= first <= 1.1
    assert 1.9 * first <= second <= 2.1 * first


def test_the_preferred_server() -> None:
    """Offers are collected for a second; the highest preference counts, then the first."""
    client = Client()
    client.start()
    client.hear(packet.ADVERTISE, options=advice(3))
    client.hear(packet.ADVERTISE, SECOND, address=OTHER, options=advice(7))
    assert client.kinds == ["SOLICIT"]

    client.tick()

    assert client.kinds == ["SOLICIT", "REQUEST"]
    assert (client.sent[1].server, client.asked) == (SERVER_IDS[SECOND], OTHER)


def test_a_late_offer_is_taken_at_once() -> None:
    """Once the first wait is over there is no more reason to collect."""
    client = Client()
    client.start()
    client.tick()
    client.hear(packet.ADVERTISE)

    assert client.kinds == ["SOLICIT", "SOLICIT", "REQUEST"]


def test_no_addresses() -> None:
    """An offer of none is no offer; at last the client tells the server's reason."""
    client = Client()
    client.start(3)
    client.hear(packet.ADVERTISE, status=packet.NO_ADDRESS)
    client.hear(packet.ADVERTISE, associations=(), options=status(packet.NO_ADDRESS))
    while not client.events:
        client.tick()

    assert client.kinds == ["SOLICIT"] * 2
    assert client.events == [
        GaveUp("DHCPv6 server fe80::2 gives no address: NoAddrsAvail, because")
    ]


@pytest.mark.parametrize("code", [packet.NO_ADDRESS, packet.NOT_ON_LINK])
def test_an_offer_is_refused(code: int) -> None:
    """The other server is asked; if there is none, all servers, but not at once."""
    client = Client()
    client.start()
    client.hear(packet.ADVERTISE, options=advice(9))
    client.hear(packet.ADVERTISE, SECOND)
    client.tick()
    client.hear(packet.REPLY, status=code)
    assert client.sent[-1].server == SERVER_IDS[SECOND]

    before = client.now
    client.hear(packet.REPLY, SECOND, associations=(), options=status(code))
    client.tick()

    assert client.now == before + 1
    assert client.kinds == ["SOLICIT", "REQUEST", "REQUEST", "SOLICIT"]


def test_the_server_falls_silent_after_its_offer() -> None:
    """After four Requests the next server is asked, and then all of them again."""
    client = Client()
    client.start(500)
    client.hear(packet.ADVERTISE)
    client.hear(packet.ADVERTISE, SECOND)
    for _ in range(9):
        client.tick()

    assert client.kinds == ["SOLICIT", *["REQUEST"] * 8, "SOLICIT"]
    servers = [SERVER_IDS[FIRST]] * 4 + [SERVER_IDS[SECOND]] * 4
    assert [one.server for one in client.sent[1:9]] == servers


def test_a_server_that_fails() -> None:
    """UnspecFail may be over soon: the Request is repeated at its time."""
    client = Client()
    client.start()
    client.hear(packet.ADVERTISE, options=advice(255))
    client.hear(packet.REPLY, options=status(packet.FAILED))
    assert client.kinds == ["SOLICIT", "REQUEST"]

    client.tick()
    client.hear(packet.REPLY)

    assert client.kinds == ["SOLICIT", "REQUEST", "REQUEST"]
    assert client.machine.holds


def test_the_servers_want_less() -> None:
    """SOL_MAX_RT: Solicits come as rarely as a server says, also in an answer of no use."""
    client = Client()
    client.start(inf)
    told = {**status(packet.NO_ADDRESS), packet.SOLICIT_MOST: (600).to_bytes(4, "big")}
    client.hear(packet.ADVERTISE, associations=(), options=told)
    for _ in range(20):
        client.tick()

    assert client.machine.deadline - client.now == 600


@pytest.mark.parametrize(
    ("times", "preferred", "valid", "expected"),
    [
        ((0, 0), 100, 200, (50, 80, 200)),
        ((30, 60), 100, 200, (30, 60, 200)),
        ((0, 60), 100, 200, (50, 60, 200)),
        ((300, 600), 100, 200, (200, 200, 200)),
        ((0, 0), 0, 10, (5, 8, 10)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 100, 200, (200, 200, 200)),
        ((0, 0), 0xFFFFFFFF, 0xFFFFFFFF, (inf, inf, inf)),
    ],
)
def test_times(
    times: tuple[int, int], preferred: int, valid: int, expected: tuple[float, float, float]
) -> None:
    """Those that the server leaves to the client are shares of the preferred lifetime."""
    lease = Client().bind(times=times, preferred=preferred, valid=valid)

    assert (lease.renew - 1000, lease.rebind - 1000, lease.expire - 1000) == expected


@pytest.mark.parametrize(
    "more", [{"times": (60, 30)}, {"preferred": 7200}, {"valid": 0}, {"associations": ()}]
)
def test_addresses_of_no_use(more: dict[str, Any]) -> None:
    """T1 behind T2, preferred longer than valid, no lifetime, no association."""
    client = Client()
    client.start()
    client.hear(packet.ADVERTISE, options=advice(255), **more)

    assert client.kinds == ["SOLICIT"]


# --- keeping it ---


def test_renewal() -> None:
    """At T1 the server of the lease is asked; a value that it does not repeat is as it was."""
    client = Client()
    client.bind(options={packet.DNS_SERVERS: FIRST.packed})
    client.tick()
    assert client.machine.state == machine.RENEWING
    assert (client.kinds[-1], client.sent[-1].server) == ("RENEW", SERVER_IDS[FIRST])
    assert client.asked == ADDRESS

    client.now += 1
    client.hear(packet.REPLY)

    lease = client.machine.lease
    assert lease
    assert lease.expire == 2800 + 3600
    assert lease.options[packet.DNS_SERVERS] == FIRST.packed
    assert client.events[-1] == Bound(lease, is_new=False)


def test_the_server_is_gone_at_renewal() -> None:
    """Renews after 10, 20, 40 s; at T2 any server may extend the lease."""
    client = Client()
    client.bind()
    client.tick()
    times = [client.now]
    while client.machine.state != machine.REBINDING:
        client.tick()
        times.append(client.now)
    assert [later - earlier for earlier, later in pairwise(times)][:4] == [10, 20, 40, 80]
    assert client.now == 3880
    assert (client.kinds[-1], client.sent[-1].server) == ("REBIND", b"")

    client.hear(packet.REPLY, SECOND)

    assert client.machine.lease
    assert client.machine.lease.server == SECOND
    client.tick()
    assert client.sent[-1].server == SERVER_IDS[SECOND]


def test_the_end_of_a_lease() -> None:
    """Its address is lost at that time; the client goes on to ask for it, and takes no other."""
    client = Client()
    lease = client.bind(valid=8)
    while not isinstance(client.events[-1], Lost):
        client.tick()
    assert client.now == lease.expire
    reason = "the lease has expired, no DHCPv6 server has answered"
    assert client.events[-1] == Lost(lease, reason)
    assert (client.kinds[-1], client.asked) == ("SOLICIT", ADDRESS)
    assert packet.RAPID_COMMIT not in client.sent[-1].options

    client.hear(packet.ADVERTISE, SECOND, address=OTHER, options=advice(255))
    client.hear(packet.REPLY, SECOND, options=RAPID)
    for _ in range(20):
        client.tick()
    assert client.machine.state == machine.SELECTING
    client.hear(packet.ADVERTISE, SECOND)
    client.hear(packet.REPLY, SECOND)

    assert client.machine.lease
    assert client.events[-1:] == [Bound(client.machine.lease, is_new=True)]


def test_no_binding() -> None:
    """A server that has lost its leases is asked for the address anew, which is used meanwhile."""
    client = Client()
    client.bind()
    client.tick()
    client.hear(packet.REPLY, status=packet.NO_BINDING)
    assert (client.kinds[-1], client.asked) == ("REQUEST", ADDRESS)
    assert client.machine.holds

    client.hear(packet.REPLY)

    assert client.machine.lease
    assert client.events[-1] == Bound(client.machine.lease, is_new=False)


@pytest.mark.parametrize("more", [{"address": OTHER}, {"status": packet.NO_ADDRESS}])
def test_no_binding_and_no_more_of_it(more: dict[str, Any]) -> None:
    """Another address is none of the container's."""
    client = Client()
    lease = client.bind()
    client.tick()
    client.hear(packet.REPLY, status=packet.NO_BINDING)

    client.hear(packet.REPLY, **more)

    (lost,) = [one for one in client.events if isinstance(one, Lost)]
    assert lost.lease == lease
    assert client.kinds[-1] == "SOLICIT"


def test_silence_after_no_binding() -> None:
    """The lease is used until its end, and renewed on."""
    client = Client()
    lease = client.bind()
    client.tick()
    client.hear(packet.REPLY, status=packet.NO_BINDING)
    for _ in range(4):
        client.tick()

    assert client.kinds[-2:] == ["REQUEST", "RENEW"]
    assert client.machine.lease == lease


@pytest.mark.parametrize(
    "more", [{"valid": 0}, {"status": packet.NOT_ON_LINK}, {"status": packet.NO_ADDRESS}]
)
def test_a_server_takes_an_address_back(more: dict[str, Any]) -> None:
    """A lifetime of 0, or a refusal, ends the lease at once."""
    client = Client()
    lease = client.bind()
    client.tick()
    client.hear(packet.REPLY, **more)

    assert isinstance(client.events[-1], Lost)
    assert client.events[-1].lease == lease


@pytest.mark.parametrize(
    "more",
    [
        {"associations": ()},
        {"address": OTHER},
        {"options": status(packet.FAILED)},
        {"options": status(packet.USE_MULTICAST)},
        {"times": (60, 30)},
        {"status": packet.FAILED},
        {"server": SECOND, "valid": 0},
    ],
)
def test_answers_that_change_nothing(more: dict[str, Any]) -> None:
    """As if none had come: the lease is renewed on."""
    client = Client()
    lease = client.bind()
    client.tick()
    client.hear(packet.REPLY, **more)

    assert client.machine.state == machine.RENEWING
    assert client.machine.lease == lease


# --- the link was away ---


def test_the_link_was_away() -> None:
    """Confirm, to all servers: a Reply of success changes nothing of the lease."""
    client = Client()
    lease = client.bind()
    client.do(client.machine.verify(client.now))
    assert (client.kinds[-1], client.sent[-1].server) == ("CONFIRM", b"")
    assert client.asked == ADDRESS

    client.hear(packet.REPLY, SECOND, associations=())

    assert client.events[-1] == Bound(lease, is_new=False)
    assert (client.machine.state, client.machine.deadline) == (machine.BOUND, lease.renew)


def test_the_container_is_on_another_link() -> None:
    """NotOnLink to a Confirm ends the lease."""
    client = Client()
    lease = client.bind()
    client.do(client.machine.verify(client.now))
    client.hear(packet.REPLY, associations=(), options=status(packet.NOT_ON_LINK))

    reason = "DHCPv6 server fe80::2 refuses: NotOnLink, because"
    assert client.events[-1] == Lost(lease, reason)
    assert client.kinds[-1] == "SOLICIT"


def test_nobody_knows_after_the_link_was_away() -> None:
    """The lease is used until its end, and renewed at its time."""
    client = Client()
    lease = client.bind()
    client.do(client.machine.verify(client.now))
    client.hear(packet.REPLY, options=status(packet.FAILED))
    while client.machine.state == machine.REBOOTING:
        client.tick()

    assert client.kinds[2:] == ["CONFIRM"] * 4
    assert (client.machine.state, client.machine.deadline) == (machine.BOUND, lease.renew)


# --- giving it back ---


@pytest.mark.parametrize(("ends", "kind"), [("stop", "RELEASE"), ("decline", "DECLINE")])
def test_the_last_word(ends: str, kind: str) -> None:
    """It names server, client and address; nothing is due any more."""
    client = Client()
    client.bind()
    client.do(getattr(client.machine, ends)())

    assert (client.kinds[-1], client.sent[-1].server) == (kind, SERVER_IDS[FIRST])
    assert client.asked == ADDRESS
    assert client.machine.deadline == inf
    assert client.machine.stop() == []


def test_another_machine_has_the_address() -> None:
    """After a loss, when the address is put back: it is declined, and asked for again."""
    client = Client()
    lease = client.bind()
    client.do(client.machine.conflict(client.now))

    assert client.kinds[-2:] == ["DECLINE", "SOLICIT"]
    assert client.events[-1] == Lost(lease, "another machine of the link uses it")


def test_messages_of_others() -> None:
    """For another client, of another exchange, of no server, or no answer at all."""
    client = Client()
    client.start()
    offer = answer(packet.ADVERTISE, client.sent[-1], options=advice(255))
    other = Association(PROFILE.number + 1, addresses=(Given(ADDRESS, 9, 9),))
    for wrong in (
        replace(offer, xid=offer.xid ^ 1),
        replace(offer, client=b"\0\4other"),
        replace(offer, client=b""),
        replace(offer, server=b""),
        replace(offer, kind=packet.SOLICIT),
        replace(offer, associations=(other,)),
    ):
        client.do(client.machine.receive(wrong, client.now))

    assert client.kinds == ["SOLICIT"]


class Model6(Model):
    """Servers of DHCPv6."""

    def make(self, chance: float, lease: Lease | None) -> Machine:
        """Return a machine."""
        return Machine(PROFILE, Pace(), lambda: chance, lease)

    def judge(self, sent: Send) -> None:
        """Only about an address that is used a server is asked for more time."""
        if sent.message.kind in (packet.RENEW, packet.REBIND, packet.CONFIRM):
            assert self.used

    @precondition(lambda self: not self.ended)
    @rule(
        kind=st.sampled_from([packet.ADVERTISE, packet.REPLY, packet.REPLY, packet.SOLICIT]),
        server=st.sampled_from([FIRST, SECOND]),
        address=st.sampled_from([ADDRESS, ADDRESS, OTHER]),
        valid=st.sampled_from([0, 1, 4, 3600, 0xFFFFFFFF]),
        code=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 99]),
        options=st.sampled_from([{}, RAPID, advice(255), status(1), status(2), status(4)]),
        back=st.integers(1, 3),
    )
    def hear(self, back: int, kind: int, server: IPv6Address, code: int, **more: Any) -> None:
        """A server answers one of the last messages, whatever that was."""
        asked = self.asked[-min(back, len(self.asked))]
        said = answer(kind, asked, server, status=code, **more)
        self.take(said.encode(), str(server))

    @precondition(lambda self: not self.ended and not self.used)
    @rule(valid=st.sampled_from([1, 60, 3600]), address=st.sampled_from([ADDRESS, OTHER]))
    def get_a_lease(self, valid: int, address: IPv6Address) -> None:
        """All goes as it should."""
        for kind in (packet.ADVERTISE, packet.REPLY):
            told = advice(255) if kind == packet.ADVERTISE else {}
            said = answer(kind, self.asked[-1], valid=valid, address=address, options=told)
            self.take(said.encode(), str(FIRST))


TestModel = Model6.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=40)
