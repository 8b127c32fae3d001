"""The client's side of DHCPv6 for one address (RFC 8415, IA_NA): its messages and times."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from math import inf
from typing import TYPE_CHECKING

from plugins.dhcp.daemon import machine
from plugins.dhcp.daemon.machine import (
    REBOOTING,
    RENEWING,
    REQUESTING,
    SELECTING,
    Lease,
    Send,
)
from plugins.dhcp.daemon.v6 import packet
from plugins.dhcp.daemon.v6.packet import Association, Given, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from plugins.dhcp.daemon.machine import Action, Pace

# Seconds (RFC 8415 section 7.6). The first wait for a Solicit, Request or Confirm; for a renewal.
_FIRST, _RENEWAL_FIRST, _RENEWAL_MOST = 1.0, 10.0, 600.0
_SOLICIT_MOST = range(60, 86401)  # what a server may tell for the longest wait of a Solicit
_SPREAD = 0.1  # of a wait, more or less (section 15)
_RENEW_SHARE, _REBIND_SHARE = 0.5, 0.8  # of the preferred lifetime (section 21.4)
_PREFERENCE_MAX = 255  # of a server that is taken at once (section 18.2.1)
_OFFERS_MAX = 16  # that are compared
_KEPT = (packet.DNS_SERVERS, packet.DOMAINS, packet.NTP_SERVERS)  # options of a lease
_REQUESTED = (*_KEPT, packet.SOLICIT_MOST)
# Status codes of a server that does not give an address, or does not know it.
_REFUSALS = (packet.NO_ADDRESS, packet.NOT_ON_LINK)


@dataclass(frozen=True, slots=True)
class Profile:
    """The client's identity, which each of its messages has."""

    identifier: bytes  # DUID
    number: int  # IAID


