"""The kernel objects of an attachment at this moment, in words, for `pycni explain --kernel`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from commands import kernel
from commands.kernel import links, sockets, tracked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.kernel.netns import NetNS

    Reader = Callable[[], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Dump:
    """One thing that the kernel has."""

    kind: str  # link, address, route, queue, listener, connections
    what: str


def of_container(netns: NetNS, ifname: str) -> list[Dump]:
    """Return link, addresses, routes and queues of an interface, and the sockets that listen."""
    readers = {
        "link": lambda: _links([ifname]),
        "address": lambda: _addresses(ifname),
        "route": lambda: _routes(ifname),
        "queue": lambda: _queues([ifname]),
        "listener": _listeners,
    }
    return netns.run(lambda: _read(readers))


def queues(netns: NetNS, names: Iterable[str]) -> list[str]:
    """Return the queues of interfaces, in words. Raises OSError."""
    devices = list(names)
    kernel.prepare()
    return netns.run(lambda: list(_queues(devices)))


def of_host(netns: NetNS, devices: Iterable[str], addresses: Iterable[str]) -> list[Dump]:
    """Return link and queues of `devices`, and how many connections there are of `addresses`."""
    names, hosts = sorted(devices), {ip_address(text.partition("/")[0]) for text in addresses}
    readers = {
        "link": lambda: _links(names),
        "queue": lambda: _queues(names),
        "connections": lambda: _connections(set(map(str, hosts))),
    }
    return netns.run(lambda: _read(readers))


def _read(readers: dict[str, Reader]) -> list[Dump]:
    """Return what each reader finds; one that fails, as without a kernel module, says why."""
    found = []
    for kind, read in readers.items():
        reasons: list[str] = []
        none: list[str] = []
        texts = kernel.read_or(none, lambda read=read: list(read()), reasons.append)  # type: ignore[misc]
        found += [Dump(kind, text) for text in texts]
        found += [Dump(kind, f"cannot be read: {reason}") for reason in reasons]
    return found


def _named(names: Iterable[str]) -> dict[int, links.Link]:
    wanted = set(names)
    return {link.index: link for link in links.links() if link.name in wanted}


def _links(names: list[str]) -> Iterator[str]:
    for one in _named(names).values():
        state = "up" if one.up else "down"
        yield f"{one.name} {one.mac} ({one.kind}) {state}, mtu {one.mtu}, {one.operstate}"


def _addresses(ifname: str) -> Iterator[str]:
    found = _named([ifname])
    yield from (one.address for one in links.addresses() if one.index in found)


def _routes(ifname: str) -> Iterator[str]:
    found = _named([ifname])
    yield from (one.words() for one in links.routes() if one.index in found)


def _queues(names: list[str]) -> Iterator[str]:
    found = _named(names)
    for one in links.queues(found):
        dropped = one.counters["dropped"]
        yield f"{one.kind} {one.handle} of {found[one.index].name}, {dropped} packets dropped"


def _listeners() -> Iterator[str]:
    for one in sockets.sockets():
        if one.is_listener:
            address, _, port = one.local.rpartition(":")
            yield f"{one.protocol} {address.strip('[]')} port {port}"


def _connections(addresses: set[str]) -> Iterator[str]:
    if not addresses:
        return
    found = tracked.connections(addresses)
    if found.counts is None:
        yield f"{found.total} of all containers and the host, too many to look through"
    else:
        yield ", ".join(f"{count} {name}" for name, count in found.counts.items()) or "none"
