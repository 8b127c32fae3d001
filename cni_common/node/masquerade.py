"""Masquerading of packets that leave a network: by nftables, or by iptables as the reference.

`table inet pycni` looks up a packet's source address in a verdict map, one for IPv4 and one for
IPv6. An element leads to its network's chain: packets to the network's own subnets and to multicast
are accepted, all others are masqueraded. Each address of an attachment is an element of such a map,
with the owner in its comment; a packet, an ADD or a DEL cost the same for one and a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.nft_layout import FAMILIES, TABLE, Chain, Layout, Set
from cni_common.kernel.nft_messages import COMMENT_MAX_BYTES
from cni_common.spec.errors import CNIError, Code, drifted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Key, Rule
    from cni_common.node.record import Record
    from cni_common.spec.names import Address, Cidr, Subnet
    from cni_common.spec.request import Attachment

BACKENDS = ("nftables", "iptables")
_POSTROUTING = "postrouting"
_MAPS = {4: "masquerade4", 6: "masquerade6"}  # from a container's address to its network's chain
_MULTICAST = {4: (bytes([224, 0, 0, 0]), 4), 6: (b"\xff" + bytes(15), 8)}


def _look_ups() -> Iterator[Rule]:
    for version, family in FAMILIES.items():
        yield family.look_up(family.source, _MAPS[version])


LAYOUT = Layout(
    TABLE,
    tuple(
        Set(_MAPS[v], family.key, nft_table.VERDICTS, counted=True)
        for v, family in FAMILIES.items()
    ),
    (Chain(_POSTROUTING, _look_ups, ("nat", nft_table.POSTROUTING, nft_layout.SRCNAT)),),
)


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of an element: plugin, network and attachment."""

    plugin: str
    network: str
    attachment: Attachment

    def __str__(self) -> str:
        parts = (self.plugin, self.network, self.attachment.containerid, self.attachment.ifname)
        text = " ".join(parts)
        if len(text.encode("utf-8", "surrogateescape")) <= COMMENT_MAX_BYTES:
            return text
        return f"{self.plugin} sha256:{_digest(text)}"


def owner_of(record: Record) -> Owner:
    """Return the recorded attachment as an owner."""
    return Owner(record.plugin, record.network, record.attachment)


def add(
    netns: NetNS,
    owner: Owner,
    addresses: Sequence[Cidr],
    *,
    backend: str,
    holder_of: Callable[[str, Address], str],
) -> None:
    """Masquerade packets from `addresses` that leave their subnets.

    `holder_of` describes the owner in an existing element's comment, "" if that owner is gone: then
    the element is replaced. Raises CNIError, NetlinkError.
    """
    if backend == "iptables":
        from cni_common.node import masquerade_iptables

        masquerade_iptables.add(netns, owner.network, owner.attachment, addresses)
        return
    chain = _network_chain(owner.network, frozenset(cidr.network for cidr in addresses))
    elements = [
        TABLE.add_element(*_key(cidr.ip), goto=chain.name, comment=str(owner)) for cidr in addresses
    ]

    def take_over() -> list[Message]:
        return [*_replaced(netns, owner, addresses, holder_of), *elements]

    try:
        LAYOUT.add(netns, elements, chains=[chain], take_over=take_over)
    except (CNIError, NetlinkError):
        # A DEL may have left objects to us because this ADD used them.
        _remove_unused(netns, {chain.name})
        raise


def remove(
    netns: NetNS,
    owner: Owner,
    addresses: Iterable[Address],
    *,
    backend: str = BACKENDS[0],
    subnets: Collection[Subnet] = (),
) -> None:
    """Remove this owner's masquerading, but no other owner's under the same address.

    With the `subnets` of the addresses also remove the chain that a killed DEL has emptied.
    """
    if backend == "iptables":
        from cni_common.node import masquerade_iptables

        masquerade_iptables.remove(netns, owner.network, owner.attachment)
        return
    emptied = [_chain_name(owner.network, frozenset(subnets))] if subnets else []
    _remove_elements(netns, list(addresses), str(owner), emptied)


def _remove_elements(
    netns: NetNS, addresses: Sequence[Address], owner: str, emptied: Iterable[str] = ()
) -> None:
    removed = LAYOUT.remove(netns, [_key(address) for address in addresses], owner=owner)
    _remove_unused(netns, {*emptied, *(element.chain for element in removed)})


def _remove_unused(netns: NetNS, chains: Collection[str]) -> None:
    """Remove those of the networks' `chains` that have no element left, and then the base."""
    if LAYOUT.remove_idle_chains(netns, chains):
        LAYOUT.remove_if_unused(netns)


def check(
    netns: NetNS, owner: Owner, addresses: Sequence[Cidr], *, backend: str
) -> Iterator[CNIError]:
    """Yield a finding for each thing that the masquerading of `addresses` lacks."""
    if backend == "iptables":
        from cni_common.node import masquerade_iptables

        found = masquerade_iptables.check(netns, owner.network, owner.attachment, addresses)
    else:
        found = _nftables_drift(netns, owner.network, addresses)
    yield from map(drifted, found)


