"""nftables over netlink: one atomic transaction per call, no subprocess.

Numbers are those of linux/netfilter/nf_tables.h; the longer messages are in nft_messages.py.
Only tables of our own are written to. Remains of the reference plugins are read by name.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from cni_common.kernel import nft_messages
from cni_common.kernel.netlink import (
    HEADER_SIZE,
    NLATTR_SIZE,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_NONREC,
    Message,
    NetlinkError,
    attribute,
    attributes,
    string,
    string_of,
)
from cni_common.kernel.nft_messages import Element, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_expressions import Expression

    Key = tuple[str, *tuple[bytes, ...]]  # a set, and the key of an element, or a range's ends

DROP, ACCEPT, JUMP, GOTO, RETURN = 0, 1, -3, -4, -5  # verdicts
INET, IPV4, BRIDGE, IPV6 = 1, 2, 7, 10  # NFPROTO_* of linux/netfilter.h
PREROUTING, FORWARD, OUTPUT, POSTROUTING = 0, 2, 3, 4  # NF_INET_*, the same as NF_BR_*
IIFNAME_BYTES = 16  # IFNAMSIZ: interface names are compared with their padding
_FAMILY_WORDS = {INET: "inet", IPV4: "ip", BRIDGE: "bridge", IPV6: "ip6"}  # in nft(8)

_NFTABLES, _BATCH_BEGIN, _BATCH_END = 10, 0x10, 0x11  # linux/netfilter/nfnetlink.h
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = range(6)
_NEWRULE, _GETRULE, _DELRULE, _NEWSET, _GETSET, _DELSET = range(6, 12)
_NEWSETELEM, _GETSETELEM, _DELSETELEM = range(12, 15)
_ADD_ELEMENTS, _DELETE_ELEMENTS = _NFTABLES << 8 | _NEWSETELEM, _NFTABLES << 8 | _DELSETELEM
_LIST_BYTES = 60_000  # of the elements in one message; an attribute's length has 16 bits
# Of a query, or of opening the socket, where the kernel has no nftables.
NO_NFTABLES = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
TRIES = 10  # attempts of a transaction that other calls outrun
# Errors after which the elements are looked at again: an element was gone, the answer was lost.
LOOK_AGAIN = (errno.ENOENT, errno.ENOBUFS)
TAKEN = (errno.EEXIST, errno.ENOTEMPTY)  # a key exists, or a range in part
_NFGENMSG = struct.Struct("=BBH")  # family, version 0, resource id in network order
_TABLE_NAME, _TABLE_USE = 1, 3
_CHAIN_TABLE, CHAIN_HANDLE, _CHAIN_NAME, CHAIN_POLICY, CHAIN_USE, CHAIN_USERDATA = 1, 2, 3, 5, 6, 12
_CHAIN_HOOK, _CHAIN_TYPE, _HOOK_NUMBER = 4, 7, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE = 1, 2, 3
_SET_TABLE, _SET_NAME = 1, 2
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS, _LIST_ELEM = 1, 2, 3, 1

# Key of a set: bytes, and nft's own type number, which the kernel keeps for `nft list`.
IPV4_KEY, IPV6_KEY, IIFNAME_KEY = (4, 7), (16, 8), (IIFNAME_BYTES, 41)
IIFNAME_OIFNAME_KEY = (2 * IIFNAME_BYTES, 41 << 6 | 41)
IIFNAME_ETHER_KEY = (IIFNAME_BYTES + 8, 41 << 6 | 9)  # a part is padded to 4 bytes
PROTOCOL_PORT_KEY = (8, 12 << 6 | 13)
IPV4_IPV4_KEY, IPV6_IPV6_KEY = (8, 7 << 6 | 7), (32, 8 << 6 | 8)
IPV4_PROTOCOL_PORT_KEY = (12, 7 << 12 | 12 << 6 | 13)
IPV6_PROTOCOL_PORT_KEY = (24, 8 << 12 | 12 << 6 | 13)
# Data of a map, likewise.
VERDICTS = (16, 0xFFFFFF00)
IPV4_PORT, IPV6_PORT = (8, 7 << 6 | 13), (20, 8 << 6 | 13)


@dataclass(frozen=True, slots=True)
class Table:
    """A table, and the requests for its objects."""

    family: int
    name: str

    def __str__(self) -> str:
        return f"table {_FAMILY_WORDS[self.family]} {self.name}"

    def add(self) -> Message:
        """Return the request that creates the table unless it exists."""
        body = string(_TABLE_NAME, self.name)
        return self._message("add table", _NEWTABLE, body, flags=NLM_F_CREATE)

    def delete(self, *, filled: bool = False) -> Message:
        """Return the request that deletes the table; EBUSY unless it is empty, or `filled`."""
        body = string(_TABLE_NAME, self.name)
        flags = 0 if filled else NLM_F_NONREC
        return self._message("delete table", _DELTABLE, body, flags=flags)

    def add_chain(self, name: str, *, comment: str = "", new: bool = False) -> Message:
        """Return the request that creates a regular chain unless it exists; EEXIST if `new`."""
        body = self._chain(name)
        if comment:
            body += attribute(CHAIN_USERDATA, nft_messages.userdata(comment))
        flags = NLM_F_CREATE | (NLM_F_EXCL if new else 0)
        return self._message(f"add chain '{name}'", _NEWCHAIN, body, flags=flags)

    def add_base_chain(self, name: str, *, type: str, hook: int, priority: int) -> Message:
        """Return the request that creates a chain of type `type` at a netfilter hook."""
        body = nft_messages.base_chain(self.name, name, type=type, hook=hook, priority=priority)
        return self._message(f"add chain '{name}'", _NEWCHAIN, body, flags=NLM_F_CREATE)

    def delete_chain(self, name: str) -> Message:
        """Return the request that deletes a chain; EBUSY while it has rules or references."""
        return self._message(
            f"delete chain '{name}'", _DELCHAIN, self._chain(name), flags=NLM_F_NONREC
        )

    def add_rule(
        self,
        chain: str,
        *expressions: Expression,
        first: bool = False,
        echo: bool = False,
        comment: str = "",
    ) -> Message:
        """Return the request that appends a rule, or inserts it `first`.

        With `echo` the answer is the handle of the new rule.
        """
        body = nft_messages.rule(self.name, chain, *expressions, comment=comment)
        flags = NLM_F_CREATE | (0 if first else NLM_F_APPEND) | (NLM_F_ECHO if echo else 0)
        what = f"add rule to '{chain}'"
        return self._message(what, _NEWRULE, body, flags=flags, read=_decode_rule_handle)

    def delete_rule(self, chain: str, handle: int = 0) -> Message:
        """Return the request that deletes one rule, or without a handle all rules of `chain`."""
        body = self._rules(chain)
        if handle:
            body += attribute(_RULE_HANDLE, handle.to_bytes(8, "big"))
        return self._message(f"delete rules of '{chain}'", _DELRULE, body)

    def add_set(
        self,
        name: str,
        key: tuple[int, int],
        *,
        data: tuple[int, int] | None = None,
        fields: Sequence[int] = (),
        counted: bool = False,
    ) -> Message:
        """Return the request that creates a set, or a map from its keys to `data`.

        With the lengths of a key's `fields` its elements are ranges; if it is `counted`, they count
        packets. EEXIST if it exists and does not count, or the other way round.
        """
        host_order = key is IIFNAME_KEY
        body = nft_messages.new_set(
            self.name, name, key, data=data, fields=fields, host_order=host_order
        )
        body += nft_messages.counter() if counted else b""
        return self._message(f"add set '{name}'", _NEWSET, body, flags=NLM_F_CREATE)

    def delete_set(self, name: str, *, filled: bool = False) -> Message:
        """Return the request that deletes a set; EBUSY while a rule uses it.

        EBUSY too while it has elements, unless `filled`: then they are deleted with it.
        """
        body = string(_SET_TABLE, self.name) + string(_SET_NAME, name)
        flags = 0 if filled else NLM_F_NONREC
        return self._message(f"delete set '{name}'", _DELSET, body, flags=flags)

    def add_element(
        self,
        set_name: str,
        key: bytes,
        end: bytes = b"",
        *,
        goto: str = "",
        data: bytes = b"",
        comment: str = "",
    ) -> Message:
        """Return the request that adds an element, or the range of keys up to `end`.

        EEXIST if the key exists; EEXIST or ENOTEMPTY if an end of a range is within another. A
        range around another one is not noticed.
        """
        element = nft_messages.element(key, end, goto=goto, data=data, comment=comment)
        return self._message(
            f"add element to '{set_name}'",
            _NEWSETELEM,
            self._element(set_name, element),
            flags=NLM_F_CREATE | NLM_F_EXCL,
        )

    def delete_element(self, set_name: str, key: bytes, end: bytes = b"") -> Message:
        """Return the request that deletes an element; ENOENT if there is none."""
        body = self._element(set_name, nft_messages.element(key, end))
        return self._message(f"delete element of '{set_name}'", _DELSETELEM, body)

    def flush_set(self, name: str) -> Message:
        """Return the request that deletes all elements of a set."""
        body = _names_of_set(self.name, name)
        return self._message(f"flush set '{name}'", _DELSETELEM, body)

    # --- queries ---

    def present(self, netns: NetNS, keys: Sequence[Key]) -> list[Element | None]:
        """Return the element of each key, None where there is none.

        In a set of ranges that is the one around the first key.
        """
        queries = [self._query_element(*key) for key in keys]
        answers = netns.netfilter.exchange(queries, absent=[errno.ENOENT])
        return [answer[0][0] if answer else None for answer in answers]

    def counted(self, netns: NetNS, keys: Sequence[Key]) -> list[tuple[int, int] | None]:
        """Return packets and bytes that the element of each key has counted.

        None where there is none, or where it does not count.
        """
        queries = [self._query_element(*key, read=_decode_counters) for key in keys]
        answers = netns.netfilter.exchange(queries, absent=[errno.ENOENT])
        return [answer[0][0] if answer else None for answer in answers]

    def uncounted(self, netns: NetNS, names: Sequence[str]) -> list[str]:
        """Return those of these sets that exist, and whose elements do not count."""
        what = "look up a set"
        queries = [
            self._message(what, _GETSET, _names_of_set(self.name, name), read=_attributes)
            for name in names
        ]
        answers = netns.netfilter.exchange(queries, absent=[errno.ENOENT])
        found = zip(names, answers, strict=True)
        return [name for name, one in found if one and not nft_messages.is_counted(one[0])]

    def element(self, netns: NetNS, set_name: str, key: bytes) -> Element | None:
        """Return the element with this key, None if there is none."""
        answers = _query(netns, self._query_element(set_name, key))
        found = [element for answer in answers for element in answer]
        return found[0] if found else None

    def elements(self, netns: NetNS, set_name: str) -> list[Element]:
        """Return all elements of a set; none if the set does not exist."""
        body = _names_of_set(self.name, set_name)
        query = self._message(
            f"list set '{set_name}'", _GETSETELEM, body, flags=NLM_F_DUMP, read=_decode_elements
        )
        return [element for answer in _query(netns, query) for element in answer]

    def is_empty(self, netns: NetNS, set_name: str) -> bool:
        """Tell whether a set has no element, or does not exist."""
        body = _names_of_set(self.name, set_name)
        query = self._message(
            f"list set '{set_name}'", _GETSETELEM, body, flags=NLM_F_DUMP, read=_has_elements
        )
        return not any(_query(netns, query))

    def rules(self, netns: NetNS, chain: str) -> list[Rule]:
        """Return the rules of a chain; none if the chain does not exist."""
        answers = self._rules_of(netns, chain, read=_attributes)
        return [
            nft_messages.rule_of(answer)
            for answer in answers
            # Old kernels send the rules of every chain.
            if string_of(answer[_RULE_CHAIN]) == chain
        ]

    def rule(self, netns: NetNS, chain: str, handle: int) -> Rule | None:
        """Return the rule of a chain with this handle, None if there is none."""
        body = self._rules(chain) + attribute(_RULE_HANDLE, handle.to_bytes(8, "big"))
        what = f"look up rule {handle} of '{chain}'"
        answers = _query(netns, self._message(what, _GETRULE, body, read=_attributes))
        return nft_messages.rule_of(answers[0]) if answers else None

    def has_chain(self, netns: NetNS, *chains: str) -> bool:
        """Tell whether all of these chains exist."""
        queries = [self._message(f"look up '{c}'", _GETCHAIN, self._chain(c)) for c in chains]
        try:
            return all(netns.netfilter.exchange(queries))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return False

    def chains_there(self, netns: NetNS, chains: Sequence[str]) -> list[str]:
        """Return those of these chains that exist."""
        queries = [self._message(f"look up '{c}'", _GETCHAIN, self._chain(c)) for c in chains]
        answers = netns.netfilter.exchange(queries, absent=[errno.ENOENT])
        return [chain for chain, answer in zip(chains, answers, strict=True) if answer]

    def chain(self, netns: NetNS, name: str) -> dict[int, bytes] | None:
        """Return the attributes of a chain, None if it does not exist."""
        what, body = f"look up '{name}'", self._chain(name)
        answers = _query(netns, self._message(what, _GETCHAIN, body, read=_attributes))
        return answers[0] if answers else None

    def is_idle(self, netns: NetNS, chain: str) -> bool:
        """Tell whether no rule or element leads to a chain, transactions in progress included.

        The kernel would refuse the deletion of a used chain by EBUSY, but after an RCU grace period
        of some ten milliseconds; these two queries take a hundredth of it.
        """
        query = self._message(
            f"look up '{chain}'", _GETCHAIN, self._chain(chain), read=_decode_chain_use
        )
        uses: list[int] = _query(netns, query)
        rules = self._rules_of(netns, chain, read=_decode_chain_of_rule)
        # A chain's own rules count as uses of it.
        return sum(uses) <= rules.count(chain)

    def holds(self, netns: NetNS) -> int:
        """Return the number of the table's chains and sets, 0 if it does not exist."""
        body = string(_TABLE_NAME, self.name)
        query = self._message("look up", _GETTABLE, body, read=_decode_table_use)
        return sum(_query(netns, query))

    def _chain(self, name: str) -> bytes:
        return string(_CHAIN_TABLE, self.name) + string(_CHAIN_NAME, name)

    def _rules(self, chain: str) -> bytes:
        return string(_RULE_TABLE, self.name) + string(_RULE_CHAIN, chain)

    def _rules_of(self, netns: NetNS, chain: str, *, read: Callable[[bytes], Any]) -> list[Any]:
        what, body = f"list chain '{chain}'", self._rules(chain)
        return _query(netns, self._message(what, _GETRULE, body, flags=NLM_F_DUMP, read=read))

    def _query_element(
        self,
        set_name: str,
        key: bytes,
        end: bytes = b"",
        *,
        read: Callable[[bytes], Any] | None = None,
    ) -> Message:
        body = self._element(set_name, nft_messages.element(key, end))
        what = f"look up element of '{set_name}'"
        return self._message(what, _GETSETELEM, body, read=read or _decode_elements)

    def _element(self, set_name: str, element: bytes) -> bytes:
        items = attribute(_ELEMENTS, attribute(_LIST_ELEM, element))
        return _names_of_set(self.name, set_name) + items

    def _message(
        self,
        what: str,
        kind: int,
        attrs: bytes,
        *,
        flags: int = 0,
        read: Callable[[bytes], Any] = bytes,
    ) -> Message:
        text = f"nftables: {what} in table '{self.name}'"
        body = _NFGENMSG.pack(self.family, 0, 0) + attrs
        return Message(text, _NFTABLES << 8 | kind, flags | NLM_F_ACK, body, read)


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain of any program's that the kernel sends packets to."""

    table: str  # with its family, as in nft(8)
    name: str
    type: str  # filter, nat, route
    hook: int  # FORWARD, ...
    drops: bool  # by its policy


