"""Port mappings in `table inet pycni`: maps, chains, and the elements of an attachment.

One map per family looks up a packet to an address of this host by protocol and port, before that
another one by address, protocol and port; its value is the target. A verdict map decides by the
container's address whether the source is masqueraded. A packet costs the same with one port or
thousands.

Ports in a row that keep their numbers are one element of further maps, which the first of them
makes. Their chain looks up single ports first, so that these maps stay as they are in a node's
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.nft_layout import TABLE, Chain, Layout, Set
from plugins.portmap.conf import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Key, Rule
    from cni_common.spec.names import Address, Cidr, Subnet
    from plugins.portmap.conf import Conf, Port

PORTS = "hostports"  # chain with the look-ups
PREROUTING, OUTPUT, POSTROUTING = "hostport_prerouting", "hostport_output", "hostport_postrouting"
MASQUERADE = "hostport_masquerade"  # chain that masquerades all
CONDITIONS = "hostport_conditions"  # chain with jumps to those of conditions, then of ranges
RANGES = "-ranges"  # suffix of the chain and the maps of ranges
RANGE_PORTS_MIN = (
    16  # fewer ports in a row are single elements, at no cost to a node without ranges
)
# After other chains at the usual priority: a Service of kube-proxy precedes a host port.
AFTER_DSTNAT = nft_layout.DSTNAT + 10
LOOPBACK = (bytes([127, 0, 0, 0]), 8)


@dataclass(frozen=True, slots=True)
class Family:
    """The names and registers of one IP version."""

    packet: nft_layout.Family
    ports: str  # map from protocol and port
    at: str  # map from address, protocol and port
    hairpin: str  # verdict map from the container's address
    at_key: tuple[int, int]
    data: tuple[int, int]
    after_address: tuple[int, int]  # registers behind an address in a key

    def port_maps(self, suffix: str = "") -> tuple[Set, Set]:
        """Return the maps from ports; with a suffix, those of some conditions, or of ranges."""
        names, keys = (self.ports, self.at), (nft_table.PROTOCOL_PORT_KEY, self.at_key)
        if suffix != RANGES:
            one, other = (
                # Chains of conditions are made by nft, and do not count.
                Set(n + suffix, key, self.data, counted=not suffix)
                for n, key in zip(names, keys, strict=True)
            )
            return one, other
        fields = (1, 2)  # protocol and port
        return (
            Set(names[0] + suffix, keys[0], self.packet.key, fields=fields, counted=True),
            Set(
                names[1] + suffix,
                keys[1],
                self.packet.key,
                fields=(self.packet.key[0], *fields),
                counted=True,
            ),
        )


FAMILIES = {
    4: Family(
        nft_layout.FAMILIES[4],
        "hostports4",
        "hostports4_at",
        "hairpin4",
        nft_table.IPV4_PROTOCOL_PORT_KEY,
        nft_table.IPV4_PORT,
        (nft_expressions.REG32_01, nft_expressions.REG32_02),
    ),
    6: Family(
        nft_layout.FAMILIES[6],
        "hostports6",
        "hostports6_at",
        "hairpin6",
        nft_table.IPV6_PROTOCOL_PORT_KEY,
        nft_table.IPV6_PORT,
        (nft_expressions.REG32_04, nft_expressions.REG32_05),
    ),
}


def _to_ports() -> Iterator[Rule]:
    jump = nft_expressions.verdict(nft_table.JUMP, PORTS)
    yield [*nft_expressions.to_local_address(), jump]


def _to_containers() -> Iterator[Rule]:
    yield [nft_expressions.verdict(nft_table.JUMP, CONDITIONS)]
    for family in FAMILIES.values():
        for at in (True, False):
            yield [*_to_container(family, at=at)]


def _to_containers_with_ranges() -> Iterator[Rule]:
    for family in FAMILIES.values():
        for at in (True, False):
            yield [*_to_container(family, at=at)]
            yield [*_to_container(family, at=at, suffix=RANGES)]


def _to_container(family: Family, *, at: bool, suffix: str = "") -> Iterator[bytes]:
    """Yield the rule that sends a connection to the container which has its port."""
    protocol, port = family.after_address if at else (1, nft_expressions.REG32_01)
    packet = family.packet
    yield from nft_expressions.meta_nfproto(packet.protocol)
    if at:
        yield nft_expressions.network_bytes(packet.destination, packet.key[0])
    yield nft_expressions.meta_l4proto(protocol)
    yield nft_expressions.destination_port(port)
    yield nft_expressions.lookup((family.at if at else family.ports) + suffix, data=True)
    # A range leads to an address: each port keeps its number.
    port = 0 if suffix == RANGES else family.after_address[0]
    yield nft_expressions.dnat(packet.protocol, port)


def _to_hairpins() -> Iterator[Rule]:
    for family in FAMILIES.values():
        look_up = family.packet.look_up(family.packet.destination, family.hairpin)
        yield [*nft_expressions.destination_changed(), *look_up]


def _masquerade() -> Iterator[Rule]:
    yield [nft_expressions.masquerade()]


LAYOUT = Layout(
    TABLE,
    tuple(
        one
        for f in FAMILIES.values()
        for one in (*f.port_maps(), Set(f.hairpin, f.packet.key, nft_table.VERDICTS))
    ),
    (
        Chain(PORTS, _to_containers),
        Chain(MASQUERADE, _masquerade),
        Chain(CONDITIONS, is_open=True),
        Chain(PREROUTING, _to_ports, ("nat", nft_table.PREROUTING, AFTER_DSTNAT)),
        Chain(OUTPUT, _to_ports, ("nat", nft_table.OUTPUT, AFTER_DSTNAT)),
        Chain(POSTROUTING, _to_hairpins, ("nat", nft_table.POSTROUTING, nft_layout.SRCNAT)),
    ),
)


@dataclass(frozen=True, slots=True)
class Element:
    """An element of an attachment, and its description."""

    set: str
    key: bytes
    what: str
    data: bytes = b""
    goto: str = ""
    end: bytes = b""  # the last key of a range

    @property
    def at(self) -> Key:
        """The place of the element."""
        return (self.set, self.key, self.end) if self.end else (self.set, self.key)

    @property
    def content(self) -> tuple[bytes, bytes, bytes, str]:
        """The keys, the data and the chain of its verdict."""
        return self.key, self.end, self.data, self.goto

    def add(self, comment: str) -> Message:
        """Return the request that adds the element."""
        return TABLE.add_element(*self.at, goto=self.goto, data=self.data, comment=comment)


def elements(conf: Conf, suffix: str, *, ranges: bool = True) -> list[Element]:
    """Return all elements of an attachment; `suffix` of the network's own maps, or "".

    Without `ranges` each port is one.
    """
    found = []
    for port, cidr in conf.targets():
        if ranges and not suffix and is_range(port):
            found.append(_range(port, cidr))
        else:
            found += [_single(one, cidr, suffix) for one in port.each()]
    if conf.snat:
        for version in sorted({cidr.version for _, cidr in conf.targets()}):
            cidr = conf.addresses[version]
            goto = MASQUERADE if conf.masquerade_all else hairpin_name(cidr.network)
            name = FAMILIES[version].hairpin
            found.append(Element(name, cidr.ip.packed, f"the container's {cidr.ip}", goto=goto))
    return found


def is_range(port: Port) -> bool:
    """Tell whether ports in a row can be one element."""
    return port.count >= RANGE_PORTS_MIN and port.container_port == port.host_port


def _range(port: Port, cidr: Cidr) -> Element:
    name = _map_of(port, cidr) + RANGES
    return Element(
        name, _key(port), f"host ports {port}", cidr.ip.packed, end=_key(port, port.last)
    )


def _single(port: Port, cidr: Cidr, suffix: str) -> Element:
    data = cidr.ip.packed + port.container_port.to_bytes(2, "big") + bytes(2)
    return Element(_map_of(port, cidr) + suffix, _key(port), f"host port {port}", data)


def _map_of(port: Port, cidr: Cidr) -> str:
    family = FAMILIES[cidr.version]
    return family.ports if port.only_at is None else family.at


def suffix(conditions: Mapping[int, Sequence[str]]) -> str:
    """Return the suffix of the chain and the maps of these conditions, "" without conditions."""
    if not any(conditions.values()):
        return ""
    from hashlib import sha256

    text = repr(sorted((version, list(tokens)) for version, tokens in conditions.items()))
    return f"-{sha256(text.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=64)  # networks
def of_suffix(suffix: str) -> Layout:
    """Return the chain and maps of ranges, or of some conditions: `nft` makes these."""
    maps = tuple(one for family in FAMILIES.values() for one in family.port_maps(suffix))
    rules = _to_containers_with_ranges if suffix == RANGES else tuple
    return Layout(TABLE, maps, (Chain(PORTS + suffix, rules),))


def base_with_ranges(netns: NetNS) -> list[Message]:
    """Return the requests that make the base and what ranges need; EEXIST if that is there."""
    chain = PORTS + RANGES
    jump = TABLE.add_rule(CONDITIONS, nft_expressions.verdict(nft_table.JUMP, chain))
    return [*LAYOUT.base(netns), TABLE.add_chain(chain, new=True), *of_suffix(RANGES).base(), jump]


def hairpin_name(subnet: Subnet) -> str:
    """Return the chain that masquerades packets from a container's own subnet."""
    return f"hairpin-{subnet.network_address}-{subnet.prefixlen}".replace(":", ".")


