"""The objects of portmap on the node: elements of its maps, or chains of iptables."""

from __future__ import annotations

import re
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cni_common.kernel import iptables
from cni_common.kernel.nft_layout import TABLE
from cni_common.node.owned import Owned, Stray, Usage, lost_rules
from cni_common.spec.errors import CNIError, Code
from plugins.portmap import iptables as own_chains
from plugins.portmap import layout, nftables, route_localnet
from plugins.portmap.claims import spans_of
from plugins.portmap.conf import IPTABLES, PLUGIN
from plugins.portmap.route_localnet import DNAT
from plugins.portmap.shared_ports import is_of_container, owner_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from plugins.portmap.claims import HostPortsFacts
    from plugins.portmap.parts import RouteLocalnetFacts

_TARGET = re.compile(r"--to-destination \[?([0-9a-f.:]+?)\]?:\d+$")
_COMMENT = re.compile(r'dnat name: \\"([^"\\]*)\\" id: \\"([^"\\]*)\\"')
_REASON = "its owner has no record, and its address is in no namespace"


def present(host: Host, record: Record, facts: HostPortsFacts) -> Iterator[Owned]:
    """Yield the elements of an attachment, or its chain, and whether they are there."""
    if facts.backend == IPTABLES:
        chain = own_chains.chain_of(record.network, record.attachment)
        there = own_chains.is_there(host.netns, chain)
        yield Owned("iptables", f"chain {chain} of table nat", there)
        if there and not own_chains.is_led_to(host.netns, chain):
            yield Owned("iptables", f"rule of {DNAT} that leads to {chain}", present=False)
        for what in own_chains.bare(host.netns, chain) if there else ():
            yield Owned("iptables", what, present=False, shared=True)
        return
    keys = nftables.keys_of(facts)
    found = TABLE.present(host.netns, keys)
    for key, element in zip(keys, found, strict=True):
        mine = element is not None and element.comment == owner_of(record)
        # The container has the port by another network, and this one gets it next.
        next_one = (
            element is not None
            and not mine
            and _is_same_container(host, element.comment, record.attachment.containerid)
        )
        what = f"element for {layout.words_of(key)} of map {key[0]}"
        yield Owned("host-port", what, mine or next_one, shared=next_one)
    yield from lost_rules("host-port", layout.LAYOUT, host.netns, layout.PORTS, *facts.chains)


def _is_same_container(host: Host, text: str, containerid: str) -> bool:
    """Tell whether the owner `text` of an element is of a container, by its words or its record.

    The record of another network may be damaged; long words are a digest.
    """
    words = text.split(" ")
    is_named = len(words) == 4 and words[0] == PLUGIN
    return words[2] == containerid if is_named else is_of_container(host, text, containerid)


def usage(host: Host, record: Record, facts: HostPortsFacts) -> Iterator[Usage]:
    """Yield each port of the host that leads to the container, and where to."""
    if facts.backend == IPTABLES:
        chain = own_chains.chain_of(record.network, record.attachment)
        hits = [Usage("host-port", *found) for found in own_chains.counted(host.netns, chain)]
        texts = (str(span).removeprefix("host port").lstrip("s ") for span in spans_of(facts))
        yield from hits or (Usage("host-port", text) for text in texts)
        return
    targets = nftables.targets_of(facts)
    counted = TABLE.counted(host.netns, list(targets))
    for (key, data), found in zip(targets.items(), counted, strict=True):
        what = f"{layout.ports_of(key)} to {_words_of_target(data)}"
        yield Usage("host-port", what, *(found or ()))


def _words_of_target(data: bytes) -> str:
    address, port = nftables.target_of(data)
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def localnet(host: Host, facts: RouteLocalnetFacts) -> Iterator[Owned]:
    """Yield the sysctl of an interface, and its guard if that is lost."""
    name = route_localnet.sysctl_of(facts.interface)
    try:
        # Where it cannot be set, ADD has said so.
        there, is_gone = host.netns.sysctl(name) == "1", False
        there = there or host.netns.sysctl_is_read_only(name)
    except FileNotFoundError:  # it is gone with its interface
        there, is_gone = False, True
    what = f"sysctl {name}"
    yield Owned("route-localnet", what, there, shared=not facts.private, final=is_gone)
    if there and not route_localnet.is_guarded(host.netns, facts.interface):
        what = f"guard of 127.0.0.0/8 on '{facts.interface}' in {TABLE}"
        yield Owned("route-localnet", what, present=False, shared=True)


def strays(host: Host) -> list[Stray]:
    """Return the elements of each owner, and the chains of iptables, with or without a record."""
    return [*_elements(host), *chains(host)]


def _elements(host: Host) -> Iterator[Stray]:
    addresses: dict[str, set[Address]] = {}
    counts: dict[str, int] = {}
    suffixes = ("", *nftables.suffixes(host.netns))
    for version, family in layout.FAMILIES.items():
        size = 4 if version == 4 else 16
        maps = (one.name for suffix in suffixes for one in family.port_maps(suffix))
        for name in (*maps, family.hairpin):
            for element in TABLE.elements(host.netns, name):
                found = element.key if name == family.hairpin else element.data[:size]
                addresses.setdefault(element.comment, set()).add(ip_address(found))
                counts[element.comment] = counts.get(element.comment, 0) + 1
    for text, used in addresses.items():
        parts = text.split(" ") if text.count(" ") == 3 else ["", "", "", ""]
        yield Stray(
            "host-port",
            f"{counts[text]} elements of {TABLE}, for '{text}'",
            tuple(parts[1:]),
            owner=text,
            addresses=frozenset(used),
            reason=_REASON,
            remove=partial(_remove_elements, host, text),
        )


def _remove_elements(host: Host, text: str) -> None:
    keys = nftables.owners(host.netns).get(text, [])
    nftables.remove_elements(host.netns, keys, text)
    nftables.remove_all_unused(host)


def chains(host: Host) -> Iterator[Stray]:
    """Yield the chains of our iptables backend and of the reference's portmap."""
    for version in (4, 6):
        for binary in _binaries(host.netns, version):
            lines = iptables.listing(host.netns, binary)
            jumps = [line for line in lines if line.startswith(f"-A {DNAT} ")]
            names = {line.rpartition(" -j ")[2]: _COMMENT.search(line) for line in jumps}
            for chain, found in names.items():
                rules = (line for line in lines if line.startswith(f"-A {chain} "))
                yield Stray(
                    "iptables",
                    f"chain {chain} of table nat (IPv{version}), with host ports",
                    found.groups() if found else (),
                    owner=chain,
                    addresses=frozenset(filter(None, map(_target, rules))),
                    reason=_REASON,
                    remove=partial(own_chains.remove, host, chain),
                )


def _binaries(netns: NetNS, version: int) -> list[str]:
    try:
        return iptables.binaries(netns, version, DNAT)
    except CNIError as error:
        if error.code != Code.PLUGIN_NOT_AVAILABLE:
            raise
        return []  # without iptables there are no chains of its kind


def _target(line: str) -> Address | None:
    found = _TARGET.search(line)
    return ip_address(found[1]) if found else None
