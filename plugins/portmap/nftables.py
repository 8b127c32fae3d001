"""Port mappings by nftables: an attachment's elements added, removed and compared."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.nft_layout import TABLE
from cni_common.spec.errors import CNIError, Code
from plugins.portmap import layout, route_localnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Key
    from cni_common.kernel.nft_messages import Element
    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from plugins.portmap.conf import Conf
    from plugins.portmap.parts import HostPortsFacts

    HolderOf = Callable[[str, Address], "Holder | None"]

_IPV4_TARGET_BYTES = nft_table.IPV4_PORT[0]


@dataclass(frozen=True, slots=True)
class Holder:
    """The owner of an element that an ADD wants, unless it is gone."""

    words: str  # for a message
    same: bool  # the same container, on another network


@dataclass(frozen=True, slots=True)
class Successor:
    """The owner that inherits an element, and where it leads then."""

    owner: str
    data: bytes


def facts_of(conf: Conf) -> dict[str, Any]:
    """Return what a record must tell about an attachment for `remove`: fields of its facts."""
    suffix = layout.suffix(conf.conditions)
    elements = layout.elements(conf, suffix)
    return {
        "elements": [[element.set, element.key.hex(), element.data.hex()] for element in elements],
        "chains": sorted({element.goto for element in elements if element.goto}),
        "suffix": suffix,
    }


def add(netns: NetNS, conf: Conf, owner: str, holder_of: HolderOf) -> set[str]:
    """Map the ports of `conf`, all by one transaction; return the owners of those left alone.

    `holder_of` gets the owner that an element's comment names, and the address of its container;
    it returns None when that is gone. Ports of such an owner are taken over; ports of the
    same container on another network stay there. Raises CNIError naming any other, NetlinkError.
    """
    suffix = layout.suffix(conf.conditions)
    if not suffix:
        return _add(netns, conf, owner, suffix, holder_of=holder_of)
    from plugins.portmap import conditions

    for attempt in range(nft_table.TRIES):
        nft_table.apply(netns, layout.LAYOUT.base())
        try:
            conditions.ensure(netns, suffix, conf.conditions)
            return _add(netns, conf, owner, suffix, holder_of=holder_of)
        except NetlinkError as error:
            # A DEL removed the network's maps, or the base, again: it saw no use for them.
            if error.errno != errno.ENOENT or attempt == nft_table.TRIES - 1:
                raise
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _add(netns: NetNS, conf: Conf, owner: str, suffix: str, *, holder_of: HolderOf) -> set[str]:
    elements = layout.elements(conf, suffix)
    chains = []
    if conf.snat and not conf.masquerade_all:
        subnets = {cidr.network for _, cidr in conf.targets()}
        chains = [layout.hairpin(subnet) for subnet in subnets]
    claim = Claim(netns, elements, owner, holder_of)
    layout.LAYOUT.add(
        netns,
        [element.add(owner) for element in elements],
        chains=chains,
        take_over=claim.messages,
    )
    return claim.holders


def remove(
    host: Host, facts: HostPortsFacts, owner: str, successors: Mapping[Key, Successor]
) -> None:
    """Take back what `add` made for this owner, by `facts_of`; nothing that is another's by now.

    Where an element has one of `successors`, that inherits it.
    """
    remove_elements(host.netns, keys_of(facts), owner, successors)
    remove_unused(host, facts.chains, facts.suffix)


def remove_elements(
    netns: NetNS,
    keys: Sequence[Key],
    owner: str,
    successors: Mapping[Key, Successor] | None = None,
) -> None:
    """Remove those of the elements under `keys` that are of `owner`, or hand them over."""

    def successor(key: Key) -> list[Message]:
        if not successors or key not in successors:
            return []
        next_one = successors[key]
        return [TABLE.add_element(*key, data=next_one.data, comment=next_one.owner)]

    layout.LAYOUT.remove(netns, keys, owner=owner, successor=successor)


def remove_unused(host: Host, chains: Sequence[str], suffix: str) -> None:
    """Remove those of `chains`, and of what `suffix` tells, that nothing needs; then the base."""
    was_idle = layout.LAYOUT.remove_idle_chains(host.netns, chains)
    if suffix:
        from plugins.portmap import conditions

        conditions.remove_unused(host.netns, suffix)
    if was_idle or not chains:
        route_localnet.remove_with_base(host)


def remove_all_unused(host: Host) -> None:
    """Remove the maps of all conditions that nothing is mapped by, and the base if it is idle."""
    for suffix in (*suffixes(host.netns), ""):
        remove_unused(host, (), suffix)


def check(netns: NetNS, conf: Conf, owner: str, holder_of: HolderOf) -> Iterator[str]:
    """Yield each difference from the result of `add`."""
    elements = layout.elements(conf, layout.suffix(conf.conditions))
    present = TABLE.present(netns, [(element.set, element.key) for element in elements])
    for element, found in zip(elements, present, strict=True):
        where = f"the element for {element.what} in map '{element.set}'"
        if found is None:
            yield f"{where} is missing"
        elif found.comment != owner:
            holder = holder_of(found.comment, _address_of(found))
            if not (holder and holder.same):
                yield f"{where} is of '{found.comment}'"
        elif (found.data, found.chain) != (element.data, element.goto):
            yield f"{where} leads elsewhere"
    chains = {element.goto for element in elements if element.goto}
    yield from layout.LAYOUT.drift(netns, layout.PORTS, *chains)


def owners(netns: NetNS) -> dict[str, list[Key]]:
    """Return the keys of all elements there are by their owners' texts."""
    found: dict[str, list[Key]] = {}
    layouts = [layout.LAYOUT, *map(layout.of_conditions, suffixes(netns))]
    for name in [one.name for own in layouts for one in own.sets]:
        for element in TABLE.elements(netns, name):
            found.setdefault(element.comment, []).append((name, element.key))
    return found


