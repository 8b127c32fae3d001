"""Messages of nftables: chains, rules, sets and their elements, packed by hand.

Attributes and their numbers are those of linux/netfilter/nf_tables.h, without their NFTA_ prefix.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cni_common.kernel.netlink import attribute, attributes, be32, each_attribute, string, string_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 1, 3, 4, 7
_HOOK_HOOKNUM, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN = range(1, 6)
_SET_DATA_TYPE, _SET_DATA_LEN, _SET_DESC, _SET_ID, _SET_USERDATA = 6, 7, 9, 10, 13
_SET_EXPRESSION, _SET_EXPRESSIONS = 17, 18
_DESC_CONCAT, _FIELD_LEN = 2, 1
_SET_MAP, _SET_OF_RANGES = 0x8, 0x4 | 0x80  # NFT_SET_INTERVAL and NFT_SET_CONCAT
_LIST_ELEM = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_IMMEDIATE_DATA, _CMP_DATA = 2, 3
_ELEM_KEY, _ELEM_DATA, _ELEM_USERDATA, _ELEM_EXPRESSION, _ELEM_KEY_END = 1, 2, 6, 7, 10
_COUNTER, _COUNTER_BYTES, _COUNTER_PACKETS = "counter", 1, 2
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_GOTO = -4
_COMMENT = 0  # NFTNL_UDATA_*_COMMENT of libnftnl: nft's type of comments
COMMENT_MAX_BYTES = 253  # NFT_USERDATA_MAXLEN, less type, length and the terminating NUL
# NFTNL_UDATA_SET_KEYBYTEORDER of libnftnl, so that `nft list` prints interface names.
_HOST_ORDER_KEY = bytes([0, 4]) + (1).to_bytes(4, sys.byteorder)


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set or map."""

    key: bytes
    chain: str  # the chain of its verdict, "" outside of a verdict map
    comment: str
    data: bytes  # the value in a map that is no verdict map
    end: bytes = b""  # the last key of an element that is a range


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as far as it matters here."""

    handle: int
    comment: str
    target: str  # the chain it jumps or goes to, ""
    compared: tuple[bytes, ...]  # values of its comparisons, in order
    expressions: bytes = b""  # the whole NFTA_RULE_EXPRESSIONS


def base_chain(table: str, name: str, *, type: str, hook: int, priority: int) -> bytes:
    """Return the attributes of a new chain of type `type` at a netfilter hook."""
    where = be32(_HOOK_HOOKNUM, hook) + be32(_HOOK_PRIORITY, priority & 0xFFFFFFFF)
    names = string(_CHAIN_TABLE, table) + string(_CHAIN_NAME, name)
    return names + attribute(_CHAIN_HOOK, where) + string(_CHAIN_TYPE, type)


def rule(table: str, chain: str, *expressions: bytes, comment: str = "") -> bytes:
    """Return the attributes of a new rule; `expressions` are those of nft_expressions."""
    items = [attribute(_LIST_ELEM, expression) for expression in expressions]
    names = string(_RULE_TABLE, table) + string(_RULE_CHAIN, chain)
    more = attribute(_RULE_USERDATA, userdata(comment)) if comment else b""
    return names + attribute(_RULE_EXPRESSIONS, *items) + more


def new_set(
    table: str,
    name: str,
    key: tuple[int, int],
    *,
    data: tuple[int, int] | None = None,
    fields: Sequence[int] = (),
    host_order: bool = False,
) -> bytes:
    """Return the attributes of a new set, or of a map from its keys to `data`.

    `key` and `data` are a length and nft's number of the type. With `fields`, the lengths of the
    parts of a key in bytes, its elements are ranges (Linux 5.6).
    """
    attrs = [string(_SET_TABLE, table), string(_SET_NAME, name)]
    flags = (_SET_MAP if data else 0) | (_SET_OF_RANGES if fields else 0)
    if flags:
        attrs.append(be32(_SET_FLAGS, flags))
    attrs += [be32(_SET_KEY_TYPE, key[1]), be32(_SET_KEY_LEN, key[0])]
    if data:
        attrs += [be32(_SET_DATA_TYPE, data[1]), be32(_SET_DATA_LEN, data[0])]
    if fields:
        parts = [attribute(_LIST_ELEM, be32(_FIELD_LEN, length)) for length in fields]
        attrs.append(attribute(_SET_DESC, attribute(_DESC_CONCAT, *parts)))
    attrs.append(be32(_SET_ID, 1))
    if host_order:
        attrs.append(attribute(_SET_USERDATA, _HOST_ORDER_KEY))
    return b"".join(attrs)


def element(
    key: bytes, end: bytes = b"", *, goto: str = "", data: bytes = b"", comment: str = ""
) -> bytes:
    """Return the attributes of an element, in a map with a verdict or with data.

    A range has the last key `end`.
    """
    attrs = attribute(_ELEM_KEY, attribute(_DATA_VALUE, key))
    if end:
        attrs += attribute(_ELEM_KEY_END, attribute(_DATA_VALUE, end))
    if goto:
        verdict = be32(_VERDICT_CODE, _GOTO & 0xFFFFFFFF) + string(_VERDICT_CHAIN, goto)
        attrs += attribute(_ELEM_DATA, attribute(_DATA_VERDICT, verdict))
    if data:
        attrs += attribute(_ELEM_DATA, attribute(_DATA_VALUE, data))
    if comment:
        attrs += attribute(_ELEM_USERDATA, userdata(comment))
    return attrs


@lru_cache(maxsize=8)  # attachments: each has its comment at all of its elements
def userdata(comment: str) -> bytes:
    """Return the NFTA_*_USERDATA of an object with this comment."""
    text = comment.encode()[:COMMENT_MAX_BYTES] + bytes(1)
    return bytes([_COMMENT, len(text)]) + text


def elements(items: bytes) -> list[Element]:
    """Return the elements in a list of them."""
    found = []
    for _, item in each_attribute(items):
        parts = attributes(item)
        data = attributes(parts.get(_ELEM_DATA, b""))
        found.append(
            Element(
                attributes(parts[_ELEM_KEY])[_DATA_VALUE],
                string_of(attributes(data.get(_DATA_VERDICT, b"")).get(_VERDICT_CHAIN)),
                comment(parts.get(_ELEM_USERDATA)),
                data.get(_DATA_VALUE, b""),
                attributes(parts.get(_ELEM_KEY_END, b"")).get(_DATA_VALUE, b""),
            )
        )
    return found


def counter() -> bytes:
    """Return one more attribute of a new set: its elements count the packets that look them up.

    A kernel before Linux 5.7 counts nothing.
    """
    expression = string(_EXPR_NAME, _COUNTER) + attribute(_EXPR_DATA, b"")
    return attribute(_SET_EXPRESSION, expression)


def is_counted(set_attributes: Mapping[int, bytes]) -> bool:
    """Tell whether the elements of a set count."""
    return _SET_EXPRESSION in set_attributes or _SET_EXPRESSIONS in set_attributes


def counted(items: bytes) -> list[tuple[int, int] | None]:
    """Return packets and bytes that each element in a list has counted, None if it does not."""
    return [_counted(attributes(item).get(_ELEM_EXPRESSION)) for _, item in each_attribute(items)]


def _counted(expression: bytes | None) -> tuple[int, int] | None:
    parts = attributes(expression or b"")
    if string_of(parts.get(_EXPR_NAME)) != _COUNTER:
        return None
    found = attributes(parts[_EXPR_DATA])
    packets, size = (int.from_bytes(found[n], "big") for n in (_COUNTER_PACKETS, _COUNTER_BYTES))
    return packets, size


def comment(userdata: bytes | None) -> str:
    """Return the comment in an object's NFTA_*_USERDATA, "" for none."""
    data = userdata or b""
    while len(data) >= 2:
        kind, length = data[0], data[1]
        if kind == _COMMENT:
            return data[2 : 2 + length].rstrip(bytes(1)).decode("utf-8", "replace")
        data = data[2 + length :]
    return ""


