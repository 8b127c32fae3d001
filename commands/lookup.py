"""The containers that a word of the command line can mean."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.kernel.netns import identity
from commands.verb import RefusedError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterable, Iterator

    from commands.node import Known, Node

    Finder = Callable[[Node, str], Iterable[str]]

_PORT_MAX = 65535
_NAMED_MAX = 5  # ids that a message quotes


def find(node: Node, word: str, by: str = "") -> dict[str, str]:
    """Return ids of containers, and for each by which of FINDERS it was found; `by`: by that only.

    A complete id is that container's, also where the word could mean another.
    """
    if by in ("", ID) and word in _ids(node):
        return {word: ID}
    found: dict[str, str] = {}
    for name, finder in FINDERS.items():
        if word and by in ("", name):
            for containerid in finder(node, word):
                found.setdefault(containerid, name)
    return found


def choose(node: Node, options: Namespace) -> str:
    """Return the id of the container that `options` ask for, "" if nothing is known of it.

    Raises RefusedError if several could be meant.
    """
    found = find(node, options.container, options.by)
    if len(found) > 1 and ID not in found.values():
        # A pod keeps its name when it gets a new container, and an address may be given anew.
        alive = living(node, found)
        found = {alive[0]: found[alive[0]]} if len(alive) == 1 else found
    if len(found) > 1:
        raise RefusedError(_several(options.container, found))
    return next(iter(found), "")


def _several(word: str, found: dict[str, str]) -> str:
    more = ", …" if len(found) > _NAMED_MAX else ""
    some = list(found.items())[:_NAMED_MAX]
    if set(found.values()) == {ID}:
        ids = ", ".join(containerid for containerid, _ in some)
        return f"'{word}' is the beginning of several ids: {ids}{more}"
    ids = ", ".join(f"{containerid} (by {name})" for containerid, name in some)
    return f"'{word}' can mean several containers: {ids}{more}; give an id, or --by"


def living(node: Node, containerids: Iterable[str]) -> list[str]:
    """Return those of the containers that are known to live."""
    alive = {one.attachment.containerid for one in node.records if node.alive(one.facts)}
    return [one for one in containerids if one in alive]


def _ids(node: Node) -> list[str]:
    known = {one.attachment.containerid for one in node.records}
    return sorted(known | {one.owner.containerid for one in node.tenancies})


def _by_id(node: Node, word: str) -> Iterator[str]:
    yield from (one for one in _ids(node) if one.startswith(word))


def _by_pod(node: Node, word: str) -> Iterator[str]:
    pods = [(one.pod, one.attachment.containerid) for one in node.records]
    pods += [(one.pod, one.owner.containerid) for one in node.tenancies]
    yield from (found for pod, found in pods if word in (pod, pod.partition("/")[2]))


def _by_address(node: Node, word: str) -> Iterator[str]:
    try:
        address = ip_interface(word).ip
    except ValueError:
        return
    yield from (o.owner.containerid for o in node.tenancies if o.held.address == address)
    for known in node.records:
        texts = (text for part, facts in node.noted(known) for text in part.addresses(facts))
        if any(ip_interface(text).ip == address for text in texts):
            yield known.attachment.containerid


def _by_netns(node: Node, word: str) -> Iterator[str]:
    if word.startswith("/"):
        yield from _in_namespace(node.records, word)


def _by_port(node: Node, word: str) -> Iterator[str]:
    number = word.partition("/")[0]  # 8080/tcp
    if not number.isdecimal() or int(number) > _PORT_MAX:
        return
    for known in node.records:
        if any(part.has_host_port(facts, int(number)) for part, facts in node.noted(known)):
            yield known.attachment.containerid


def _by_interface(node: Node, word: str) -> Iterator[str]:
    for known in node.records:
        if any(word in part.devices(facts) for part, facts in node.noted(known)):
            yield known.attachment.containerid


def _by_pid(node: Node, word: str) -> Iterator[str]:
    if word.isdecimal():
        yield from _in_namespace(node.records, f"/proc/{word}/ns/net")


def _in_namespace(records: Iterable[Known], path: str) -> Iterator[str]:
    """Yield the containers whose namespace is at `path`, or was when they were attached."""
    here = identity(path)
    for one in records:
        if one.facts.get("netns") == path or (here and one.facts.get("netns_id") == here):
            yield one.attachment.containerid


ID = "id"
FINDERS: dict[str, Finder] = {
    ID: _by_id,
    "pod": _by_pod,
    "address": _by_address,
    "netns": _by_netns,
    "hostport": _by_port,
    "interface": _by_interface,
    "pid": _by_pid,
}


def add_options(parser: ArgumentParser) -> None:
    """Add the word, and --by."""
    parser.add_argument(
        "container",
        metavar="CONTAINER",
        help="its id or how that begins, pod (namespace/name or name), address, path of its network"
        " namespace, port of the host, interface of the host, or PID of one of its processes",
    )
    parser.add_argument(
        "--by",
        default="",
        choices=tuple(FINDERS),
        help="what CONTAINER is, where it could be several",
    )
