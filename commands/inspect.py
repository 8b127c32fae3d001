"""`pycni inspect`: everything of one container on one page, and what happens on its sockets."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NetNS, identity
from cni_common.node.owned import recorded_netns
from cni_common.spec import wire
from cni_common.spec.errors import CNIError
from commands import DONE, FOUND, inspect_page, kernel, lookup, view
from commands.kernel import counters, links, owners, sockets, tracked
from commands.node import Node
from commands.verb import RefusedError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.node.host import Host
    from cni_common.node.owned import Usage
    from cni_common.spec.request import Attachment
    from cni_common.spec.wire import JsonObject
    from commands.kernel.links import Address, Link, Neighbour, Queue, Route
    from commands.kernel.sockets import Socket
    from commands.kernel.tracked import Tracked
    from commands.node import Known


_OWN = "/proc/self/ns/net"


@dataclass(slots=True)
class Attached:
    """One interface on one network, by its records."""

    network: str
    ifname: str
    plugins: list[str]  # that have a record, by name
    dns: JsonObject
    devices: list[str]  # interfaces of the host that are its alone
    usage: list[Usage]
    missing: list[str]


@dataclass(slots=True)
class Inside:
    """The kernel's objects in the container's namespace."""

    links: list[Link] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    neighbours: list[Neighbour] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Page:
    """All that is known of a container at one moment."""

    containerid: str  # "" for a namespace that no record names
    pod: str
    netns: str
    alive: bool | None
    at: float  # seconds, monotonic
    attachments: list[Attached] = field(default_factory=list)
    inside: Inside = field(default_factory=Inside)
    host_links: list[Link] = field(default_factory=list)  # devices, and what they are ports of
    host_queues: list[Queue] = field(default_factory=list)
    tracked: Tracked | None = None
    unread: list[str] = field(default_factory=list)  # what could not be read, and why

    def json(self) -> JsonObject:
        """Return what programs get."""
        found: JsonObject = view.plain(self)
        del found["at"]
        return found


def run(options: Namespace, host: Host) -> int:
    """Print the page of a container, once or again and again; FOUND when it lacks something.

    Raises RefusedError if nothing is known of it.
    """
    page = _page(options, host)
    inspect_page.write(options, page, None)
    shown = 1
    try:
        while options.watch and shown != options.count:
            time.sleep(options.watch)
            before, page = page, _page(options, host)
            inspect_page.write(options, page, before)
            shown += 1
    except KeyboardInterrupt:  # the way to end it
        pass
    return FOUND if any(one.missing for one in page.attachments) else DONE


def _page(options: Namespace, host: Host) -> Page:
    node, word = Node(host, options.data_dir), options.container
    found = lookup.choose(node, options)
    if found:
        return _of_container(node, found)
    path = f"/proc/{word}/ns/net" if word.isdecimal() else word
    if options.by not in ("", "pid", "netns") or path[:1] != "/" or not identity(path):
        raise RefusedError(f"nothing is known of container '{word}'")
    if identity(path) == identity(_OWN):
        raise RefusedError(f"'{path}' is the network namespace of the host, not of a container")
    page = Page("", "", path, alive=True, at=time.monotonic())
    netns = NetNS(path)
    try:
        _look_inside(page, netns)
    finally:
        netns.close()
    return page


def _of_container(node: Node, containerid: str) -> Page:
    owned = {
        owner: records
        for owner, records in node.attachments.items()
        if owner[1].containerid == containerid
    }
    records = [one for found in owned.values() for one in found]
    states = [node.alive(one.facts) for one in records]
    alive = True if True in states else next((s for s in states if s is not None), None)
    pod = next((one.pod for one in records if one.pod), "")
    netns = next((str(one.facts["netns"]) for one in records if one.facts.get("netns")), "")
    page = Page(containerid, pod, netns, alive, time.monotonic())
    page.attachments = [_attached(page, node, owner, owned[owner]) for owner in sorted(owned)]
    for one in records:
        with recorded_netns(one.record) as container:
            if container is not None:
                page.netns = container.path
                _look_inside(page, container)
                break
    _look_outside(page, node, records)
    return page


def _attached(
    page: Page, node: Node, owner: tuple[str, Attachment], records: list[Known]
) -> Attached:
    network, attachment = owner
    noted = [pair for one in records for pair in node.noted(one)]
    devices = dict.fromkeys(name for part, facts in noted for name in part.devices(facts) if name)
    usage: list[Usage] = []
    for one in records:
        for part, facts in node.noted(one):
            usage += kernel.read_or(
                [],
                lambda part=part, facts=facts, one=one: [  # type: ignore[misc]
                    *part.usage(node.host, one.record, facts)
                ],
                _complaint(page, part.name),
            )
    missing = [*node.lost_leases(records)]
    missing += [f"{one.kind} {one.what}" for one in node.owned(records) if not one.present]
    plugins = sorted({one.plugin for one in records})
    return Attached(
        network, attachment.ifname, plugins, _dns(records), list(devices), usage, missing
    )


def _dns(records: Iterable[Known]) -> JsonObject:
    """Return the DNS settings of the result, which a later plugin was given, or of the file."""
    found: JsonObject = {}
    for one in records:
        try:
            config = wire.decode(str(one.facts.get("stdin") or "{}").encode())
        except CNIError:
            continue
        for place in (config, config.get("prevResult")):
            dns = place.get("dns") if isinstance(place, dict) else None
            if isinstance(dns, dict) and any(dns.values()):
                found = dns
    return found


def _look_inside(page: Page, netns: NetNS) -> None:
    def read() -> Inside:
        indexes: list[int] = []

        def all_links() -> list[Link]:
            found = links.links()
            indexes.extend(one.index for one in found)
            return found

        return Inside(
            kernel.read_or([], all_links, _complaint(page, "links")),
            kernel.read_or([], links.addresses, _complaint(page, "addresses")),
            kernel.read_or([], links.routes, _complaint(page, "routes")),
            kernel.read_or([], links.neighbours, _complaint(page, "neighbours")),
            kernel.read_or([], lambda: links.queues(indexes), _complaint(page, "queues")),
            kernel.read_or([], sockets.sockets, _complaint(page, "sockets")),
        )

    page.inside = netns.run(read)
    of = owners.of({one.inode for one in page.inside.sockets if one.inode}, netns.fd)
    page.inside.sockets = [
        replace(one, pid=pid, process=name)
        for one in page.inside.sockets
        for pid, name in [of.get(one.inode, (0, ""))]
    ]
    page.inside.errors = kernel.read_or(
        {}, lambda: counters.errors(netns), _complaint(page, "counters")
    )


def _look_outside(page: Page, node: Node, records: list[Known]) -> None:
    """Read the host's ends, and the connections that the host tracks."""
    noted = [pair for one in records for pair in node.noted(one)]
    texts = [text for part, facts in noted for text in part.addresses(facts)]
    addresses = {str(ip_interface(text).ip) for text in texts}
    names = {name for one in page.attachments for name in one.devices}

    def read() -> None:
        none: list[Link] = []
        found = kernel.read_or(none, links.links, _complaint(page, "links of the host"))
        page.host_links = list(_with_masters(found, names))
        indexes = [one.index for one in found if one.name in names]
        page.host_queues = kernel.read_or(
            [], lambda: links.queues(indexes), _complaint(page, "queues of the host")
        )
        if addresses:
            complain = _complaint(page, "tracked connections")
            page.tracked = kernel.read_or(None, lambda: tracked.connections(addresses), complain)

    node.host.netns.run(read)


def _with_masters(found: list[Link], names: set[str]) -> Iterator[links.Link]:
    masters = {one.master for one in found if one.name in names}
    for one in found:
        if one.name in names or one.index in masters:
            yield one


def _complaint(page: Page, what: str) -> Callable[[str], object]:
    return lambda reason: page.unread.append(f"{what}: {reason}")