def suffixes(netns: NetNS) -> list[str]:
    """Return the suffix of each network's conditions that there are maps for."""
    targets = [rule.target for rule in TABLE.rules(netns, layout.CONDITIONS)]
    return [one.removeprefix(layout.PORTS) for one in targets if one.startswith(layout.PORTS)]


def is_there(netns: NetNS, facts: HostPortsFacts, owner: str) -> bool:
    """Tell whether anything of what a record tells about is still of `owner`."""
    present = TABLE.present(netns, keys_of(facts))
    return any(found is not None and found.comment == owner for found in present)


def taken(what: str, holder: str) -> CNIError:
    """Return the error of an ADD that wants what another owner has, described by `holder`."""
    return CNIError(
        Code.INTERNAL,
        f"{what} is mapped for {holder}; choose another port, or delete that one first",
    )


def keys_of(facts: HostPortsFacts) -> list[Key]:
    """Return the keys of the elements that a record tells about."""
    return [(name, bytes.fromhex(key)) for name, key, *_ in facts.elements]


def targets_of(facts: HostPortsFacts) -> dict[Key, bytes]:
    """Return where the ports that a record tells about are to lead."""
    entries = [entry for entry in facts.elements if len(entry) > 2 and entry[2]]
    return {(name, bytes.fromhex(key)): bytes.fromhex(data) for name, key, data in entries}


def _address_of(element: Element) -> Address:
    """Return the address of the container that an element leads to, or that its key is."""
    from ipaddress import ip_address

    data = element.data
    return ip_address(data[: 4 if len(data) == _IPV4_TARGET_BYTES else 16] or element.key)


class Claim:
    """The elements that an ADD needs, compared with those in the kernel."""

    def __init__(
        self,
        netns: NetNS,
        elements: Sequence[layout.Element],
        owner: str,
        holder_of: HolderOf,
    ) -> None:
        self._netns = netns
        self._elements = elements
        self._owner = owner
        self._holder_of = holder_of
        self.holders: set[str] = set()

    def messages(self) -> list[Message]:
        """Return what adds the elements and deletes what owners left in their place that are gone.

        Those of the same container stay, and its owners are `holders` then. Raises CNIError.
        """
        deletions, additions = [], []  # a few messages, since elements of one set travel together
        self.holders = set()
        known: dict[str, Holder | None] = {self._owner: None}
        keys = [(element.set, element.key) for element in self._elements]
        for element, found in zip(self._elements, TABLE.present(self._netns, keys), strict=True):
            if found is not None:
                if found.comment not in known:
                    known[found.comment] = self._holder_of(found.comment, _address_of(found))
                holder = known[found.comment]
                if holder and holder.same and element.data:
                    self.holders.add(found.comment)
                    continue
                if holder:
                    raise taken(element.what, holder.words)
                deletions.append(TABLE.delete_element(element.set, element.key))
            additions.append(element.add(self._owner))
        return [*deletions, *additions]
