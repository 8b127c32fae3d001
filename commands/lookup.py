"""The containers that a word of the command line can mean."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.kernel.netns import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from commands.node import Known, Node

    Way = Callable[[Node, str], Iterable[str]]

_PORT_MAX = 65535


def find(node: Node, word: str, by: str = "") -> dict[str, str]:
    """Return ids of containers, and for each by which of WAYS it was found; `by`: by that only.

    A whole id is that container's, whatever else it could mean.
    """
    if by in ("", ID) and word in _ids(node):
        return {word: ID}
    found: dict[str, str] = {}
    for name, way in WAYS.items():
        if word and by in ("", name):
            for containerid in way(node, word):
                found.setdefault(containerid, name)
    return found


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
WAYS: dict[str, Way] = {
    ID: _by_id,
    "pod": _by_pod,
    "address": _by_address,
    "netns": _by_netns,
    "hostport": _by_port,
    "interface": _by_interface,
    "pid": _by_pid,
}