def rule_of(attrs: Mapping[int, bytes]) -> Rule:
    """Return the rule that has these attributes."""
    expressions = attrs.get(_RULE_EXPRESSIONS, b"")
    return Rule(
        int.from_bytes(attrs[_RULE_HANDLE], "big"),
        comment(attrs.get(_RULE_USERDATA)),
        target(expressions),
        compared(expressions),
        expressions,
    )


def target(expressions: bytes) -> str:
    """Return the chain that a rule jumps or goes to, "" for none."""
    for name, data in each_expression(expressions):
        if name == "immediate":
            verdict = attributes(attributes(data)[_IMMEDIATE_DATA]).get(_DATA_VERDICT, b"")
            return string_of(attributes(verdict).get(_VERDICT_CHAIN))
    return ""


def immediate(data: bytes) -> bytes:
    """Return the constant in the attributes of an expression `immediate`, b"" for a verdict."""
    return attributes(attributes(data)[_IMMEDIATE_DATA]).get(_DATA_VALUE, b"")


def compared(expressions: bytes) -> tuple[bytes, ...]:
    """Return the values of a rule's comparisons, in order."""
    return tuple(
        attributes(attributes(data)[_CMP_DATA])[_DATA_VALUE]
        for name, data in each_expression(expressions)
        if name == "cmp"
    )


def each_expression(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and attributes of each expression of a rule."""
    for _, item in each_attribute(data):
        parts = attributes(item)
        yield string_of(parts[_EXPR_NAME]), parts.get(_EXPR_DATA, b"")
