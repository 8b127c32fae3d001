"""The client's side of DHCP as a state machine: the part that DHCPv4 and DHCPv6 share.

The machine neither sends nor waits: it is told of messages and of the time, and returns actions.
Times are seconds of one clock that goes on while the computer sleeps. The states have the names of
RFC 2131, figure 5; those of RFC 8415 differ in their messages alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from ipaddress import IPv4Address, IPv6Address
    from typing import TypeAlias

    from plugins.dhcp.daemon.v4.packet import Message as Message4
    from plugins.dhcp.daemon.v6.packet import Message as Message6

    Action: TypeAlias = "Send | Bound | Lost | GaveUp"

INIT, SELECTING, REQUESTING, REBOOTING = "init", "selecting", "requesting", "rebooting"
BOUND, RENEWING, REBINDING, STOPPED = "bound", "renewing", "rebinding", "stopped"
_TRIES = 4  # of one message about an address, before the client begins anew
_PAUSE_AFTER_REFUSAL = 1.0  # seconds: a server that refuses all that it offers is not flooded


@dataclass(frozen=True, slots=True)
class Pace:
    """Times to wait for answers, in seconds."""

    first: float = 4.0  # for the first try of a message
    most: float = 62.0  # for later tries, each of which waits twice as long


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that a server has given for some time."""

    address: IPv4Address | IPv6Address
    server: IPv4Address | IPv6Address
    renew: float  # the times of the clock at which these states begin; inf: never
    rebind: float
    expire: float
    options: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message`: to a server, or to all."""

    message: Message4 | Message6
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
    """There is no address, and the client has given up."""

    reason: str


class Machine(ABC):
    """One client. Each method that is told of something returns what is to be done, in order."""

    protocol = "DHCP"  # for people

    def __init__(self, pace: Pace, random: Callable[[], float], lease: Lease | None = None) -> None:
        """`random` returns numbers from 0 to below 1. With a `lease` it begins as BOUND."""
        self.lease = lease
        self.state = BOUND if lease else INIT
        self.deadline = lease.renew if lease else inf  # when `tick` is due
        self.problem = self._silence  # why there is no address
        self.neighbour = ""  # MAC that has brought the lease, if known
        self._pace = pace
        self._random = random
        self._wanted: IPv4Address | IPv6Address | None = None  # after a loss no other one helps
        self._until = inf
        self._wait = 0.0  # the last wait for an answer, 0: none was yet
        self._tries = 0
        self._xid = 0
        self._begun = self._sent = 0.0

    @property
    def holds(self) -> bool:
        """Tell whether there is an address that may be used."""
        return self.lease is not None

    @property
    def _silence(self) -> str:
        return f"no {self.protocol} server has answered"

    def start(self, now: float, seconds: float) -> list[Action]:
        """Begin to look for an address, for so many seconds."""
        self._until = now + seconds
        return self._discover(now)

    def resume(self, now: float, lost: Lease) -> list[Action]:
        """Begin to look for the address of a lease that was lost before."""
        return self._look_for(lost, now)

    def verify(self, now: float) -> list[Action]:
        """Ask whether the address is still right: the link was away."""
        if self.state not in (BOUND, RENEWING, REBINDING):
            return []
        return self._first_request(REBOOTING, now)

    def stop(self) -> list[Action]:
        """End; give the address back."""
        return self._end(self._give_back)

    def decline(self) -> list[Action]:
        """End; another machine of the link uses the address."""
        return self._end(self._declined)

    def conflict(self, now: float) -> list[Action]:
        """Give the address up, as another machine of the link uses it, and ask for it again."""
        assert self.lease is not None
        declined = self._declined(self.lease)
        return [declined, *self._lose("another machine of the link uses it", now)]

    @abstractmethod
    def hear(self, data: bytes, sender: str, now: float) -> list[Action]:
        """Take bytes into account that have come from `sender`. Raises MalformedError."""

    def tick(self, now: float) -> list[Action]:
        """Do what is due at `now`."""
        if now < self.deadline:
            return []
        if self.lease and now >= self.lease.expire:
            return self._lose(f"the lease has expired, {self.problem}", now)
        if not self.lease and now >= self._until:
            self.state, self.deadline = STOPPED, inf
            return [GaveUp(self.problem)]
        if self.state in (INIT, SELECTING):
            return self._discover(now, again=self.state == SELECTING)
        if self.state in (REQUESTING, REBOOTING):
            return self._repeat_request(now)
        return self._keep(now)

    # --- what the two differ in ---

    @abstractmethod
    def _discover(self, now: float, *, again: bool = False) -> list[Action]:
        """Ask all servers for an address; `again`: none has answered, or not all of them."""

    @abstractmethod
    def _request(self, now: float) -> Send:
        """Return the message for what was offered, or about what is held."""

    @abstractmethod
    def _renewal(self, now: float) -> Send:
        """Return the message for more time: RENEWING to the server, REBINDING to all."""

    @abstractmethod
    def _give_back(self, lease: Lease) -> Send:
        """Return the message that gives an address back."""

    def _declined(self, lease: Lease) -> Send:
        """Return the message that tells that another machine of the link uses an address."""
        return self._give_back(lease)

    @abstractmethod
    def _next_wait(self) -> float:
        """Return how long this try of a message waits, and have the next one wait longer."""

    @abstractmethod
    def _renewal_wait(self, now: float, until: float) -> float:
        """Return how long this try of a renewal waits, which ends at `until`."""

    # --- looking for an address ---

    def _first_request(self, state: str, now: float) -> list[Action]:
        """Begin with REQUESTING or REBOOTING."""
        self.state, self._tries, self._wait, self._sent = state, 0, 0.0, now
        if state == REBOOTING:
            self._begin(now)
        return self._repeat_request(now)

    def _repeat_request(self, now: float) -> list[Action]:
        if self._tries == _TRIES:
            if self.lease:  # no server denies that the address is right
                return self._back_to_bound(now)
            self.problem = f"{self.protocol} server {self._chosen} has not answered a REQUEST"
            return self._look_elsewhere(now)
        self._tries += 1
        self._schedule(now, self._next_wait())
        return [self._request(now)]

    @property
    @abstractmethod
    def _chosen(self) -> str:
        """The server whose offer was taken, for people."""

    def _look_elsewhere(self, now: float) -> list[Action]:
        """Go on without the server whose offer was taken."""
        return self._discover(now)

    def _pause(self, now: float, reason: str) -> list[Action]:
        """Begin anew, but not at once: the server has refused what it had offered."""
        self.problem, self.state = reason, INIT
        self._schedule(now, _PAUSE_AFTER_REFUSAL)
        return []

    # --- keeping it ---

    def _keep(self, now: float) -> list[Action]:
        """Ask for more time: the server, and later all servers."""
        lease = self.lease
        assert lease is not None
        state = REBINDING if now >= lease.rebind else RENEWING
        if state != self.state:
            self.state, self._wait, self._sent = state, 0.0, now
            self._begin(now)
        until = lease.expire if state == REBINDING else lease.rebind
        self.deadline = min(now + self._renewal_wait(now, until), until)
        return [self._renewal(now)]

    def _back_to_bound(self, now: float) -> list[Action]:
        assert self.lease is not None
        self.state, self.deadline = BOUND, max(now, self.lease.renew)
        return self.tick(now)

    def _bind(self, lease: Lease) -> list[Action]:
        """Use a lease from now on."""
        is_new, self._wanted, self._until = not self.holds, None, inf
        self.lease, self.state, self.deadline = lease, BOUND, lease.renew
        self.problem = self._silence
        return [Bound(lease, is_new)]

    def _lose(self, reason: str, now: float) -> list[Action]:
        lease = self.lease
        assert lease is not None
        return [Lost(lease, reason), *self._look_for(lease, now)]

    def _look_for(self, lost: Lease, now: float) -> list[Action]:
        self.lease, self._wanted, self._until = None, lost.address, inf
        return self._discover(now)

    def _end(self, last_word: Callable[[Lease], Send]) -> list[Action]:
        lease, self.lease = self.lease, None
        self.state, self.deadline = STOPPED, inf
        return [last_word(lease)] if lease else []

    # --- an exchange of messages ---

    def _begin(self, now: float) -> None:
        """Begin an exchange, whose messages have a number of their own."""
        self._xid, self._begun = self._new_xid(), now

    @abstractmethod
    def _new_xid(self) -> int:
        """Return a number for an exchange."""

    def _schedule(self, now: float, seconds: float) -> None:
        """Have `tick` called after so many seconds, or when something ends before."""
        ends = self.lease.expire if self.lease else self._until
        self.deadline = min(now + seconds, ends)
