"""The liveness of a recorded container: ALIVE, GONE or UNKNOWN.

Every caller that takes over or removes an object of another container asks this module, and treats
UNKNOWN as ALIVE: nothing is taken over, nothing is removed. docs/architecture.md has the table.
"""

from __future__ import annotations

import os
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from cni_common.kernel.netns import FIRST_PID_NAMESPACE, identity, pid_namespace
from cni_common.node import namespaces
from cni_common.node.masquerade import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.wire import Json

GRACE_SECONDS = 60  # GC leaves younger attachments alone: their ADD may not have returned yet


class State(Enum):
    """The liveness of a record's container."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"

    @property
    def alive(self) -> bool | None:
        """The same for JSON: None is UNKNOWN."""
        return {State.ALIVE: True, State.GONE: False}.get(self)


class Liveness:
    """A snapshot of the node; each part is read once, at its first use.

    Read the objects in question before: an object that an ADD makes meanwhile must not be checked
    against an older snapshot.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def state_of(self, facts: Json) -> State:
        """Return the state of the container of a record with these `facts`. Raises OSError."""
        return self.assess(facts)[0]

    def assess(self, facts: Json) -> tuple[State, str]:
        """Return the state, and the sign of life for ALIVE, the reason for UNKNOWN. Raises OSError.

        A container is ALIVE if the recorded namespace is at its path, if a thread of any process is
        in it, or if the host's end of a recorded veth pair, by name and MAC, leads to a namespace.
        The container is GONE if none of these was found, although it would have been visible.
        """
        path, wanted = str(facts.get("netns", "")), str(facts.get("netns_id") or "")
        own_end = self._state_by(host_ends(facts))
        if own_end is State.ALIVE:
            return State.ALIVE, "the host's end of its veth pair leads there"
        if not wanted:
            return own_end, "its record names no network namespace"
        here = identity(path)
        # The namespace may outlive its path: that of a process, or of another mount namespace.
        if here == wanted or wanted in self.namespaces:
            return State.ALIVE, f"it is at {path if here == wanted else self.namespaces[wanted]}"
        if self._state_by(self._ends_by_namespace.get(wanted, ())) is State.ALIVE:
            return State.ALIVE, "a veth pair of another of its records leads there"
        if own_end is State.GONE:
            return State.GONE, ""
        if is_hidden(facts):
            return State.UNKNOWN, "its processes may be in a PID namespace that is hidden from here"
        if not here and _is_something_else(path):
            return State.UNKNOWN, f"'{path}' is there, but is no network namespace here"
        return State.GONE, ""

    def state_of_owner(self, text: str, address: Address, ours: str) -> tuple[State, str]:
        """Return what `assess` does for the owner that an nftables element's comment names.

        Without a record of that owner its `address` decides: GONE when no namespace has it but the
        one of the identity `ours`.
        """
        record = self.record_of_owner(text)
        if record is not None:
            return self.assess(record.facts)
        if address in self.addresses_beside(ours):
            return State.ALIVE, f"a namespace has {address}"
        return State.GONE, ""

    def record_of_owner(self, text: str) -> Record | None:
        """Return the record of the owner that an nftables element's comment names."""
        plugin = text.partition(" ")[0]
        records = self._host.records.of_plugin(plugin)
        return next((record for record in records if str(owner_of(record)) == text), None)

    @cached_property
    def namespaces(self) -> dict[str, str]:
        """One path to every visible namespace, by its identity."""
        return namespaces.reachable()

    @cached_property
    def addresses(self) -> frozenset[Address]:
        """Every address in every namespace that counts for `node.namespaces`."""
        return self.addresses_beside("")

    def addresses_beside(self, ours: str) -> frozenset[Address]:
        """Return every address in those namespaces, except the one `ours`. Slow."""
        others = (path for one, path in self.namespaces.items() if one != ours)
        return namespaces.addresses_in(others, self._host.log)

    @cached_property
    def _ends_by_namespace(self) -> dict[str, list[tuple[str, str]]]:
        """The host's ends that all records name, by the identities of their namespaces.

        The record of a lease or of a host port names none, but that of the interface does.
        """
        found: dict[str, list[tuple[str, str]]] = {}
        for record, _ in self._host.records.listing():
            known = found.setdefault(str(record.facts.get("netns_id") or ""), [])
            known.extend(host_ends(record.facts))
        return found

    def _state_by(
        self, ends: Iterator[tuple[str, str]] | list[tuple[str, str]] | tuple[()]
    ) -> State:
        """Return the state by the host's `ends` (name, MAC) of veth pairs into the namespace."""
        state = State.UNKNOWN
        netlink = self._host.netns.netlink
        for name, mac in ends:
            link = netlink.link(name)
            # A pair with both ends on the host tells nothing about any container.
            if link is None or link.mac != mac or link.peer_nsid is None:
                continue
            if netlink.has_peer(link):
                return State.ALIVE
            # The kernel removes such a pair by itself, but not at once.
            state = State.GONE
        return state


def state_of(host: Host, facts: Json) -> State:
    """Return the state of one container by a snapshot of its own. Raises OSError."""
    return Liveness(host).state_of(facts)


def is_hidden(facts: Json) -> bool:
    """Tell whether /proc may hide processes that the writer of the record could see."""
    own = pid_namespace()
    return own != FIRST_PID_NAMESPACE and facts.get("pid_ns") != own


def holder_of(host: Host, text: str, address: Address, *, ours: str) -> str:
    """Describe the owner `text` of an nftables element, "" if it is GONE.

    `address` is the address of the element's container, `ours` the path of the namespace that wants
    the element. Raises OSError.
    """
    state, reason = Liveness(host).state_of_owner(text, address, host.identity_of(ours))
    return "" if state is State.GONE else describe(text, state, reason)


def describe(text: str, state: State, reason: str) -> str:
    """Return, for a message, the owner `text` of an object that cannot be taken over."""
    known = f"'{text}' (plugin, network, container, interface)"
    if state is State.ALIVE:
        return f"{known}, which is alive"
    return f"{known}, of which it cannot be told whether it is alive ({reason})"


def host_ends(facts: Json) -> Iterator[tuple[str, str]]:
    """Yield name and MAC of each end on the host that a part of a record names."""
    for part in facts.values():
        if isinstance(part, dict) and part.get("host_end") and part.get("host_end_mac"):
            yield str(part["host_end"]), str(part["host_end_mac"])


def _is_something_else(path: str) -> bool:
    """Tell whether `path` may hold something other than a namespace.

    So it may if the runtime's mount on it is not visible here.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError, ValueError):
        return False
    except OSError:
        return True  # it cannot be told
    return True
