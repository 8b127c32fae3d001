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
    from plugins.portmap.claims import HostPortsFacts
    from plugins.portmap.conf import Conf

    HolderOf = Callable[[str, Address], "Holder | None"]

_IPV4_TARGET_BYTES = (nft_table.IPV4_KEY[0], nft_table.IPV4_PORT[0])  # of a range, of a port


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


class NoRangesError(Exception):
    """Ports in a row cannot be one element: an old kernel, or other ports are in the way."""


def facts_of(conf: Conf, *, ranges: bool = True) -> dict[str, Any]:
    """Return what a record must tell about an attachment for `remove`: fields of its facts."""
    suffix = layout.suffix(conf.conditions)
    elements = layout.elements(conf, suffix, ranges=ranges)
    return {
        "elements": [
            [one.set, one.key.hex(), one.data.hex(), *([one.end.hex()] if one.end else [])]
            for one in elements
        ],
        "chains": sorted({element.goto for element in elements if element.goto}),
        "suffix": suffix,
    }


def add(
    netns: NetNS, conf: Conf, owner: str, holder_of: HolderOf, *, ranges: bool = True
) -> set[str]:
    """Map the ports of `conf`, all by one transaction; return the owners of those left alone.

    `holder_of` gets the owner that an element's comment names, and the address of its container;
    it returns None when that is gone. Ports of such an owner are taken over; ports of the
    same container on another network stay there. Raises CNIError naming any other, NetlinkError,
    and NoRangesError unless called without `ranges`.
    """
    suffix = layout.suffix(conf.conditions)
    elements = layout.elements(conf, suffix, ranges=ranges)
    has_ranges = any(element.end for element in elements)
    for attempt in range(nft_table.TRIES):
        claim = Claim(netns, elements, owner, holder_of)
        try:
            if suffix:
                from plugins.portmap import conditions

                nft_table.apply(netns, layout.LAYOUT.base(netns))
                conditions.ensure(netns, suffix, conf.conditions)
            elif has_ranges:
                _ensure_ranges(netns)
            _add(netns, conf, claim)
        except NetlinkError as error:
            # A DEL removed the maps of conditions or ranges, or the base, again, as not used.
            outrun = error.errno == errno.ENOENT and (suffix or has_ranges)
            if not outrun or attempt == nft_table.TRIES - 1:
                raise
        else:
            return claim.holders
    raise AssertionError  # pragma: no cover - the loop returns or raises


def _ensure_ranges(netns: NetNS) -> None:
    """Make the chain and the maps of ranges unless they are there. Raises NoRangesError."""
    if TABLE.has_chain(netns, layout.PORTS + layout.RANGES):
        return
    try:
        nft_table.apply(netns, layout.base_with_ranges(netns))
    except NetlinkError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # before Linux 5.6
            raise NoRangesError from None
        if error.errno != errno.EEXIST:  # another ADD was faster
            raise


def _add(netns: NetNS, conf: Conf, claim: Claim) -> None:
    chains = []
    if conf.snat and not conf.masquerade_all:
        subnets = {cidr.network for _, cidr in conf.targets()}
        chains = [layout.hairpin(subnet) for subnet in subnets]
    layout.LAYOUT.add(netns, claim.additions(), chains=chains, take_over=claim.messages)


def remove(
    host: Host, facts: HostPortsFacts, owner: str, successors: Mapping[Key, Successor]
) -> None:
    """Take back what `add` made for this owner, by `facts_of`; nothing that is another's by now.

    Where an element has one of `successors`, that inherits it.
    """
    keys = keys_of(facts)
    remove_elements(host.netns, keys, owner, successors)
    suffixes = {layout.RANGES for key in keys if len(key) > 2} | {facts.suffix} - {""}
    remove_unused(host, facts.chains, sorted(suffixes))


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


def remove_unused(host: Host, chains: Sequence[str], suffixes: Sequence[str] = ()) -> None:
    """Remove unused ones of `chains`, and of the maps of `suffixes`; then the base."""
    was_idle = layout.LAYOUT.remove_idle_chains(host.netns, chains)
    for suffix in suffixes:
        _remove_unused_maps(host.netns, suffix)
    if was_idle or not chains:
        route_localnet.remove_with_base(host)


def is_idle(netns: NetNS) -> bool:
    """Tell whether no port is mapped: the base went with the last one."""
    return not TABLE.has_chain(netns, layout.PORTS)


def _remove_unused_maps(netns: NetNS, suffix: str) -> None:
    """Remove the chain and the maps of conditions, or of ranges, if nothing is mapped by them."""
    own = layout.of_suffix(suffix)
    if own.is_used(netns):
        return
    jumps = [
        TABLE.delete_rule(layout.CONDITIONS, rule.handle)
        for rule in TABLE.rules(netns, layout.CONDITIONS)
        if rule.target == layout.PORTS + suffix
    ]
    nft_table.apply_if_unused(netns, [*jumps, *own.removal()])


def remove_all_unused(host: Host) -> None:
    """Remove the maps of ranges and conditions that nothing is mapped by, and the idle base."""
    remove_unused(host, (), suffixes(host.netns))