def base_chains(netns: NetNS) -> list[BaseChain]:
    """Return the base chains of all tables. Raises NetlinkError."""
    body = _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
    kind = _NFTABLES << 8 | _GETCHAIN
    message = Message("nftables: list chains", kind, NLM_F_DUMP | NLM_F_ACK, body, _decode_base)
    return [one for one in netns.netfilter.dump(message) if one is not None]


def _decode_base(data: bytes) -> BaseChain | None:
    attrs = _attributes(data)
    if _CHAIN_HOOK not in attrs:
        return None
    family = _FAMILY_WORDS.get(data[HEADER_SIZE], "netdev")
    return BaseChain(
        f"{family} {string_of(attrs[_CHAIN_TABLE])}",
        string_of(attrs[_CHAIN_NAME]),
        string_of(attrs[_CHAIN_TYPE]) if _CHAIN_TYPE in attrs else "",
        int.from_bytes(attributes(attrs[_CHAIN_HOOK]).get(_HOOK_NUMBER, b""), "big"),
        attrs.get(CHAIN_POLICY) == DROP.to_bytes(4, "big"),
    )


def interface_key(name: str) -> bytes:
    """Return an interface's name as a key of a set, or as the first part of one."""
    return name.encode("utf-8", "surrogateescape").ljust(IIFNAME_BYTES, bytes(1))


