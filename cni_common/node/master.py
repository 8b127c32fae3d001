"""The master: the interface below a macvlan, ipvlan or vlan, on the host or in the container."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.route import RT_TABLE_MAIN, RTN_UNICAST
from cni_common.node.lifecycle import Part
from cni_common.spec.errors import CNIError, Code, drifted
from cni_common.spec.names import check_ifname
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_common.kernel.link import Link, VethEnd
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.wire import Json

_DOWN = ("DOWN", "LOWERLAYERDOWN", "NOTPRESENT")  # operational states without a carrier

# Keys of every plugin with a master.
PROPERTIES: Json = {
    "mtu": key_schema("integer", "MTU in bytes, at most the master's; 0: the master's."),
    "linkInContainer": key_schema(
        "boolean", "Look for the master in the container instead of on the host."
    ),
}


def name_in(config: Json) -> str:
    """Return the key `master`, "" if it is absent. Raises CNIError 7 for no interface's name."""
    name: str = config.get("master", "")
    if name:
        check_ifname(name, '"master"', Code.INVALID_CONFIG)
    return name


def find(netns: NetNS, name: str) -> Link:
    """Return the master in `netns`, without a name that of its default route.

    Raises CNIError 50 if there is none.
    """
    if name:
        link = netns.netlink.link(name)
        if link is None:
            raise CNIError(
                Code.PLUGIN_NOT_AVAILABLE,
                f"there is no interface '{name}' in '{netns.path}': correct \"master\", or"
                " bring the interface back",
            )
        return link
    index = _default_interface(netns)
    link = netns.netlink.link_at(index) if index else None
    if link is None:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"'{netns.path}' has no default route that would name the master: set \"master\"",
        )
    return link


def refuse_mtu(mtu: int, link: Link) -> None:
    """Raise CNIError 7 if `mtu`, in bytes, is above that of the master `link`."""
    if mtu > link.mtu:
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"mtu" is {mtu}, and master \'{link.name}\' has {link.mtu} bytes: lower "mtu"',
        )


def refuse_down(link: Link) -> None:
    """Raise CNIError 51 if the master passes no packets."""
    if not link.up or link.operstate in _DOWN:
        raise CNIError(
            Code.LIMITED_CONNECTIVITY,
            f"master '{link.name}' is {'without a carrier' if link.up else 'down'}: no container on"
            " it reaches anything",
        )


def add_device(
    below: NetNS, link: Link, end: VethEnd, kind: str, *data: bytes, called: str, obstacles: str
) -> None:
    """Create `end` on the master `link`, which is in `below`; `data` are attributes of its kind.

    The message says that the kernel refuses the interface, as it is `called`, and which `obstacles`
    the master may have. Raises CNIError, NetlinkError.
    """
    try:
        below.netlink.add_device(end, kind, *data, parent=link.index)
    except NetlinkError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise
        raise CNIError(
            Code.INTERNAL,
            f"the kernel refuses {called} on master '{link.name}' ({error.strerror}): {obstacles}",
        ) from None


def check(below: NetNS, container: NetNS, name: str, ours: Link) -> Iterator[CNIError]:
    """Yield an error if the container's interface `ours` is not on the master `name` in `below`."""
    link = below.netlink.link(name)
    nsid = None if below is container else container.netlink.nsid(below.fd)
    places = []
    if link:
        places = [(link.index, nsid)]
        if link.kind == ours.kind and link.peer_nsid is None:
            places.append((link.peer, nsid))  # the kernel uses the master of a like link
    if (ours.peer, ours.peer_nsid) not in places:
        yield drifted(f"'{ours.name}' is not on master '{name}'")


@dataclass(frozen=True, slots=True)
class MasterFacts:
    """The interface below, which others use, too."""

    PART = "master"
    name: str = ""
    index: int = 0  # in its namespace
    in_container: bool = False  # its namespace is the container's, not the host's
    use: str = ""  # what the attachment has of it: "mode l2", "VLAN 5"


class Master(Part):
    """The master; it is another's, and stays."""

    facts = MasterFacts

    def present(self, host: Host, record: Record, facts: MasterFacts) -> Iterator[Owned]:
        """Yield the master."""
        from cni_common.node.owned import Owned, recorded_netns

        what = f"'{facts.name}', up, {facts.use}"
        if not facts.in_container:
            yield Owned(self.name, what, _is_up(host.netns, facts), shared=True)
            return
        with recorded_netns(record) as container:
            there = container is not None and _is_up(container, facts)
        yield Owned(self.name, what, there, shared=True)


MASTER = Master()


def user_of(host: Host, ours: Record, is_wanted: Callable[[str], bool]) -> str:
    """Describe another attachment, not GONE, on the master of the record `ours`; "" if none has it.

    `is_wanted` is told its use. Of attachments with our own use, one that is ALIVE is enough: all
    on one master agree. Raises OSError.
    """
    from cni_common.node.liveness import Liveness, State, describe
    from cni_common.node.masquerade import owner_of

    place, own = _place(ours), ours.get(MasterFacts)
    liveness = Liveness(host)
    for record in host.records.of_plugin(ours.plugin):
        facts = record.get(MasterFacts)
        if facts is None or record.path == ours.path or _place(record) != place:
            continue
        state, reason = liveness.assess(record.facts)
        if is_wanted(facts.use) and state is not State.GONE:
            return describe(str(owner_of(record)), state, reason)
        if own and facts.use == own.use and state is State.ALIVE:
            return ""
    return ""


def _place(record: Record) -> tuple[object, int]:
    """Return where the master of a record is: namespace, if it is the container's, and index."""
    facts = record.get(MasterFacts) or MasterFacts()
    return facts.in_container and record.facts.get("netns_id"), facts.index


def _is_up(netns: NetNS, facts: MasterFacts) -> bool:
    link = netns.netlink.link_at(facts.index)
    return link is not None and link.up


def _default_interface(netns: NetNS) -> int:
    """Return the index of the interface with the best default route, IPv4 first; 0: none."""
    for version in (4, 6):
        found = [
            (route.route.priority or 0, route.interface)
            for route in netns.netlink.all_routes(version)
            if not route.route.dst.prefixlen
            and route.type == RTN_UNICAST
            and route.interface
            and route.route.table == RT_TABLE_MAIN
        ]
        if found:
            return min(found, key=lambda one: one[0])[1]
    return 0
