"""nftables over netlink: one atomic transaction per call, no subprocess.

Numbers are those of linux/netfilter/nf_tables.h; the messages are in nftmessages.py.
Only tables of our own are written to. What the reference plugins left is read by name.
"""

import errno
import sys
from dataclasses import dataclass

from cni_common.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_NONREC,
    Message,
    NetlinkError,
)
from cni_common.nftmessages import (
    ChainMessage,
    ElementsMessage,
    NfgenMessage,
    RuleMessage,
    SetMessage,
    TableMessage,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cni_common.netns import NetNS

    Expression = tuple[str, list[tuple[str, Any]]]

INET, IPV4, BRIDGE, IPV6 = 1, 2, 7, 10  # NFPROTO_* of linux/netfilter.h
PREROUTING, POSTROUTING = 0, 4  # NF_INET_*, the same numbers as NF_BR_*
DROP, ACCEPT, JUMP, GOTO = 0, 1, -3, -4  # verdicts
IIFNAME_BYTES = 16  # IFNAMSIZ: interface names are compared with their padding
COMMENT_MAX_BYTES = 253  # NFT_USERDATA_MAXLEN, less type, length and the terminating NUL

_NFTABLES, _BATCH_BEGIN, _BATCH_END = 10, 0x10, 0x11  # linux/netfilter/nfnetlink.h
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = range(6)
_NEWRULE, _GETRULE, _DELRULE, _NEWSET, _GETSET, _DELSET = range(6, 12)
_NEWSETELEM, _GETSETELEM, _DELSETELEM = range(12, 15)
TRIES = 10  # of a transaction that is outrun by others
_SET_MAP, _VERDICTS, _INVERT = 0x8, 0xFFFFFF00, 1
_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2  # of 16 bytes each
_META_IIFNAME, _META_NFPROTO = 6, 15
_COMMENT = 0  # NFTNL_UDATA_*_COMMENT of libnftnl: where nft keeps a comment

# NFTNL_UDATA_SET_KEYBYTEORDER of libnftnl, so that `nft list` prints interface names.
_HOST_ORDER_KEY = bytes([0, 4]) + (1).to_bytes(4, sys.byteorder)

# Key of a set: how many bytes, and nft's own type number, which the kernel keeps for `nft list`.
IPV4_KEY, IPV6_KEY, IIFNAME_KEY = (4, 7), (16, 8), (IIFNAME_BYTES, 41)
IIFNAME_ETHER_KEY = (IIFNAME_BYTES + 8, 41 << 6 | 9)  # a part is padded to 4 bytes


@dataclass(frozen=True, slots=True)
class Table:
    """A table, and the requests for what it holds."""

    family: int
    name: str

    def add(self) -> Message:
        """Return the request that creates the table where there is none."""
        return self._message(
            "add table", _NEWTABLE, TableMessage, [("NAME", self.name)], flags=NLM_F_CREATE
        )

    def delete(self) -> Message:
        """Return the request that deletes the table; EBUSY while it holds anything."""
        flags = NLM_F_NONREC
        return self._message(
            "delete table", _DELTABLE, TableMessage, [("NAME", self.name)], flags=flags
        )

    def add_chain(self, name: str) -> Message:
        """Return the request that creates a regular chain where there is none."""
        attrs = [("TABLE", self.name), ("NAME", name)]
        return self._message(
            f"add chain '{name}'", _NEWCHAIN, ChainMessage, attrs, flags=NLM_F_CREATE
        )

    def add_base_chain(self, name: str, *, kind: str, hook: int, priority: int) -> Message:
        """Return the request that creates a chain of type `kind` at a netfilter hook."""
        where = {"attrs": [("HOOKNUM", hook), ("PRIORITY", priority & 0xFFFFFFFF)]}
        attrs = [("TABLE", self.name), ("NAME", name), ("HOOK", where), ("TYPE", kind)]
        return self._message(
            f"add chain '{name}'", _NEWCHAIN, ChainMessage, attrs, flags=NLM_F_CREATE
        )

    def delete_chain(self, name: str) -> Message:
        """Return the request that deletes a chain; EBUSY while something refers to it."""
        attrs = [("TABLE", self.name), ("NAME", name)]
        return self._message(f"delete chain '{name}'", _DELCHAIN, ChainMessage, attrs, flags=0)

    def add_rule(self, chain: str, *expressions: "Expression") -> Message:
        """Return the request that appends a rule."""
        elements = [
            {"attrs": [("NAME", name), ("DATA", {"attrs": attrs})]} for name, attrs in expressions
        ]
        attrs = [("TABLE", self.name), ("CHAIN", chain), ("EXPRESSIONS", elements)]
        flags = NLM_F_CREATE | NLM_F_APPEND
        return self._message(f"add rule to '{chain}'", _NEWRULE, RuleMessage, attrs, flags=flags)

    def delete_rule(self, chain: str, handle: int = 0) -> Message:
        """Return the request that deletes one rule, or with no handle all rules of `chain`."""
        attrs: list[tuple[str, Any]] = [("TABLE", self.name), ("CHAIN", chain)]
        if handle:
            attrs.append(("HANDLE", handle))
        return self._message(f"delete rules of '{chain}'", _DELRULE, RuleMessage, attrs, flags=0)

    def add_set(self, name: str, key: tuple[int, int], *, verdicts: bool = False) -> Message:
        """Return the request that creates a set, or a map from its keys to verdicts."""
        length, kind = key
        attrs = [("TABLE", self.name), ("NAME", name), ("KEY_TYPE", kind), ("KEY_LEN", length)]
        if verdicts:
            attrs += [("FLAGS", _SET_MAP), ("DATA_TYPE", _VERDICTS), ("DATA_LEN", 16)]
        attrs += [("ID", 1), ("USERDATA", _HOST_ORDER_KEY if key is IIFNAME_KEY else b"")]
        return self._message(f"add set '{name}'", _NEWSET, SetMessage, attrs, flags=NLM_F_CREATE)

    def delete_set(self, name: str) -> Message:
        """Return the request that deletes a set; EBUSY while it has elements or a rule uses it."""
        attrs = [("TABLE", self.name), ("NAME", name)]
        return self._message(f"delete set '{name}'", _DELSET, SetMessage, attrs, flags=NLM_F_NONREC)

    def add_element(
        self, set_name: str, key: bytes, *, goto: str = "", comment: str = ""
    ) -> Message:
        """Return the request that adds an element; EEXIST when the key is there."""
        attrs: list[tuple[str, Any]] = [("KEY", _value(key))]
        if goto:
            attrs.append(("DATA", _verdict(GOTO, goto)))
        if comment:
            attrs.append(("USERDATA", _encode_comment(comment)))
        what = f"add element to '{set_name}'"
        return self._elements(
            what, _NEWSETELEM, set_name, flags=NLM_F_CREATE | NLM_F_EXCL, element=attrs
        )

    def delete_element(self, set_name: str, key: bytes) -> Message:
        """Return the request that deletes an element; ENOENT when there is none."""
        what = f"delete element of '{set_name}'"
        return self._elements(what, _DELSETELEM, set_name, flags=0, element=[("KEY", _value(key))])

    # --- what is there ---

    def element(self, netns: "NetNS", set_name: str, key: bytes) -> "Element | None":
        """Return the element with this key."""
        what = f"look up element of '{set_name}'"
        query = self._elements(what, _GETSETELEM, set_name, flags=0, element=[("KEY", _value(key))])
        found = [element for answer in _query(netns, query) for element in _elements_of(answer)]
        return found[0] if found else None

    def elements(self, netns: "NetNS", set_name: str) -> "list[Element]":
        """Return all elements of a set; none when there is no such set."""
        attrs = [("TABLE", self.name), ("SET", set_name)]
        query = self._message(
            f"list set '{set_name}'", _GETSETELEM, ElementsMessage, attrs, flags=NLM_F_DUMP
        )
        return [element for answer in _query(netns, query) for element in _elements_of(answer)]

    def rules(self, netns: "NetNS", chain: str) -> "list[Rule]":
        """Return the rules of a chain; none when there is no such chain."""
        attrs = [("TABLE", self.name), ("CHAIN", chain)]
        query = self._message(
            f"list chain '{chain}'", _GETRULE, RuleMessage, attrs, flags=NLM_F_DUMP
        )
        # Old kernels send every chain of the table.
        answers = [a for a in _query(netns, query) if a.get_attr("CHAIN") == chain]
        return [
            Rule(
                answer.get_attr("HANDLE"),
                _decode_comment(answer.get_attr("USERDATA")),
                _target(answer.get_attr("EXPRESSIONS") or ()),
                _compared(answer.get_attr("EXPRESSIONS") or ()),
            )
            for answer in answers
        ]

    def has_chain(self, netns: "NetNS", chain: str) -> bool:
        """Tell whether there is a chain of that name."""
        attrs = [("TABLE", self.name), ("NAME", chain)]
        return bool(
            _query(
                netns, self._message(f"look up '{chain}'", _GETCHAIN, ChainMessage, attrs, flags=0)
            )
        )

    def _elements(
        self, what: str, kind: int, set_name: str, *, flags: int, element: "list[tuple[str, Any]]"
    ) -> Message:
        attrs = [("TABLE", self.name), ("SET", set_name), ("ELEMENTS", [{"attrs": element}])]
        return self._message(what, kind, ElementsMessage, attrs, flags=flags)

    def _message(
        self,
        what: str,
        kind: int,
        body_type: "type[NfgenMessage]",
        attrs: "list[tuple[str, Any]]",
        *,
        flags: int,
    ) -> Message:
        body = body_type()
        body["nfgen_family"] = self.family
        body["attrs"] = attrs
        text = f"nftables: {what} in table '{self.name}'"
        return Message(text, _NFTABLES << 8 | kind, flags | NLM_F_ACK, body)


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set or verdict map."""

    key: bytes
    chain: str  # where its verdict leads to, "" in a plain set
    comment: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as far as it matters here."""

    handle: int
    comment: str
    target: str  # the chain it jumps or goes to, ""
    compared: tuple[bytes, ...]  # what it compares with, in its order


def apply(netns: "NetNS", messages: "Sequence[Message]") -> None:
    """Carry out `messages` in one transaction: all or nothing. Raises NetlinkError."""
    frame = [_frame("begin", _BATCH_BEGIN), *messages, _frame("end", _BATCH_END)]
    netns.netfilter.exchange(frame)


def apply_deletions(netns: "NetNS", deletions: "Callable[[], Sequence[Message]]") -> bool:
    """Carry out what `deletions` returns; False when that is nothing. Raises NetlinkError.

    It is asked again when somebody else, a GC beside a DEL, was faster with a part of it.
    """
    for attempt in range(TRIES):
        messages = deletions()
        try:
            if messages:
                apply(netns, messages)
        except NetlinkError as error:
            if error.errno != errno.ENOENT or attempt == TRIES - 1:
                raise
        else:
            return bool(messages)
    raise AssertionError  # pragma: no cover - the loop returns or raises


def meta_nfproto(family: int) -> "list[Expression]":
    """Return a match on the packet's family."""
    return [("meta", [("DREG", _REG_1), ("KEY", _META_NFPROTO)]), _compare(bytes([family]))]


def iifname(register: int = _REG_1) -> "Expression":
    """Return a load of the input interface's name."""
    return ("meta", [("DREG", register), ("KEY", _META_IIFNAME)])


def ether_saddr(register: int = _REG_2) -> "Expression":
    """Return a load of the source MAC."""
    return ("payload", [("DREG", register), ("BASE", 0), ("OFFSET", 6), ("LEN", 6)])


def network_bytes(offset: int, length: int) -> "Expression":
    """Return a load of bytes of the network header."""
    return ("payload", [("DREG", _REG_1), ("BASE", 1), ("OFFSET", offset), ("LEN", length)])


def in_subnet(network: bytes, prefixlen: int) -> "list[Expression]":
    """Return a comparison of the loaded address with a network."""
    bits = len(network) * 8
    mask = ((1 << bits) - (1 << (bits - prefixlen))).to_bytes(len(network), "big")
    masked = [("SREG", _REG_1), ("DREG", _REG_1), ("LEN", len(network)), ("MASK", _value(mask))]
    return [("bitwise", [*masked, ("XOR", _value(bytes(len(network))))]), _compare(network)]


def lookup(set_name: str, *, verdict: bool = False, invert: bool = False) -> "Expression":
    """Return a look-up of the loaded key, in a set or (`verdict`) in a verdict map."""
    attrs: list[tuple[str, Any]] = [("SET", set_name), ("SREG", _REG_1)]
    if verdict:
        attrs.append(("DREG", _REG_VERDICT))
    if invert:
        attrs.append(("FLAGS", _INVERT))
    return ("lookup", attrs)


def verdict(code: int, chain: str = "") -> "Expression":
    """Return the verdict `code`, for JUMP and GOTO with its chain."""
    return ("immediate", [("DREG", _REG_VERDICT), ("DATA", _verdict(code, chain))])


def masquerade() -> "Expression":
    """Return the masquerade statement."""
    return ("masq", [])


def _compare(value: bytes) -> "Expression":
    return ("cmp", [("SREG", _REG_1), ("OP", 0), ("DATA", _value(value))])


def _value(data: bytes) -> "dict[str, Any]":
    return {"attrs": [("VALUE", data)]}


def _verdict(code: int, chain: str) -> "dict[str, Any]":
    attrs: list[tuple[str, Any]] = [("CODE", code & 0xFFFFFFFF)]
    if chain:
        attrs.append(("CHAIN", chain))
    return {"attrs": [("VERDICT", {"attrs": attrs})]}


def _frame(what: str, kind: int) -> Message:
    body = NfgenMessage()
    body["res_id"] = _NFTABLES
    return Message(f"nftables: {what} of transaction", kind, 0, body)


def _query(netns: "NetNS", message: Message) -> "list[Any]":
    """Return the answers, none when what was asked for does not exist."""
    try:
        if message.flags & NLM_F_DUMP:
            return netns.netfilter.dump(message)
        return netns.netfilter.exchange([message])[0]
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _elements_of(answer: "Any") -> "list[Element]":
    found = []
    for item in answer.get_attr("ELEMENTS") or ():
        data = item.get_attr("DATA")
        where = data.get_attr("VERDICT") if data else None
        found.append(
            Element(
                bytes(item.get_attr("KEY").get_attr("VALUE")),
                (where.get_attr("CHAIN") if where else "") or "",
                _decode_comment(item.get_attr("USERDATA")),
            )
        )
    return found


def _target(expressions: "Any") -> str:
    for expression in expressions:
        if expression.get_attr("NAME") == "immediate":
            where = expression.get_attr("DATA").get_attr("DATA").get_attr("VERDICT")
            return (where.get_attr("CHAIN") if where else "") or ""
    return ""


def _compared(expressions: "Any") -> tuple[bytes, ...]:
    return tuple(
        bytes(expression.get_attr("DATA").get_attr("DATA").get_attr("VALUE"))
        for expression in expressions
        if expression.get_attr("NAME") == "cmp"
    )


def _encode_comment(comment: str) -> bytes:
    text = comment.encode()[:COMMENT_MAX_BYTES] + bytes(1)
    return bytes([_COMMENT, len(text)]) + text


def _decode_comment(data: bytes | None) -> str:
    data = bytes(data or b"")
    while len(data) >= 2:
        kind, length = data[0], data[1]
        if kind == _COMMENT:
            return data[2 : 2 + length].rstrip(bytes(1)).decode("utf-8", "replace")
        data = data[2 + length :]
    return ""
