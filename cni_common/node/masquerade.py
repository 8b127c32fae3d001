"""Packets that leave a network get the host's address: by nftables, or iptables as the reference.

In `table inet pycni` a packet's source address is looked up in a verdict map, one for IPv4 and one
for IPv6. If a container has it, its network's chain decides: to the network's own subnets and to
multicast the packet goes as it is, else it is masqueraded. Each address of an attachment is an
element of such a map, with the owner in its comment; a thousand of them cost a packet, an ADD or a
DEL no more than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.nft_messages import COMMENT_MAX_BYTES
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Address, Cidr, Subnet
    from cni_common.spec.request import Attachment

TABLE = nft_table.Table(nft_table.INET, "pycni")
BACKENDS = ("nftables", "iptables")
_POSTROUTING = "postrouting"
_BASE_SIZE = 3  # a chain and two maps
_SRCNAT = 100  # NF_IP_PRI_NAT_SRC of linux/netfilter_ipv4.h


@dataclass(frozen=True, slots=True)
class _Family:
    """What IPv4 and IPv6 do differently here."""

    protocol: int
    map: str
    key: tuple[int, int]
    source: int  # where the source address stands in the network header, bytes
    destination: int
    multicast: tuple[bytes, int]


_FAMILIES = {
    4: _Family(
        nft_table.IPV4,
        "masquerade4",
        nft_table.IPV4_KEY,
        12,
        16,
        (bytes([224, 0, 0, 0]), 4),
    ),
    6: _Family(
        nft_table.IPV6,
        "masquerade6",
        nft_table.IPV6_KEY,
        8,
        24,
        (b"\xff" + bytes(15), 8),
    ),
}


_MAPS = tuple(family.map for family in _FAMILIES.values())


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose masquerading it is."""

    plugin: str
    network: str
    attachment: Attachment

    def __str__(self) -> str:
        parts = (self.plugin, self.network, self.attachment.containerid, self.attachment.ifname)
        text = " ".join(parts)
        if len(text.encode("utf-8", "surrogateescape")) <= COMMENT_MAX_BYTES:
            return text
        return f"{self.plugin} sha256:{_digest(text)}"


def add(
    netns: NetNS,
    owner: Owner,
    addresses: Sequence[Cidr],
    *,
    backend: str,
    holder_of: Callable[[str, Address], str],
) -> None:
    """Masquerade what `addresses` send to outside of their subnets.

    `holder_of` describes the owner named in the comment of an element that is there already, ""
    when that is gone: then its element is replaced. Raises CNIError, NetlinkError.
    """
    if backend == "iptables":
        from cni_common.kernel import iptables

        iptables.add(netns, owner.network, owner.attachment, addresses)
        return
    subnets = frozenset(cidr.network for cidr in addresses)
    chain = _chain(owner.network, subnets)
    elements = [
        TABLE.add_element(
            _FAMILIES[cidr.version].map, cidr.ip.packed, goto=chain, comment=str(owner)
        )
        for cidr in addresses
    ]
    # Asked for, since a refused transaction takes tens of milliseconds.
    if TABLE.has_chain(netns, chain) and nft_table.try_to_add(netns, elements):
        return
    frame = (*_base(), *_network_chain(chain, subnets))
    try:
        nft_table.add_with_frame(
            netns, frame, elements, lambda: _replaced(netns, owner, addresses, holder_of)
        )
    except (CNIError, NetlinkError):
        # A DEL may have left to us what it saw us use.
        _remove_unused(netns, {chain})
        raise


def remove(
    netns: NetNS,
    owner: Owner,
    addresses: Iterable[Address],
    *,
    backend: str = BACKENDS[0],
    subnets: Collection[Subnet] = (),
) -> None:
    """Take back what `add` made for this owner; nothing of another's under the same address.

    With the `subnets` of the addresses also the chain that a DEL has emptied before it was killed.
    """
    if backend == "iptables":
        from cni_common.kernel import iptables

        iptables.remove(netns, owner.network, owner.attachment)
        return
    emptied = [_chain(owner.network, frozenset(subnets))] if subnets else []
    _remove_elements(netns, list(addresses), str(owner), emptied)