class Machine(machine.Machine):
    """One client of DHCPv6."""

    protocol = "DHCPv6"

    def __init__(
        self,
        profile: Profile,
        pace: Pace,
        random: Callable[[], float],
        lease: Lease | None = None,
    ) -> None:
        """As of all machines; waits are those of RFC 8415 if `pace` has no shorter ones."""
        super().__init__(pace, random, lease)
        self.profile = profile
        self._offers: list[Message] = []
        self._server = b""  # DUID of the one that is asked
        self._server_text = "of no name"
        self._asked: IPv6Address | None = None  # the address that it is asked for
        self._solicit_most = pace.most

    def hear(self, data: bytes, sender: str, now: float) -> list[Action]:
        """Take bytes into account that have come from an address. Raises MalformedError."""
        return self.receive(packet.decode(data, IPv6Address(sender)), now)

    def receive(self, message: Message, now: float) -> list[Action]:
        """Take a message of a server into account."""
        if not self._is_for_us(message):
            return []
        self._heed_solicit_most(message)
        if message.kind == packet.ADVERTISE and self.state == SELECTING:
            return self._offered(message, now)
        if message.kind != packet.REPLY:
            return []
        match self.state:
            case machine.SELECTING:
                return self._committed(message, now)
            case machine.REQUESTING:
                return self._answered(message, now)
            case machine.REBOOTING:
                return self._confirmed(message, now)
            case machine.RENEWING | machine.REBINDING:
                return self._renewed(message, now)
        return []

    # --- answers ---

    def _offered(self, message: Message, now: float) -> list[Action]:
        """Collect an offer; take it if it is the best possible, or if all others are late."""
        if not self._usable(message):
            return []
        if len(self._offers) < _OFFERS_MAX:
            self._offers.append(message)
        if message.preference == _PREFERENCE_MAX or self._tries > 1:
            return self._take_best(now)
        return []

    def _usable(self, message: Message) -> Given | None:
        """Return the address that a message gives, None if that is of no use."""
        association = message.association(self.profile.number)
        status = association.status if association else message.status
        by = f"DHCPv6 server {message.source}"
        if message.status.code != packet.SUCCESS:
            status = message.status
        if status.code != packet.SUCCESS or association is None:
            self.problem = f"{by} gives no address: {status}"
            return None
        given = _first_usable(association, self._only)
        if given is None:
            self.problem = f"{by} gives no address"
        elif self._only not in (None, given.address):
            self.problem = f"{by} gives {given.address} instead of {self._only}"
            return None
        return given

    @property
    def _only(self) -> IPv6Address | None:
        """The address beside which no other one helps: it is used, or was so before."""
        address = self.lease.address if self.lease else self._wanted
        assert not isinstance(address, IPv4Address)
        return address

    def _committed(self, message: Message, now: float) -> list[Action]:
        """Take a Reply to a Solicit, which needs Rapid Commit (section 18.2.10)."""
        if packet.RAPID_COMMIT not in message.options or self._only:
            return []
        given = self._usable(message)
        return self._bind_to(message, given) if given else []

    def _answered(self, message: Message, now: float) -> list[Action]:
        """Take a Reply to a Request."""
        if message.server != self._server:
            return []
        if message.status.code == packet.FAILED:
            return []  # it may work later: the Request is repeated
        given = self._usable(message)
        if given is None:
            if self.lease:
                return self._lose(self.problem, now)
            self._forget_server()
            return self._take_best(now) if self._offers else self._pause(now, self.problem)
        return self._bind_to(message, given)

    def _confirmed(self, message: Message, now: float) -> list[Action]:
        """Take a Reply to a Confirm."""
        assert self.lease is not None
        if message.status.code == packet.NOT_ON_LINK:
            return self._lose(f"DHCPv6 server {message.source} refuses: {message.status}", now)
        if message.status.code != packet.SUCCESS:
            return []
        kept = machine.Bound(self.lease, is_new=False)
        return [kept, *self._back_to_bound(now)]

    def _renewed(self, message: Message, now: float) -> list[Action]:
        """Take a Reply to a Renew or Rebind."""
        assert self.lease is not None
        is_other = message.server != self.lease.options.get(packet.SERVER_ID)
        if self.state == RENEWING and is_other:
            return []
        association = message.association(self.profile.number)
        if association is None or message.status.code != packet.SUCCESS:
            return []
        if association.status.code == packet.NO_BINDING:  # section 18.2.10.1: ask for it anew
            self._ask(message, self._only)
            return self._first_request(REQUESTING, now)
        if association.status.code != packet.SUCCESS:
            refused = association.status.code in _REFUSALS
            reason = f"DHCPv6 server {message.source} refuses: {association.status}"
            return self._lose(reason, now) if refused else []
        return self._prolonged(message, association, now)

    def _prolonged(self, message: Message, association: Association, now: float) -> list[Action]:
        """Take what a server says of the address that is used."""
        assert self.lease is not None
        ours = self.lease.address
        found = [one for one in association.addresses if one.address == ours]
        if not found:
            return []  # as if there were no answer
        if not found[0].valid:
            return self._lose(f"DHCPv6 server {message.source} takes {ours} back", now)
        if _has_wrong_times(association, found[0]):
            return []
        return self._bind_to(message, found[0])

    def _is_for_us(self, message: Message) -> bool:
        is_answer = message.kind in (packet.ADVERTISE, packet.REPLY) and bool(message.server)
        ours = message.client == self.profile.identifier
        return is_answer and ours and message.xid == self._xid

    def _heed_solicit_most(self, message: Message) -> None:
        """Solicit as rarely as the server says (section 21.24)."""
        value = message.options.get(packet.SOLICIT_MOST, b"")
        if len(value) == 4 and int.from_bytes(value, "big") in _SOLICIT_MOST:
            self._solicit_most = float(int.from_bytes(value, "big"))

    def _bind_to(self, message: Message, given: Given) -> list[Action]:
        association = message.association(self.profile.number)
        assert association is not None
        return self._bind(self._lease_of(message, association, given))

    def _lease_of(self, message: Message, association: Association, given: Given) -> Lease:
        """Return the lease that a Reply gives from the moment on at which it was asked for."""
        known = self.lease.options if self.lease else {}  # a renewal may say less
        told = {code: message.options[code] for code in _KEPT if code in message.options}
        options = {**known, **told, packet.SERVER_ID: message.server}
        if given.valid == packet.FOREVER:
            return Lease(given.address, message.source, inf, inf, inf, options)
        base = min(given.preferred or given.valid, given.valid)
        rebind = min(association.rebind or base * _REBIND_SHARE, given.valid)
        renew = min(association.renew or base * _RENEW_SHARE, rebind)
        renew, rebind, expire = (self._sent + part for part in (renew, rebind, given.valid))
        return Lease(given.address, message.source, renew, rebind, expire, options)

    # --- looking for an address ---

    def _discover(self, now: float, *, again: bool = False) -> list[Action]:
        if again and self._offers:
            return self._take_best(now)
        if not again:
            self._begin(now)
            self._wait, self._tries, self._sent = 0.0, 0, now
        self.state, self._offers = SELECTING, []
        self._tries += 1
        self._schedule(now, self._solicit_wait())
        options = {packet.REQUESTED: packet.codes(_REQUESTED)}
        if not self._only:  # a server would commit another address, too
            options[packet.RAPID_COMMIT] = b""
        return [self._message(packet.SOLICIT, now, options=options, address=self._only)]

    def _look_elsewhere(self, now: float) -> list[Action]:
        self._forget_server()
        return self._discover(now, again=bool(self._offers))

    def _forget_server(self) -> None:
        """Forget the offer of the server that was asked."""
        self._offers = [one for one in self._offers if one.server != self._server]

    def _take_best(self, now: float) -> list[Action]:
        """Ask the server of the best offer for it: the highest preference, and of those the first.

        Section 18.2.9.
        """
        best = max(self._offers, key=lambda one: one.preference)
        association = best.association(self.profile.number)
        given = _first_usable(association, self._only) if association else None
        assert given is not None
        self._ask(best, given.address)
        return self._first_request(REQUESTING, now)

    def _ask(self, message: Message, address: IPv6Address | None) -> None:
        """Have the next Request go to the server of a message."""
        self._server, self._server_text, self._asked = message.server, str(message.source), address

    # --- messages ---

    def _request(self, now: float) -> Send:
        if self.state == REBOOTING:
            return self._message(packet.CONFIRM, now, address=self._only)
        if self._tries == 1:
            self._begin(now)
        options = {packet.REQUESTED: packet.codes(_REQUESTED)}
        return self._message(
            packet.REQUEST, now, server=self._server, options=options, address=self._asked
        )

    def _renewal(self, now: float) -> Send:
        assert self.lease is not None
        kind, server = packet.REBIND, b""
        if self.state == RENEWING:
            kind, server = packet.RENEW, self.lease.options.get(packet.SERVER_ID, b"")
        options = {packet.REQUESTED: packet.codes(_REQUESTED)}
        return self._message(kind, now, server=server, options=options, address=self._only)

    def _give_back(self, lease: Lease) -> Send:
        return self._last_word(packet.RELEASE, lease)

    def _declined(self, lease: Lease) -> Send:
        return self._last_word(packet.DECLINE, lease)

    def _last_word(self, kind: int, lease: Lease) -> Send:
        self._xid = self._new_xid()
        server, address = lease.options.get(packet.SERVER_ID, b""), lease.address
        assert isinstance(address, IPv6Address)
        return self._message(kind, self._begun, server=server, address=address)

    def _message(
        self,
        kind: int,
        now: float,
        *,
        server: bytes = b"",
        options: Mapping[int, bytes] | None = None,
        address: IPv6Address | None = None,
    ) -> Send:
        given = (Given(address),) if address else ()
        told = {packet.ELAPSED: packet.elapsed(now - self._begun), **(options or {})}
        association = Association(self.profile.number, addresses=given)
        client = self.profile.identifier
        return Send(Message(kind, self._xid, client, server, (association,), told))

    # --- times ---

    def _next_wait(self) -> float:
        return self._longer(min(self._pace.first, _FIRST), self._pace.most)

    def _solicit_wait(self) -> float:
        """Return the wait of a Solicit; the first is longer than a second (section 18.2.1)."""
        first = min(self._pace.first, _FIRST)
        wait = self._longer(first, self._solicit_most)
        self._wait = 2 * first - wait if wait < first else wait
        return self._wait

    def _renewal_wait(self, now: float, until: float) -> float:
        return self._longer(_RENEWAL_FIRST, _RENEWAL_MOST)

    def _longer(self, first: float, most: float) -> float:
        """Return the next wait for an answer (section 15), and note it."""
        spread = (2 * self._random() - 1) * _SPREAD
        wait = (2 + spread) * self._wait if self._wait else (1 + spread) * first
        self._wait = wait if wait <= most else (1 + spread) * most
        return self._wait

    def _new_xid(self) -> int:
        return int(self._random() * 2**24)

    @property
    def _chosen(self) -> str:
        return self._server_text


def _first_usable(association: Association, wanted: IPv6Address | None) -> Given | None:
    """Return the wanted address, or the first, with a lifetime; None if there is none."""
    usable = [
        one for one in association.addresses if one.valid and not _has_wrong_times(association, one)
    ]
    return next((one for one in usable if one.address == wanted), usable[0] if usable else None)


def _has_wrong_times(association: Association, given: Given) -> bool:
    """Tell whether a client must ignore an address (sections 21.4 and 21.6)."""
    first, second = association.renew, association.rebind
    return (0 < second < first) or given.preferred > given.valid