@lru_cache(maxsize=64)  # networks
def hairpin(subnet: Subnet) -> Chain:
    """Return the chain of a subnet.

    Replies to a container of the same subnet would not pass this host, and packets of the host
    itself from 127.0.0.1 could get no reply at all.
    """
    return Chain(hairpin_name(subnet), lambda: _hairpin_rules(subnet))


def _hairpin_rules(subnet: Subnet) -> Iterator[Rule]:
    packet = FAMILIES[subnet.version].packet
    sources = [(subnet.network_address.packed, subnet.prefixlen)]
    if subnet.version == 4:
        sources.append(LOOPBACK)
    for network, prefixlen in sources:
        match = packet.within(packet.source, network, prefixlen)
        yield [*match, nft_expressions.masquerade()]


def key_at(protocol: str, port: int, address: Address | None) -> bytes:
    """Return the key of a connection to a port of the node."""
    number = bytes([PROTOCOLS[protocol], 0, 0, 0])
    return (address.packed if address else b"") + number + port.to_bytes(2, "big") + bytes(2)


def _key(port: Port, number: int = 0) -> bytes:
    return key_at(port.protocol, number or port.host_port, port.only_at)


def words_of(key: Key) -> str:
    """Return, for messages, the ports or the container's address under a key of our maps."""
    from ipaddress import ip_address

    name, *ends = key
    first = ends[0]
    version = next(v for v, one in FAMILIES.items() if name.startswith((one.ports, one.hairpin)))
    if name == FAMILIES[version].hairpin:
        return f"the source {ip_address(first)}"
    return f"host port{'s' if len(ends) > 1 else ''} {ports_of(key)} (IPv{version})"


def ports_of(key: Key) -> str:
    """Return the ports under a key of our maps: "8080/tcp", "192.0.2.1 8000-8099/udp"."""
    from ipaddress import ip_address

    ends = key[1:]
    first = ends[0]
    where = f"{ip_address(first[:-8])} " if len(first) > 8 else ""
    numbers = "-".join(str(int.from_bytes(one[-4:-2], "big")) for one in ends)
    protocol = next(name for name, number in PROTOCOLS.items() if number == first[-8])
    return f"{where}{numbers}/{protocol}"
