"""Rules of table filter in the form of iptables: as text, and as nftables expressions.

The expressions are those of iptables-nft, xtables extensions included: iptables-nft refuses to list
or change a table with any other expression in it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_table
from cni_common.kernel.netlink import attribute, attributes, be32, string, string_of
from cni_common.kernel.nft_layout import FAMILIES
from cni_common.kernel.nft_messages import each_expression

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.nft_messages import Rule
    from cni_common.spec.names import Address

    Signature = tuple[object, ...]

ACCEPT, DROP, RETURN = "ACCEPT", "DROP", "RETURN"
_VERDICTS = {ACCEPT: nft_table.ACCEPT, DROP: nft_table.DROP, RETURN: nft_table.RETURN}
_MATCH_NAME, _MATCH_REV, _MATCH_INFO = 1, 2, 3  # NFTA_MATCH_* of linux/netfilter/nf_tables.h
_COMMENT_BYTES = 256  # struct xt_comment_info of linux/netfilter/xt_comment.h
# struct xt_conntrack_mtinfo3 of linux/netfilter/xt_conntrack.h: eight addresses, two numbers,
# five ports, the flags to match and to invert, the states; padded to 8 bytes.
_CONNTRACK = struct.Struct("=128x8x10xHHH16x")
_BY_STATE, _RELATED_ESTABLISHED = 1, 1 << 1 | 1 << 2


@dataclass(frozen=True, slots=True)
class Line:
    """One rule: its matches and its target."""

    target: str
    source: Address | None = None
    destination: Address | None = None
    iif: str = ""
    oif: str = ""
    but_oif: str = ""  # any output interface except this one
    established: bool = False  # only packets of accepted connections
    comment: str = ""

    def text(self) -> str:
        """Return the rule in the syntax of iptables, without its chain."""
        words = []
        if self.source:
            words.append(f"-s {self.source}/{self.source.max_prefixlen}")
        if self.destination:
            words.append(f"-d {self.destination}/{self.destination.max_prefixlen}")
        if self.iif:
            words.append(f"-i {self.iif}")
        if self.oif:
            words.append(f"-o {self.oif}")
        if self.but_oif:
            words.append(f"! -o {self.but_oif}")
        if self.established:
            words.append("-m conntrack --ctstate RELATED,ESTABLISHED")
        if self.comment:
            words.append(f'-m comment --comment "{self.comment}"')
        return " ".join([*words, f"-j {self.target}"])

    def expressions(self) -> Iterator[bytes]:
        """Yield the rule's nftables expressions."""
        if self.source:
            yield from _is_at(FAMILIES[self.source.version].source, self.source)
        if self.destination:
            yield from _is_at(FAMILIES[self.destination.version].destination, self.destination)
        if self.iif:
            yield nft_expressions.iifname()
            yield nft_expressions.equals(_name(self.iif))
        if self.oif or self.but_oif:
            yield nft_expressions.oifname()
            yield nft_expressions.equals(_name(self.oif or self.but_oif), invert=bool(self.but_oif))
        if self.established:
            states = _CONNTRACK.pack(_BY_STATE, 0, _RELATED_ESTABLISHED)
            yield _match("conntrack", 3, states)
        if self.comment:
            yield _match("comment", 0, self.comment.encode().ljust(_COMMENT_BYTES, bytes(1)))
        yield nft_expressions.counter()
        if self.target in _VERDICTS:
            yield nft_expressions.verdict(_VERDICTS[self.target])
        else:
            yield nft_expressions.verdict(nft_table.JUMP, self.target)

    def signature(self) -> Signature:
        """Return the rule's signature, as `signature_of` reads it from a listed rule."""
        return _signature(b"".join(attribute(1, part) for part in self.expressions()), "")


def signature_of(rule: Rule) -> Signature:
    """Return a rule's matches and target, without its counters."""
    return _signature(rule.expressions, rule.comment)


def addresses_in(key: str | Signature) -> list[Address]:
    """Return the addresses in the text or the signature of a rule."""
    if isinstance(key, str):
        words = key.split()
        places = [at for at, word in enumerate(words) if word in ("-s", "-d")]
        return [ip_interface(words[at + 1]).ip for at in places]
    values = [part[2] for part in key if isinstance(part, tuple) and part[0] == "cmp"]
    return [ip_address(value) for value in values if len(value) in (4, 16)]


def _signature(expressions: bytes, comment: str) -> Signature:
    parts: list[object] = []
    for name, data in each_expression(expressions):
        attrs = attributes(data)
        if name == "match" and string_of(attrs.get(_MATCH_NAME)) == "comment":
            comment = string_of(attrs.get(_MATCH_INFO))
        elif name == "match":
            info = attrs.get(_MATCH_INFO, b"").rstrip(bytes(1))
            parts.append((name, string_of(attrs.get(_MATCH_NAME)), info))
        elif name == "cmp":
            parts.append((name, attrs[2], attributes(attrs[3])[1]))
        elif name == "immediate":
            parts.append((name, tuple(attributes(attributes(attrs[2]).get(2, b"")).items())))
        elif name in ("payload", "meta"):
            # Into which register does not matter.
            parts.append((name, *(value for key, value in sorted(attrs.items()) if key != 1)))
        elif name != "counter":
            parts.append((name, data))
    return (comment, *parts)


def _is_at(offset: int, address: Address) -> Iterator[bytes]:
    yield nft_expressions.network_bytes(offset, len(address.packed))
    yield nft_expressions.equals(address.packed)


def _match(name: str, revision: int, info: bytes) -> bytes:
    attrs = string(_MATCH_NAME, name) + be32(_MATCH_REV, revision) + attribute(_MATCH_INFO, info)
    return nft_expressions.expression("match", attrs)


def _name(interface: str) -> bytes:
    return interface.encode("utf-8", "surrogateescape") + bytes(1)
