"""What port mappings are in `table inet pycni`: maps, chains, and the elements of an attachment.

A packet to an address of this host is looked up by protocol and port, first together with the
address, in one map per family; what is found is where it goes. Whether its source is masqueraded,
a verdict map tells by the container's address. A packet costs the same with one port or thousands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_table
from cni_common.node.masquerade import TABLE
from plugins.portmap.conf import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.spec.names import Address, Subnet
    from plugins.portmap.conf import Conf, Port

    Key = tuple[str, bytes]  # a set's name and what is looked up in it

PORTS = "hostports"  # chain with the look-ups
PREROUTING, OUTPUT, POSTROUTING = "hostport_prerouting", "hostport_output", "hostport_postrouting"
MASQUERADE = "hostport_masquerade"  # chain that masquerades all
CONDITIONS = "hostport_conditions"  # chain that leads to those of networks with conditions
_CHAINS = (PREROUTING, OUTPUT, POSTROUTING, PORTS, MASQUERADE, CONDITIONS)
# After what others do at the usual priority: a Service of kube-proxy goes before a host port.
_AFTER_DSTNAT = -100 + 10  # NF_IP_PRI_NAT_DST of linux/netfilter_ipv4.h
_SRCNAT = 100
_LOOPBACK = (bytes([127, 0, 0, 0]), 8)


@dataclass(frozen=True, slots=True)
class Family:
    """What IPv4 and IPv6 do differently here."""

    protocol: int
    ports: str  # map from protocol and port
    at: str  # map from address, protocol and port
    hairpin: str  # verdict map from the container's address
    key: tuple[int, int]
    at_key: tuple[int, int]
    address: tuple[int, int]
    data: tuple[int, int]
    source: int  # where the source address stands in the network header, bytes
    destination: int
    after_address: tuple[int, int]  # registers for what follows an address in a key


FAMILIES = {
    4: Family(
        nft_table.IPV4,
        "hostports4",
        "hostports4_at",
        "hairpin4",
        nft_table.PROTOCOL_PORT_KEY,
        nft_table.IPV4_PROTOCOL_PORT_KEY,
        nft_table.IPV4_KEY,
        nft_table.IPV4_PORT,
        12,
        16,
        (nft_expressions.REG32_01, nft_expressions.REG32_02),
    ),
    6: Family(
        nft_table.IPV6,
        "hostports6",
        "hostports6_at",
        "hairpin6",
        nft_table.PROTOCOL_PORT_KEY,
        nft_table.IPV6_PROTOCOL_PORT_KEY,
        nft_table.IPV6_KEY,
        nft_table.IPV6_PORT,
        8,
        24,
        (nft_expressions.REG32_04, nft_expressions.REG32_05),
    ),
}
MAPS = tuple(name for f in FAMILIES.values() for name in (f.ports, f.at, f.hairpin))
SIZE = len(MAPS) + len(_CHAINS)


@dataclass(frozen=True, slots=True)
class Element:
    """An element that an attachment needs, and what it is for."""

    set: str
    key: bytes
    what: str
    data: bytes = b""
    goto: str = ""

    def add(self, comment: str) -> Message:
        """Return the request that adds it."""
        return TABLE.add_element(
            self.set, self.key, goto=self.goto, data=self.data, comment=comment
        )


def elements(conf: Conf, suffix: str) -> list[Element]:
    """Return all elements of an attachment; `suffix` is that of the network's own maps, or ""."""
    found = []
    for port, cidr in conf.targets():
        family = FAMILIES[cidr.version]
        name = family.ports if port.only_at is None else family.at
        data = cidr.ip.packed + port.container_port.to_bytes(2, "big") + bytes(2)
        found.append(Element(name + suffix, _key(port), f"host port {port}", data))
    if conf.snat:
        for version in sorted({cidr.version for _, cidr in conf.targets()}):
            cidr = conf.addresses[version]
            goto = MASQUERADE if conf.masquerade_all else hairpin_chain(cidr.network)
            name = FAMILIES[version].hairpin
            found.append(Element(name, cidr.ip.packed, f"the container's {cidr.ip}", goto=goto))
    return found


def suffix(conditions: Mapping[int, Sequence[str]]) -> str:
    """Return what the names of the chain and the maps of these conditions end in, "" for none."""
    if not any(conditions.values()):
        return ""
    from hashlib import sha256

    text = repr(sorted((version, list(tokens)) for version, tokens in conditions.items()))
    return f"-{sha256(text.encode()).hexdigest()[:16]}"


def maps_of(suffix: str) -> tuple[str, ...]:
    """Return the maps from ports of networks with these conditions."""
    return tuple(name + suffix for f in FAMILIES.values() for name in (f.ports, f.at))