def _remove_elements(
    netns: NetNS, addresses: Sequence[Address], owner: str, emptied: Iterable[str] = ()
) -> None:
    chains = set(emptied)

    def deletions() -> list[Message]:
        messages = []
        for address in addresses:
            family = _FAMILIES[address.version]
            element = TABLE.element(netns, family.map, address.packed)
            if element and element.comment == owner:
                messages.append(TABLE.delete_element(family.map, address.packed))
                chains.add(element.chain)
        return messages

    nft_table.apply_deletions(netns, deletions)
    _remove_unused(netns, chains)


def _remove_unused(netns: NetNS, chains: set[str]) -> None:
    """Remove those of the networks' `chains` that have no element left, and then the base."""
    idle = [chain for chain in chains if TABLE.is_idle(netns, chain)]
    for chain in idle:
        nft_table.apply_if_unused(netns, _without_chain(chain))
    if idle:
        base = nft_table.without_base(netns, TABLE, _without_base(), size=_BASE_SIZE, sets=_MAPS)
        if base:
            nft_table.apply_if_unused(netns, base)


def check(netns: NetNS, owner: Owner, addresses: Sequence[Cidr], *, backend: str) -> None:
    """Raise CNIError naming the address that is no longer masqueraded."""
    if backend == "iptables":
        from cni_common.kernel import iptables

        drift = iptables.check(netns, owner.network, owner.attachment, addresses)
        if drift:
            raise _drift(drift)
        return
    chain = _chain(owner.network, frozenset(cidr.network for cidr in addresses))
    for cidr in addresses:
        element = TABLE.element(netns, _FAMILIES[cidr.version].map, cidr.ip.packed)
        if element is None or element.chain != chain:
            where = f"leads to '{element.chain}'" if element else "is missing"
            raise _drift(
                f"the masquerade element of {cidr.ip} in 'table inet {TABLE.name}' {where}"
            )
    for name in (chain, _POSTROUTING):
        if not TABLE.rules(netns, name):
            raise _drift(f"chain '{name}' of 'table inet {TABLE.name}' has lost its rules")


def owners(netns: NetNS) -> list[tuple[str, Address]]:
    """Return the owner's text and the address of every element there is."""
    from ipaddress import ip_address

    return [
        (element.comment, ip_address(element.key))
        for family in _FAMILIES.values()
        for element in TABLE.elements(netns, family.map)
    ]


def holds(netns: NetNS, owner: Owner, address: Address) -> bool:
    """Tell whether `owner` has an element for `address`."""
    element = TABLE.element(netns, _FAMILIES[address.version].map, address.packed)
    return element is not None and element.comment == str(owner)


def remove_element(netns: NetNS, address: Address, owner: str) -> None:
    """Remove the element of `address` if it is still that of `owner`, one of `owners`."""
    _remove_elements(netns, [address], owner)


def remove_of_reference(netns: NetNS, owner: Owner, addresses: Collection[Address]) -> None:
    """Remove what was made by the reference plugins, or by us with iptables and no record left."""
    from cni_common.kernel import iptables

    iptables.remove_of_reference(netns, owner.network, owner.attachment, addresses)
    iptables.remove(netns, owner.network, owner.attachment)


def gc_of_reference(
    netns: NetNS,
    network: str,
    keep: Callable[[], Collection[Attachment]],
    is_used: Callable[[Address], bool],
) -> list[str]:
    """Remove the reference plugins' masquerading of what `keep` does not name; return what it was.

    `keep` is asked after a look at what there is.
    """
    from cni_common.kernel import iptables

    return iptables.gc_of_reference(netns, network, keep, is_used)


