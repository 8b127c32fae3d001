"""The node's container network, as the pictures show it: uplinks, groups and what is in them.

A group is what joins interfaces of containers: a bridge or VRF, an interface of the host that
others are based on, or the host's own routes.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_common.node import veth
from cni_common.node.owned import recorded_netns
from commands import kernel, view
from commands.kernel import links

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from cni_common.kernel.link import Link as OwnLink
    from cni_common.kernel.netns import NetNS
    from cni_common.node.owned import Usage
    from cni_common.spec.request import Attachment
    from cni_common.spec.wire import JsonObject
    from commands.kernel.links import Address, Link, Route
    from commands.node import Known, Node

    Owner = tuple[str, Attachment]

SHORT = 12  # characters of an id in a picture; explain and inspect take these, too
ROUTED, ALONE, GONE = "routed by the host", "without a way to the host", "gone"


@dataclass(slots=True)
class Card:
    """An interface of a container."""

    containerid: str
    pod: str
    network: str
    ifname: str
    kind: str = ""  # of the interface, as the kernel has it
    addresses: list[str] = field(default_factory=list)  # with prefix length
    end: str = ""  # the other end of the pair, on the host
    vlans: list[str] = field(default_factory=list)  # of the port
    uses: list[str] = field(default_factory=list)  # NAT, published ports

    @property
    def title(self) -> str:
        """The pod, or the beginning of the id."""
        return self.pod or self.containerid[:SHORT]


@dataclass(slots=True)
class Group:
    """An object that joins interfaces of containers."""

    name: str
    kind: str  # bridge, ... of the kernel; "" for those that are no interface
    details: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)  # those that are no container's
    cards: list[Card] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}".strip()

    @property
    def has_way(self) -> bool:
        """Whether a packet of these interfaces can reach the host, or leave the node."""
        return bool(self.kind) or self.name not in (ALONE, GONE)


@dataclass(slots=True)
class Uplink:
    """An interface by which the node reaches others."""

    name: str
    details: list[str]


@dataclass(slots=True)
class Picture:
    """The whole picture."""

    node: str
    uplinks: list[Uplink] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # what could not be read, and why

    @property
    def containers(self) -> int:
        """The number of containers."""
        return len({card.containerid for group in self.groups for card in group.cards})

    def json(self) -> JsonObject:
        """Return what programs get."""
        found: JsonObject = view.plain(self)
        return found


class _Host:
    """The interfaces of the host."""

    def __init__(self, node: Node, picture: Picture) -> None:
        self.netns = node.host.netns
        self.links: dict[int, Link] = {}
        self.addresses: list[Address] = []
        self.routes: list[Route] = []
        self.vlans: dict[int, list[str]] = {}

        def read() -> None:
            def complain(reason: str) -> None:
                picture.unread.append(f"the host: {reason}")

            none: list[Link] = []
            self.links = {one.index: one for one in kernel.read_or(none, links.links, complain)}
            self.addresses = kernel.read_or([], links.addresses, complain)
            self.routes = kernel.read_or([], links.routes, complain)
            self.vlans = kernel.read_or({}, links.vlans, complain)

        self.netns.run(read)

    def details(self, link: Link) -> list[str]:
        """Return addresses and MTU of an interface, the VLAN it is, and the default routes."""
        found = [
            one.address
            for one in self.addresses
            if one.index == link.index and not one.address.startswith("fe80:")
        ]
        found += [f"mtu {link.mtu}"]
        found += [] if link.up else ["down"]
        below = self.links.get(link.peer)
        if link.vlan and below:
            found.append(f"VLAN {link.vlan} of {below.name}")
        return [
            *found,
            *(f"default via {o.via or 'all'}" for o in self.routes if o.index == link.index
              and o.destination == "default" and o.table == "main"),
        ]  # fmt: skip


def shown(value: Any) -> Any:
    """Return a picture, or what is in it, without what could steer a terminal or end a line.

    A pod's name is what the runtime says, and the kernel takes most characters for an interface's.
    """
    if isinstance(value, str):
        return view.printable(value)
    if isinstance(value, list):
        return [shown(one) for one in value]
    names = getattr(value, "__match_args__", ())
    return replace(value, **{name: shown(getattr(value, name)) for name in names})


def look(node: Node) -> Picture:
    """Return the picture of the node at this moment."""
    picture = Picture(socket.gethostname())
    host = _Host(node, picture)
    groups: dict[str, Group] = {}
    taken: set[str] = set()  # interfaces that are containers' alone
    for owner in sorted(node.attachments):
        records = node.attachments[owner]
        if not owner[1].containerid:
            continue
        card = _card(node, owner, records, picture)
        taken |= _devices(node, records)
        name = _place(card, node, records, host)
        taken.add(card.end)
        group = groups.setdefault(name, _group(name, host))
        group.cards.append(card)
        if card.network not in group.networks:
            group.networks.append(card.network)
    _add_bridges(groups, host, taken)
    picture.groups = sorted(groups.values(), key=_rank)
    picture.uplinks = [
        Uplink(one.name, host.details(one)) for one in _uplinks(host, taken, picture.groups)
    ]
    return picture


def _rank(group: Group) -> tuple[int, str]:
    last = (ROUTED, ALONE, GONE)
    return (last.index(group.name) + 1 if group.name in last else 0), group.name


def _card(node: Node, owner: Owner, records: list[Known], picture: Picture) -> Card:
    network, attachment = owner
    card = Card(attachment.containerid, node.pod_of(owner), network, attachment.ifname)
    kinds: dict[str, list[str]] = {}
    for one in records:
        for part, facts in node.noted(one):
            none: list[Usage] = []
            found = kernel.read_or(
                none,
                lambda part=part, facts=facts, one=one: [  # type: ignore[misc]
                    *part.usage(node.host, one.record, facts)
                ],
                picture.unread.append,
            )
            for use in found:
                kinds.setdefault(use.kind, []).append(use.what)
    card.uses = [f"{kind} {', '.join(what)}" for kind, what in kinds.items()]
    return card


def _devices(node: Node, records: Iterable[Known]) -> set[str]:
    return {
        name
        for one in records
        for part, facts in node.noted(one)
        for name in part.devices(facts)
        if name
    }


def _place(card: Card, node: Node, records: list[Known], host: _Host) -> str:
    """Fill in what the kernel tells about an interface; return the name of its group."""
    for one in records:
        if node.alive(one.facts) is False:
            continue  # else each would be searched for in all of /proc
        with recorded_netns(one.record) as container:
            if container is None:
                continue
            link = container.netlink.link(card.ifname)
            if link is None:
                return ALONE
            found = container.netlink.addresses(link.index)
            card.addresses = [str(cidr) for cidr, _ in found if not cidr.ip.is_link_local]
            card.kind = link.kind
            return _joined(card, link, container, host)
    return GONE


def _joined(card: Card, link: OwnLink, container: NetNS, host: _Host) -> str:
    end = veth.host_end(host.netns, container, link)
    if end:
        card.end = end.name
        card.vlans = host.vlans.get(end.index, [])
        master = host.links.get(end.master)
        return master.name if master else ROUTED
    if link.peer and link.peer_nsid is not None:
        below = host.links.get(link.peer)
        if below and link.peer_nsid == container.netlink.nsid(host.netns.fd):
            return below.name
    return ALONE


def _group(name: str, host: _Host) -> Group:
    link = next((one for one in host.links.values() if one.name == name), None)
    if link is None:
        return Group(name, "")
    return Group(name, "interface" if link.kind == "device" else link.kind, host.details(link))


def _add_bridges(groups: dict[str, Group], host: _Host, taken: set[str]) -> None:
    """Add the ports that are no container's, and bridges that have no others or none."""
    for link in host.links.values():
        if link.kind in links.JOINING:
            groups.setdefault(link.name, _group(link.name, host))
    for port in host.links.values():
        master = host.links.get(port.master)
        if master is None or port.name in taken:
            continue
        group = groups.setdefault(master.name, _group(master.name, host))
        vlans = f", VLAN {' '.join(host.vlans[port.index])}" if host.vlans.get(port.index) else ""
        below = host.links.get(port.peer)
        of = f" (VLAN {port.vlan} of {below.name})" if port.vlan and below else ""
        group.ports.append(f"{port.name}{of}{vlans}")


def _uplinks(host: _Host, taken: set[str], groups: list[Group]) -> Iterator[Link]:
    """Yield the interfaces with an address or a default route that join no containers."""
    joining = {group.name for group in groups}
    addressed = {one.index for one in host.addresses if not one.address.startswith("fe80:")}
    addressed |= {one.index for one in host.routes if one.destination == "default"}
    for link in host.links.values():
        alone = link.name not in joining or link.kind not in links.JOINING
        if link.index in addressed and link.name not in taken and link.name != "lo" and alone:
            yield link
