"""The client's side of DHCPv4 as a machine of states (RFC 2131, figure 5).

It neither sends nor waits: it is told of messages and of the time, and returns what is to be done.
Times are seconds of one clock that goes on while the computer sleeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf
from typing import TYPE_CHECKING

from plugins.dhcp.daemon import packet
from plugins.dhcp.daemon.packet import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    Action: TypeAlias = "Send | Bound | Lost | GaveUp"

INIT, SELECTING, REQUESTING, REBOOTING = "init", "selecting", "requesting", "rebooting"
BOUND, RENEWING, REBINDING, STOPPED = "bound", "renewing", "rebinding", "stopped"
_HOLDING = (BOUND, RENEWING, REBINDING, REBOOTING)  # states in which the address may be used
_FOREVER = 0xFFFFFFFF  # a lease without end (RFC 2131 section 3.3)
_DEFAULT_SECONDS = 3600  # of a lease whose server says nothing, as in the reference
_TRIES = 4  # of a REQUEST, before the client begins anew
_REBIND_SHARE = 0.875  # of a lease (RFC 2131 section 4.4.5)
_RENEWAL_PAUSE = 60.0  # seconds, at least, between two tries of one renewal; of a short lease less
_PAUSE_SHARE = 1 / 20  # of the lease
_PAUSE_AFTER_NAK = 1.0  # seconds: a server that refuses all that it offers is not flooded


@dataclass(frozen=True, slots=True)
class Profile:
    """What a client says of itself in each message."""

    mac: str
    client_id: bytes
    provided: Mapping[int, bytes]  # further options
    requested: Sequence[int]  # codes of the options that it asks for
    broadcast: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How long answers are waited for, in seconds."""

    first: float = 4.0  # for the first try of a message
    most: float = 62.0  # for later tries, each of which waits twice as long


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that a server has given for some time."""

    address: IPv4Address
    server: IPv4Address
    renew: float  # the times of the clock at which these states begin; inf: never
    rebind: float
    expire: float
    options: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message`: to a server, or to all."""

    message: Message
    server: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The address of `lease` is the client's; `is_new`: it was not so before."""

    lease: Lease
    is_new: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """The address of `lease` must not be used any more."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """There is no address, and no more is done about it."""

    reason: str


class Machine:
    """One client. Each method that is told of something returns what is to be done, in order."""

    def __init__(
        self,
        profile: Profile,
        pace: Pace,
        random: Callable[[], float],
        lease: Lease | None = None,
    ) -> None:
        """`random` returns numbers from 0 to below 1. With a `lease` it begins as BOUND."""
        self.profile = profile
        self.lease = lease
        self.state = BOUND if lease else INIT
        self.deadline = lease.renew if lease else inf  # when `tick` is due
        self._pace = pace
        self._random = random
        self._wanted: IPv4Address | None = None  # after a loss no other address helps
        self._until = inf
        self._wait = pace.first
        self._tries = 0
        self._xid = 0
        self._begun = self._sent = 0.0
        self._offer: Message | None = None
        self._problem = "no DHCP server has answered"

    @property
    def holds(self) -> bool:
        """Tell whether there is an address that may be used."""
        return self.state in _HOLDING

    def start(self, now: float, seconds: float) -> list[Action]:
        """Begin to look for an address, for so many seconds."""
        self._until = now + seconds
        return self._discover(now)

    def resume(self, now: float, lost: Lease) -> list[Action]:
        """Begin to look for the address of a lease that was lost before."""
        return self._look_for(lost, now)

    def verify(self, now: float) -> list[Action]:
        """Ask whether the address is still right: the link was away (INIT-REBOOT)."""
        if self.state not in (BOUND, RENEWING, REBINDING):
            return []
        return self._first_request(REBOOTING, now)

    def stop(self) -> list[Action]:
        """End; give the address back."""
        lease, self.state, self.deadline = self.lease, STOPPED, inf
        self.lease = None
        return (
            [Send(release_of(lease, self.profile, self._new_xid()), lease.server)] if lease else []
        )

    def tick(self, now: float) -> list[Action]:
        """Do what is due at `now`."""
        if now < self.deadline:
            return []
        lease = self.lease
        if self.holds and lease and now >= lease.expire:
            return self._lose(f"the lease has expired, {self._problem}", now)
        if not self.holds and now >= self._until:
            return self._give_up()
        if self.state in (INIT, SELECTING):
            return self._discover(now, again=self.state == SELECTING)
        if self.state in (REQUESTING, REBOOTING):
            return self._repeat_request(now)
        return self._keep(now)

    def receive(self, message: Message, now: float) -> list[Action]:
        """Take a message of a server into account."""
        if not self._is_for_us(message):
            return []
        if message.kind == packet.OFFER and self.state == SELECTING:
            return self._accept(message, now)
        if message.kind == packet.ACK and self.state in (
            *(REQUESTING, REBOOTING, RENEWING, REBINDING),
        ):
            return self._acknowledged(message, now)
        if message.kind == packet.NAK:
            return self._refused(message, now)
        return []

    # --- looking for an address ---

    def _discover(self, now: float, *, again: bool = False) -> list[Action]:
        if not again:
            self._xid, self._begun, self._wait = self._new_xid(), now, self._pace.first
        self.state, self._offer = SELECTING, None
        options = self._options()
        if self._wanted:
            options[packet.REQUESTED_ADDRESS] = self._wanted.packed
        self._schedule(now, self._wait)
        self._wait = min(2 * self._wait, self._pace.most)
        return [Send(self._message(packet.DISCOVER, now, options))]

    def _accept(self, offer: Message, now: float) -> list[Action]:
        server = offer.address(packet.SERVER_ID)
        if not server or not int(offer.yiaddr):
            return []
        if self._wanted not in (None, offer.yiaddr):
            self._problem = f"DHCP server {server} offers {offer.yiaddr} instead of {self._wanted}"
            return []
        self._offer = offer
        return self._first_request(REQUESTING, now)

    def _first_request(self, state: str, now: float) -> list[Action]:
        if state == REBOOTING:
            self._xid, self._begun = self._new_xid(), now
        self.state, self._tries, self._wait, self._sent = state, 0, self._pace.first, now
        return self._repeat_request(now)

    def _repeat_request(self, now: float) -> list[Action]:
        """Send a REQUEST for what was offered, or for what is held."""
        if self._tries == _TRIES:
            if self.state == REBOOTING:  # nobody denies that the address is right
                return self._back_to_bound(now)
            self._problem = f"DHCP server {self._server_text()} has not answered a REQUEST"
            return self._discover(now)
        self._tries += 1
        options = self._options()
        if self._offer and self.state == REQUESTING:
            options[packet.SERVER_ID] = self._offer.options[packet.SERVER_ID]
            options[packet.REQUESTED_ADDRESS] = self._offer.yiaddr.packed
        elif self.lease:
            options[packet.REQUESTED_ADDRESS] = self.lease.address.packed
        self._schedule(now, self._wait)
        self._wait = min(2 * self._wait, self._pace.most)
        return [Send(self._message(packet.REQUEST, now, options))]

    def _give_up(self) -> list[Action]:
        self.state, self.deadline = STOPPED, inf
        return [GaveUp(self._problem)]

    # --- keeping it ---

    def _keep(self, now: float) -> list[Action]:
        """Ask for more time: the server, and later all servers."""
        lease = self.lease
        assert lease is not None
        state = REBINDING if now >= lease.rebind else RENEWING
        if state != self.state:
            self.state, self._xid, self._begun, self._sent = state, self._new_xid(), now, now
        until = lease.expire if state == REBINDING else lease.rebind
        whole = lease.expire - lease.renew
        pause = max((until - now) / 2, min(_RENEWAL_PAUSE, whole * _PAUSE_SHARE))
        self.deadline = min(now + pause, until)
        message = self._message(packet.REQUEST, now, self._options(), lease.address)
        return [Send(message, lease.server if state == RENEWING else None)]

    def _back_to_bound(self, now: float) -> list[Action]:
        assert self.lease is not None
        self.state, self.deadline = BOUND, max(now, self.lease.renew)
        return self.tick(now)

    def _acknowledged(self, ack: Message, now: float) -> list[Action]:
        server = ack.address(packet.SERVER_ID)
        if self.state == REQUESTING and self._offer:
            if ack.options.get(packet.SERVER_ID) != self._offer.options[packet.SERVER_ID]:
                return []
            expected = self._offer.yiaddr
        else:
            assert self.lease is not None
            expected = self.lease.address
            server = server or self.lease.server
        if server is None:
            return []
        if ack.yiaddr != expected:
            self._problem = f"DHCP server {server} gives {ack.yiaddr} instead of {expected}"
            return self._lose(self._problem, now) if self.holds else self._discover(now)
        is_new, self._wanted, self._until = not self.holds, None, inf
        known = self.lease.options if self.lease else {}  # a renewal may say less
        self.lease = lease_of(ack, server, self._sent, known)
        self.state, self.deadline = BOUND, self.lease.renew
        self._problem = "no DHCP server has answered"
        return [Bound(self.lease, is_new)]

    def _refused(self, nak: Message, now: float) -> list[Action]:
        server = nak.address(packet.SERVER_ID)
        by = f"DHCP server {server or 'without a name'} refuses"
        reason = f"{by}: {nak.text(packet.TEXT)}" if nak.text(packet.TEXT) else by
        if self.state == REQUESTING and self._offer:
            if nak.options.get(packet.SERVER_ID) != self._offer.options[packet.SERVER_ID]:
                return []  # of another server, which knows nothing of the offer
            self._problem = reason
            self.state = INIT
            self._schedule(now, _PAUSE_AFTER_NAK)
            return []
        if self.state == RENEWING and self.lease and server not in (None, self.lease.server):
            return []
        return self._lose(reason, now) if self.state in (REBOOTING, RENEWING, REBINDING) else []

    def _lose(self, reason: str, now: float) -> list[Action]:
        lease = self.lease
        assert lease is not None
        return [Lost(lease, reason), *self._look_for(lease, now)]

    def _look_for(self, lost: Lease, now: float) -> list[Action]:
        self.lease, self._wanted, self._until = None, lost.address, inf
        return self._discover(now)

    # --- messages ---

    def _is_for_us(self, message: Message) -> bool:
        return message.is_reply and message.xid == self._xid and message.mac == self.profile.mac

    def _options(self) -> dict[int, bytes]:
        options = {packet.CLIENT_ID: self.profile.client_id}
        if self.profile.requested:
            options[packet.PARAMETERS] = bytes(self.profile.requested)
        return options | dict(self.profile.provided)

    def _message(
        self,
        kind: int,
        now: float,
        options: Mapping[int, bytes],
        ciaddr: IPv4Address = packet.NOWHERE,
    ) -> Message:
        return Message(
            kind,
            self._xid,
            self.profile.mac,
            secs=int(now - self._begun),
            broadcast=self.profile.broadcast and not int(ciaddr),
            ciaddr=ciaddr,
            options=options,
        )

    def _schedule(self, now: float, seconds: float) -> None:
        """Have `tick` called after about so many seconds (RFC 2131 section 4.1)."""
        spread = min(1.0, seconds / 4)
        self.deadline = now + seconds + (2 * self._random() - 1) * spread
        if not self.holds:
            self.deadline = min(self.deadline, self._until)
        elif self.lease:
            self.deadline = min(self.deadline, self.lease.expire)

    def _new_xid(self) -> int:
        return int(self._random() * 2**32)

    def _server_text(self) -> str:
        return str(self._offer.address(packet.SERVER_ID)) if self._offer else "of no name"


def lease_of(ack: Message, server: IPv4Address, since: float, known: Mapping[int, bytes]) -> Lease:
    """Return the lease that an ACK gives from `since` on, when it was asked for.

    Of the options that were `known` before it has those that the ACK lacks.
    """
    options = {**known, **ack.options}
    seconds = ack.number(packet.LEASE_SECONDS)
    seconds = _DEFAULT_SECONDS if seconds is None else seconds
    if seconds == _FOREVER:
        return Lease(ack.yiaddr, server, inf, inf, inf, options)
    seconds = max(seconds, 1)
    renew = ack.number(packet.RENEWAL_SECONDS) or seconds / 2
    rebind = ack.number(packet.REBINDING_SECONDS) or seconds * _REBIND_SHARE
    if not 0 < renew < rebind < seconds:
        renew, rebind = seconds / 2, seconds * _REBIND_SHARE
    return Lease(ack.yiaddr, server, since + renew, since + rebind, since + seconds, options)


def release_of(lease: Lease, profile: Profile, xid: int) -> Message:
    """Return the message that gives a lease back; no server answers it."""
    options = {
        packet.SERVER_ID: lease.server.packed,
        packet.CLIENT_ID: profile.provided.get(packet.CLIENT_ID, profile.client_id),
    }
    return Message(packet.RELEASE, xid, profile.mac, ciaddr=lease.address, options=options)