def interface_name(key: bytes) -> str:
    """Return the interface name in a key of `interface_key`."""
    return key.rstrip(bytes(1)).decode("utf-8", "surrogateescape")


def apply(netns: NetNS, messages: Sequence[Message]) -> list[Any]:
    """Send `messages` as one transaction, all or nothing; return the answers of those with echo.

    Raises NetlinkError. After ENOBUFS it is unknown whether the kernel has carried them out.
    """
    return netns.netfilter.transact(
        _frame("begin", _BATCH_BEGIN), _packed(messages), _frame("end", _BATCH_END)
    )


def apply_deletions(netns: NetNS, deletions: Callable[[], Sequence[Message]]) -> bool:
    """Send the requests of `deletions` as one transaction; return False if there are none.

    `deletions` is called again if another call, as a GC beside a DEL, was faster with a part of it,
    or if the kernel's answer was lost. Raises NetlinkError.
    """
    for attempt in range(TRIES):
        messages = deletions()
        try:
            if messages:
                apply(netns, messages)
        except NetlinkError as error:
            if error.errno not in LOOK_AGAIN or attempt == TRIES - 1:
                raise
        else:
            return bool(messages)
    raise AssertionError  # pragma: no cover - the loop returns or raises


def apply_if_unused(netns: NetNS, deletions: Sequence[Message]) -> bool:
    """Send `deletions`; return False if the kernel reports an object in use or missing."""
    try:
        apply(netns, deletions)
    except NetlinkError as error:
        if error.errno not in (errno.EBUSY, errno.ENOENT):
            raise
        return False
    return True