def check(netns: NetNS, conf: Conf, owner: str, holder_of: HolderOf) -> Iterator[str]:
    """Yield each difference from the result of `add`."""
    suffix = layout.suffix(conf.conditions)
    elements = layout.elements(conf, suffix)
    found = [*_differences(netns, elements, owner, holder_of)]
    if found and any(element.end for element in elements):
        # An older release, or an older kernel, has each port by itself.
        singles = layout.elements(conf, suffix, ranges=False)
        found = found if any(_differences(netns, singles, owner, holder_of)) else []
    yield from found
    chains = {element.goto for element in elements if element.goto}
    yield from layout.LAYOUT.drift(netns, layout.PORTS, *chains)


def _differences(
    netns: NetNS, elements: Sequence[layout.Element], owner: str, holder_of: HolderOf
) -> Iterator[str]:
    present = TABLE.present(netns, [element.at for element in elements])
    for element, found in zip(elements, present, strict=True):
        where = f"the element for {element.what} in map '{element.set}'"
        if found is None:
            yield f"{where} is missing"
        elif found.comment != owner:
            holder = holder_of(found.comment, _address_of(found))
            if not (holder and holder.same):
                yield f"{where} is of '{found.comment}'"
        elif (found.key, found.end, found.data, found.chain) != element.content:
            yield f"{where} leads elsewhere"


def owners(netns: NetNS) -> dict[str, list[Key]]:
    """Return the keys of all elements there are by their owners' texts."""
    found: dict[str, list[Key]] = {}
    layouts = [layout.LAYOUT, *map(layout.of_suffix, suffixes(netns))]
    for name in [one.name for own in layouts for one in own.sets]:
        for one in TABLE.elements(netns, name):
            found.setdefault(one.comment, []).append(_place(name, one))
    return found


def suffixes(netns: NetNS) -> list[str]:
    """Return the suffix of each network's conditions that there are maps for, and of ranges."""
    targets = [rule.target for rule in TABLE.rules(netns, layout.CONDITIONS)]
    return [one.removeprefix(layout.PORTS) for one in targets if one.startswith(layout.PORTS)]


def is_there(netns: NetNS, facts: HostPortsFacts, owner: str) -> bool:
    """Tell whether any element in a record is still of `owner`."""
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
    return [
        (name, *(bytes.fromhex(one) for one in (key, *rest[1:])))
        for name, key, *rest in facts.elements
    ]


def targets_of(facts: HostPortsFacts) -> dict[Key, bytes]:
    """Return where the ports that a record tells about are to lead."""
    data = [bytes.fromhex(entry[2]) if len(entry) > 2 else b"" for entry in facts.elements]
    return {key: one for key, one in zip(keys_of(facts), data, strict=True) if one}


def _place(name: str, one: Element) -> Key:
    return (name, one.key, one.end) if one.end else (name, one.key)


def _address_of(element: Element) -> Address:
    """Return the address of the container that an element leads to, or that its key is."""
    from ipaddress import ip_address

    return target_of(element.data)[0] if element.data else ip_address(element.key)


def target_of(data: bytes) -> tuple[Address, int]:
    """Return the address and the port in the data of an element, 0 for a range."""
    from ipaddress import ip_address

    size = 4 if len(data) in _IPV4_TARGET_BYTES else 16
    return ip_address(data[:size]), int.from_bytes(data[size : size + 2], "big")


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

    def additions(self) -> list[Message]:
        """Return what adds the elements."""
        return [element.add(self._owner) for element in self._elements]

    def messages(self) -> list[Message]:
        """Return what adds the elements and deletes what owners left in their place that are gone.

        Elements of the same container stay, and its owners are `holders` then. Raises CNIError, and
        NoRangesError if such an element is another range.
        """
        deletions: dict[Key, Message] = {}
        additions = []  # a few messages, since elements of one set travel together
        self.holders = set()
        known: dict[str, Holder | None] = {self._owner: None}
        for element, met in self._met():
            stays = False
            for one in met:
                if one.comment not in known:
                    known[one.comment] = self._holder_of(one.comment, _address_of(one))
                holder = known[one.comment]
                if holder and holder.same and element.data:
                    if (one.key, one.end) != (element.key, element.end):
                        raise NoRangesError
                    self.holders.add(one.comment)
                    stays = True
                elif holder:
                    raise taken(element.what, holder.words)
                else:
                    place = _place(element.set, one)
                    deletions[place] = TABLE.delete_element(*place)
            if not stays:
                additions.append(element.add(self._owner))
        return [*deletions.values(), *additions]

    def _met(self) -> Iterator[tuple[layout.Element, list[Element]]]:
        """Yield each element with those in its place; of a range, those around its ends."""
        looks: list[Key] = [element.at for element in self._elements]
        looks += [(element.set, element.end) for element in self._elements if element.end]
        present = iter(TABLE.present(self._netns, looks))
        firsts = [next(present) for _ in self._elements]
        for element, first in zip(self._elements, firsts, strict=True):
            last = next(present) if element.end else None
            yield element, [one for one in (first, last) if one]