def hairpin_chain(subnet: Subnet) -> str:
    """Return the chain that masquerades what comes from a container's own subnet."""
    return f"hairpin-{subnet.network_address}-{subnet.prefixlen}".replace(":", ".")


@cache
def base() -> tuple[Message, ...]:
    """Return what makes all that attachments share."""
    messages = [TABLE.add()]
    for family in FAMILIES.values():
        messages += [
            TABLE.add_set(family.ports, family.key, data=family.data),
            TABLE.add_set(family.at, family.at_key, data=family.data),
            TABLE.add_set(family.hairpin, family.address, data=nft_table.VERDICTS),
        ]
    messages += [TABLE.add_chain(name) for name in (PORTS, MASQUERADE, CONDITIONS)]
    hooks = (
        (PREROUTING, nft_table.PREROUTING, _AFTER_DSTNAT),
        (OUTPUT, nft_table.OUTPUT, _AFTER_DSTNAT),
        (POSTROUTING, nft_table.POSTROUTING, _SRCNAT),
    )
    for name, hook, priority in hooks:
        messages.append(TABLE.add_base_chain(name, kind="nat", hook=hook, priority=priority))
    messages += [TABLE.delete_rule(name) for name in _CHAINS if name != CONDITIONS]
    jump = nft_expressions.verdict(nft_table.JUMP, PORTS)
    for name in (PREROUTING, OUTPUT):
        messages.append(TABLE.add_rule(name, *nft_expressions.to_local_address(), jump))
    messages.append(TABLE.add_rule(PORTS, nft_expressions.verdict(nft_table.JUMP, CONDITIONS)))
    for family in FAMILIES.values():
        messages.append(TABLE.add_rule(POSTROUTING, *_to_hairpin(family)))
        messages += [TABLE.add_rule(PORTS, *_to_container(family, at=at)) for at in (True, False)]
    return (*messages, TABLE.add_rule(MASQUERADE, nft_expressions.masquerade()))


def without_base() -> list[Message]:
    """Return what removes all that `base` makes; EBUSY while there are jumps in CONDITIONS."""
    rules = [TABLE.delete_rule(name) for name in _CHAINS if name != CONDITIONS]
    chains = [TABLE.delete_chain(name) for name in _CHAINS]
    return [*rules, *chains, *(TABLE.delete_set(name) for name in MAPS)]


@lru_cache(maxsize=64)  # networks
def hairpin(subnet: Subnet) -> tuple[Message, ...]:
    """Return what makes the chain of a subnet.

    Replies to a container of the same subnet would not pass this host, and what the host itself
    sends from 127.0.0.1 can have no reply at all.
    """
    chain, family = hairpin_chain(subnet), FAMILIES[subnet.version]
    sources = [(subnet.network_address.packed, subnet.prefixlen)]
    if subnet.version == 4:
        sources.append(_LOOPBACK)
    messages = [TABLE.add_chain(chain), TABLE.delete_rule(chain)]
    for network, prefixlen in sources:
        messages.append(
            TABLE.add_rule(
                chain,
                *nft_expressions.meta_nfproto(family.protocol),
                nft_expressions.network_bytes(family.source, len(network)),
                *nft_expressions.in_subnet(network, prefixlen),
                nft_expressions.masquerade(),
            )
        )
    return tuple(messages)


def without_chain(chain: str) -> list[Message]:
    """Return what removes a chain and its rules."""
    return [TABLE.delete_rule(chain), TABLE.delete_chain(chain)]


def key_at(protocol: str, port: int, address: Address | None) -> bytes:
    """Return what a connection to a port of the node is looked up by."""
    number = bytes([PROTOCOLS[protocol], 0, 0, 0])
    return (address.packed if address else b"") + number + port.to_bytes(2, "big") + bytes(2)


def _key(port: Port) -> bytes:
    return key_at(port.protocol, port.host_port, port.only_at)


def _to_hairpin(family: Family) -> Iterator[bytes]:
    yield from nft_expressions.destination_changed()
    yield from nft_expressions.meta_nfproto(family.protocol)
    yield nft_expressions.network_bytes(family.destination, family.address[0])
    yield nft_expressions.lookup(family.hairpin, verdict=True)


def _to_container(family: Family, *, at: bool) -> Iterator[bytes]:
    """Yield the rule that sends a connection to the container which has its port."""
    protocol, port = family.after_address if at else (1, nft_expressions.REG32_01)
    yield from nft_expressions.meta_nfproto(family.protocol)
    if at:
        yield nft_expressions.network_bytes(family.destination, family.address[0])
    yield nft_expressions.meta_l4proto(protocol)
    yield nft_expressions.destination_port(port)
    yield nft_expressions.lookup(family.at if at else family.ports, data=True)
    yield nft_expressions.dnat(family.protocol, family.after_address[0])