def _nftables_drift(netns: NetNS, network: str, addresses: Sequence[Cidr]) -> Iterator[str]:
    chain = chain_of(network, addresses)
    for cidr in addresses:
        element = TABLE.element(netns, *_key(cidr.ip))
        if element is None or element.chain != chain:
            where = f"leads to '{element.chain}'" if element else "is missing"
            yield f"the masquerade element of {cidr.ip} in '{TABLE}' {where}"
    yield from LAYOUT.drift(netns, chain)


def owners(netns: NetNS) -> list[tuple[str, Address]]:
    """Return the owner's text and the address of every element."""
    from ipaddress import ip_address

    return [
        (element.comment, ip_address(element.key))
        for name in _MAPS.values()
        for element in TABLE.elements(netns, name)
    ]


def counted(netns: NetNS, addresses: Sequence[Address]) -> list[tuple[int, int] | None]:
    """Return for each address the connections that were masqueraded, and bytes of first packets.

    None where the kernel does not count.
    """
    return TABLE.counted(netns, [_key(address) for address in addresses])


def holds(netns: NetNS, owner: Owner, address: Address) -> bool:
    """Tell whether `owner` has an element for `address`."""
    element = TABLE.element(netns, *_key(address))
    return element is not None and element.comment == str(owner)


def remove_element(netns: NetNS, address: Address, owner: str) -> None:
    """Remove the element of `address` if it is still that of `owner`, one of `owners`."""
    _remove_elements(netns, [address], owner)


def remove_of_reference(netns: NetNS, owner: Owner, addresses: Collection[Address]) -> None:
    """Remove masquerading of the reference plugins, or ours by iptables without a record."""
    from cni_common.node import masquerade_iptables

    masquerade_iptables.remove_of_reference(netns, owner.network, owner.attachment, addresses)
    masquerade_iptables.remove(netns, owner.network, owner.attachment)


def gc_of_reference(
    netns: NetNS,
    network: str,
    keep: Callable[[], Collection[Attachment]],
    is_used: Callable[[Address], bool],
) -> list[str]:
    """Remove the reference plugins' masquerading of attachments not in `keep`; describe each.

    `keep` is called after the existing rules are read.
    """
    from cni_common.node import masquerade_iptables

    return masquerade_iptables.gc_of_reference(netns, network, keep, is_used)


def probe(netns: NetNS, backend: str) -> None:
    """Raise CNIError 50 if `backend` cannot be used here. Raises OSError.

    ADD calls this function before it makes anything: a table that cannot be read cannot be cleared.
    """
    if backend == "iptables":
        from cni_common.kernel import iptables

        iptables.find("iptables-restore")
        iptables.has_chain(netns, "POSTROUTING")
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


def _key(address: Address) -> Key:
    return _MAPS[address.version], address.packed


def chain_of(network: str, addresses: Iterable[Cidr]) -> str:
    """Return the name of the chain to which the elements of `addresses` lead."""
    return _chain_name(network, frozenset(cidr.network for cidr in addresses))


def _chain_name(network: str, subnets: frozenset[Subnet]) -> str:
    """Return the name of a network's chain, which depends on its subnets."""
    text = " ".join([network, *sorted(map(str, subnets))])
    return f"masquerade-{network[:64]}-{_digest(text)}"


@lru_cache(maxsize=64)  # networks
def _network_chain(network: str, subnets: frozenset[Subnet]) -> Chain:
    return Chain(_chain_name(network, subnets), lambda: _network_rules(subnets))


def _network_rules(subnets: frozenset[Subnet]) -> Iterator[Rule]:
    """Yield the rules that masquerade packets which leave a network, by its subnets."""
    for version in sorted({subnet.version for subnet in subnets}):
        family = FAMILIES[version]
        own = [
            (subnet.network_address.packed, subnet.prefixlen)
            for subnet in sorted(subnets, key=str)
            if subnet.version == version
        ]
        for network, prefixlen in (*own, _MULTICAST[version]):
            match = family.within(family.destination, network, prefixlen)
            yield [*match, nft_expressions.verdict(nft_table.ACCEPT)]
    yield [nft_expressions.masquerade()]


def _replaced(
    netns: NetNS,
    owner: Owner,
    addresses: Sequence[Cidr],
    holder_of: Callable[[str, Address], str],
) -> list[Message]:
    """Return the requests that delete the elements of gone owners under `addresses`."""
    messages = []
    for cidr in addresses:
        element = TABLE.element(netns, *_key(cidr.ip))
        if element is None:
            continue
        holder = "" if element.comment == str(owner) else holder_of(element.comment, cidr.ip)
        if holder:
            raise CNIError(
                Code.INTERNAL,
                f"{cidr.ip} is masqueraded for {holder}; give the two networks subnets that do not"
                " overlap, or DEL that container first",
            )
        messages.append(TABLE.delete_element(*_key(cidr.ip)))
    return messages


def _digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
