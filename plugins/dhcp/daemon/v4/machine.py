"""The client's side of DHCPv4 (RFC 2131): its messages and times."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf
from typing import TYPE_CHECKING

from plugins.dhcp.daemon import machine
from plugins.dhcp.daemon.machine import (
    REBINDING,
    REBOOTING,
    RENEWING,
    REQUESTING,
    SELECTING,
    Lease,
    Send,
)
from plugins.dhcp.daemon.v4 import packet
from plugins.dhcp.daemon.v4.packet import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from plugins.dhcp.daemon.machine import Action, Pace

_FOREVER = 0xFFFFFFFF  # a lease without end (RFC 2131 section 3.3)
_DEFAULT_SECONDS = 3600  # of a lease whose server says nothing, as in the reference
_REBIND_SHARE = 0.875  # of a lease (RFC 2131 section 4.4.5)
_RENEWAL_PAUSE = 60.0  # seconds, at least, between two tries of one renewal; of a short lease less
_PAUSE_SHARE = 1 / 20  # of the lease


@dataclass(frozen=True, slots=True)
class Profile:
    """The client's identity and wishes, which each of its messages has."""

    mac: str
    client_id: bytes
    provided: Mapping[int, bytes]  # further options
    requested: Sequence[int]  # codes of the options that it asks for
    broadcast: bool = False


class Machine(machine.Machine):
    """One client of DHCPv4."""

    def __init__(
        self,
        profile: Profile,
        pace: Pace,
        random: Callable[[], float],
        lease: Lease | None = None,
    ) -> None:
        """As of all machines."""
        super().__init__(pace, random, lease)
        self.profile = profile
        self._offer: Message | None = None

    def hear(self, data: bytes, sender: str, now: float) -> list[Action]:
        """Take bytes into account that a MAC has brought. Raises MalformedError."""
        message = packet.decode(data)
        actions = self.receive(message, now)
        if message.kind == packet.ACK and actions:
            self.neighbour = sender
        return actions

    def receive(self, message: Message, now: float) -> list[Action]:
        """Take a message of a server into account."""
        if not self._is_for_us(message):
            return []
        if message.kind == packet.OFFER and self.state == SELECTING:
            return self._accept(message, now)
        asked = self.state in (REQUESTING, REBOOTING, RENEWING, REBINDING)
        if message.kind == packet.ACK and asked:
            return self._acknowledged(message, now)
        if message.kind == packet.NAK:
            return self._refused(message, now)
        return []

    # --- answers ---

    def _accept(self, offer: Message, now: float) -> list[Action]:
        server = offer.address(packet.SERVER_ID)
        if not server or not int(offer.yiaddr):
            return []
        if self._wanted not in (None, offer.yiaddr):
            self.problem = f"DHCP server {server} offers {offer.yiaddr} instead of {self._wanted}"
            return []
        self._offer = offer
        return self._first_request(REQUESTING, now)

    def _acknowledged(self, ack: Message, now: float) -> list[Action]:
        server = ack.address(packet.SERVER_ID)
        if self.state == REQUESTING and self._offer:
            if ack.options.get(packet.SERVER_ID) != self._offer.options[packet.SERVER_ID]:
                return []
            expected = self._offer.yiaddr
        else:
            expected, known_server = _ends(self.lease)
            server = server or known_server
        if server is None:
            return []
        if ack.yiaddr != expected:
            self.problem = f"DHCP server {server} gives {ack.yiaddr} instead of {expected}"
            return self._lose(self.problem, now) if self.holds else self._discover(now)
        known = self.lease.options if self.lease else {}  # a renewal may say less
        return self._bind(lease_of(ack, server, self._sent, known))

    def _refused(self, nak: Message, now: float) -> list[Action]:
        server = nak.address(packet.SERVER_ID)
        by = f"DHCP server {server or 'without a name'} refuses"
        reason = f"{by}: {nak.text(packet.TEXT)}" if nak.text(packet.TEXT) else by
        if self.state == REQUESTING and self._offer:
            if nak.options.get(packet.SERVER_ID) != self._offer.options[packet.SERVER_ID]:
                return []  # of another server, which knows nothing of the offer
            return self._pause(now, reason)
        if self.state == RENEWING and self.lease and server not in (None, self.lease.server):
            return []
        return self._lose(reason, now) if self.state in (REBOOTING, RENEWING, REBINDING) else []

    def _is_for_us(self, message: Message) -> bool:
        return message.is_reply and message.xid == self._xid and message.mac == self.profile.mac

    # --- messages ---

    def _discover(self, now: float, *, again: bool = False) -> list[Action]:
        if not again:
            self._begin(now)
            self._wait = 0.0
        self.state, self._offer = SELECTING, None
        options = self._options()
        if self._wanted:
            options[packet.REQUESTED_ADDRESS] = self._wanted.packed
        self._schedule(now, self._next_wait())
        return [Send(self._message(packet.DISCOVER, now, options))]

    def _request(self, now: float) -> Send:
        options = self._options()
        if self._offer and self.state == REQUESTING:
            options[packet.SERVER_ID] = self._offer.options[packet.SERVER_ID]
            options[packet.REQUESTED_ADDRESS] = self._offer.yiaddr.packed
        elif self.lease:
            options[packet.REQUESTED_ADDRESS] = self.lease.address.packed
        return Send(self._message(packet.REQUEST, now, options))

    def _renewal(self, now: float) -> Send:
        address, server = _ends(self.lease)
        message = self._message(packet.REQUEST, now, self._options(), address)
        return Send(message, server if self.state == RENEWING else None)

    def _give_back(self, lease: Lease) -> Send:
        address, server = _ends(lease)
        client = self.profile.provided.get(packet.CLIENT_ID, self.profile.client_id)
        options = {packet.SERVER_ID: server.packed, packet.CLIENT_ID: client}
        xid, mac = self._new_xid(), self.profile.mac
        return Send(Message(packet.RELEASE, xid, mac, ciaddr=address, options=options), server)

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

    # --- times ---

    def _next_wait(self) -> float:
        """Return the wait with a spread of a second or less (RFC 2131 section 4.1)."""
        self._wait = min(2 * self._wait, self._pace.most) if self._wait else self._pace.first
        return self._wait + (2 * self._random() - 1) * min(1.0, self._wait / 4)

    def _renewal_wait(self, now: float, until: float) -> float:
        """Return half of the time that is left (RFC 2131 section 4.4.5)."""
        assert self.lease is not None
        whole = self.lease.expire - self.lease.renew
        return max((until - now) / 2, min(_RENEWAL_PAUSE, whole * _PAUSE_SHARE))

    def _new_xid(self) -> int:
        return int(self._random() * 2**32)

    @property
    def _chosen(self) -> str:
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


def _ends(lease: Lease | None) -> tuple[IPv4Address, IPv4Address]:
    """Return address and server of a lease that there is."""
    assert lease is not None
    assert isinstance(lease.address, IPv4Address)
    assert isinstance(lease.server, IPv4Address)
    return lease.address, lease.server