@lru_cache(maxsize=64)
def _names_of_set(table: str, name: str) -> bytes:
    return string(_ELEMENTS_TABLE, table) + string(_ELEMENTS_SET, name)


def _packed(messages: Sequence[Message]) -> list[Message]:
    """Return `messages`; additions to one set, or deletions from one, in a row become few.

    So do those to several sets in turn. The kernel answers each message, not each element.
    """
    packed: list[Message] = []
    for (kind, _), run in groupby(messages, lambda message: (message.type, message.flags)):
        if kind in (_ADD_ELEMENTS, _DELETE_ELEMENTS):
            lists: dict[bytes, list[Message]] = {}
            for message in run:
                head = _before_list(message.body)
                if len(head) == len(message.body):
                    packed.append(message)  # without a list: all elements of the set
                else:
                    lists.setdefault(head, []).append(message)
            for head, of_set in lists.items():
                packed += _joined(head, of_set)
        else:
            packed += run
    return packed


def _before_list(body: bytes) -> bytes:
    """Return what comes before the list of elements in a message about them."""
    at = _NFGENMSG.size
    for _ in (_ELEMENTS_TABLE, _ELEMENTS_SET):
        at += (int.from_bytes(body[at : at + 2], sys.byteorder) + 3) & ~3
    return body[:at]