def probe(netns: NetNS, backend: str) -> None:
    """Raise CNIError 50 when `backend` cannot be used here."""
    if backend == "iptables":
        from cni_common.kernel import iptables

        iptables.find("iptables-restore")
        return
    try:
        TABLE.has_chain(netns, _POSTROUTING)
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"nftables cannot be used: {error.strerror}; load nf_tables or set"
            ' "ipMasqBackend": "iptables"',
        ) from None


# --- nftables ------------------------------------------------------------------------------


def _chain(network: str, subnets: frozenset[Subnet]) -> str:
    """Return the name of a network's chain; other subnets make another chain."""
    text = " ".join([network, *sorted(map(str, subnets))])
    return f"masquerade-{network[:64]}-{_digest(text)}"


@cache
def _base() -> tuple[Message, ...]:
    messages = [TABLE.add()]
    for family in _FAMILIES.values():
        messages.append(TABLE.add_set(family.map, family.key, data=nft_table.VERDICTS))
    messages.append(
        TABLE.add_base_chain(_POSTROUTING, kind="nat", hook=nft_table.POSTROUTING, priority=_SRCNAT)
    )
    messages.append(TABLE.delete_rule(_POSTROUTING))
    for family in _FAMILIES.values():
        source = nft_expressions.network_bytes(family.source, family.key[0])
        look_up = nft_expressions.lookup(family.map, verdict=True)
        messages.append(
            TABLE.add_rule(
                _POSTROUTING, *nft_expressions.meta_nfproto(family.protocol), source, look_up
            )
        )
    return tuple(messages)


def _without_base() -> list[Message]:
    maps = [TABLE.delete_set(family.map) for family in _FAMILIES.values()]
    return [
        TABLE.delete_rule(_POSTROUTING),
        TABLE.delete_chain(_POSTROUTING),
        *maps,
    ]


@lru_cache(maxsize=64)  # networks
def _network_chain(chain: str, subnets: frozenset[Subnet]) -> tuple[Message, ...]:
    messages = [TABLE.add_chain(chain), TABLE.delete_rule(chain)]
    for version in sorted({subnet.version for subnet in subnets}):
        family = _FAMILIES[version]
        own = [
            (subnet.network_address.packed, subnet.prefixlen)
            for subnet in sorted(subnets, key=str)
            if subnet.version == version
        ]
        for network, prefixlen in (*own, family.multicast):
            messages.append(
                TABLE.add_rule(
                    chain,
                    *nft_expressions.meta_nfproto(family.protocol),
                    nft_expressions.network_bytes(family.destination, len(network)),
                    *nft_expressions.in_subnet(network, prefixlen),
                    nft_expressions.verdict(nft_table.ACCEPT),
                )
            )
    return (*messages, TABLE.add_rule(chain, nft_expressions.masquerade()))


def _without_chain(chain: str) -> list[Message]:
    return [TABLE.delete_rule(chain), TABLE.delete_chain(chain)]


def _replaced(
    netns: NetNS,
    owner: Owner,
    addresses: Sequence[Cidr],
    holder_of: Callable[[str, Address], str],
) -> list[Message]:
    """Return the deletion of the elements that owners which are gone left under `addresses`."""
    messages = []
    for cidr in addresses:
        family = _FAMILIES[cidr.version]
        element = TABLE.element(netns, family.map, cidr.ip.packed)
        if element is None:
            continue
        holder = "" if element.comment == str(owner) else holder_of(element.comment, cidr.ip)
        if holder:
            raise CNIError(
                Code.INTERNAL,
                f"{cidr.ip} is masqueraded for {holder}; give the two networks subnets that do not"
                " overlap, or DEL that container first",
            )
        messages.append(TABLE.delete_element(family.map, cidr.ip.packed))
    return messages


def _digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _drift(what: str) -> CNIError:
    return CNIError(Code.INTERNAL, f"{what}; delete and add the attachment again")