def _joined(head: bytes, messages: Sequence[Message]) -> Iterator[Message]:
    items: list[bytes] = []
    size = 0
    for message in messages:
        item = message.body[len(head) + NLATTR_SIZE :]
        if size + len(item) > _LIST_BYTES:
            yield _with_list(message, head, items)
            items, size = [], 0
        items.append(item)
        size += len(item)
    yield _with_list(messages[0], head, items)


def _with_list(message: Message, head: bytes, items: Sequence[bytes]) -> Message:
    body = head + attribute(_ELEMENTS, *items)
    return Message(message.what, message.type, message.flags, body)


def _frame(what: str, kind: int) -> Message:
    body = _NFGENMSG.pack(0, 0, socket.htons(_NFTABLES))
    return Message(f"nftables: {what} of transaction", kind, 0, body)


def _query(netns: NetNS, message: Message) -> list[Any]:
    """Return the answers, none if the queried object does not exist."""
    try:
        if message.flags & NLM_F_DUMP:
            return netns.netfilter.dump(message)
        return netns.netfilter.exchange([message])[0]
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _attributes(data: bytes) -> dict[int, bytes]:
    return attributes(data, HEADER_SIZE + _NFGENMSG.size)


def _decode_table_use(data: bytes) -> int:
    return int.from_bytes(_attributes(data)[_TABLE_USE], "big")


def _decode_rule_handle(data: bytes) -> int | None:
    """Return the handle in the echo of a new rule; None: the word of a new generation."""
    if int.from_bytes(data[4:6], sys.byteorder) != _NFTABLES << 8 | _NEWRULE:
        return None
    return int.from_bytes(_attributes(data)[_RULE_HANDLE], "big")


def _decode_chain_use(data: bytes) -> int:
    return int.from_bytes(_attributes(data)[CHAIN_USE], "big")


def _decode_chain_of_rule(data: bytes) -> str:
    return string_of(_attributes(data)[_RULE_CHAIN])


def _has_elements(data: bytes) -> bool:
    return bool(_attributes(data).get(_ELEMENTS))


def _decode_counters(data: bytes) -> list[tuple[int, int] | None]:
    return nft_messages.counted(_attributes(data).get(_ELEMENTS, b""))


def _decode_elements(data: bytes) -> list[Element]:
    return nft_messages.elements(_attributes(data).get(_ELEMENTS, b""))
