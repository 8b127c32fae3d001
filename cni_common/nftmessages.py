"""The messages of nftables that are rare, described for pyroute2's codecs: chains, sets, rules.

Attributes stand in the order of linux/netfilter/nf_tables.h, without their NFTA_ prefix.
pyroute2 has such a module, too, but it loads sockets and asyncio: 41 ms of a cold start.
"""

import sys

from cni_common.codec import decoder, encode, nla, nlmsg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_NFGENMSG_SIZE = 4
_SET_MAP, _VERDICTS = 0x8, 0xFFFFFF00
# NFTNL_UDATA_SET_KEYBYTEORDER of libnftnl, so that `nft list` prints interface names.
_HOST_ORDER_KEY = bytes([0, 4]) + (1).to_bytes(4, sys.byteorder)


class _Verdict(nla):  # type: ignore[misc]  # pyroute2 is not typed, nor are those below
    nla_map = (("UNSPEC", "none"), ("CODE", "be32"), ("CHAIN", "asciiz"))


class _Data(nla):  # type: ignore[misc]
    nla_map = (("UNSPEC", "none"), ("VALUE", "cdata"), ("VERDICT", "verdict"))
    verdict = _Verdict


class _WithData(nla):  # type: ignore[misc]
    register = _Data  # not "data": every nla has a buffer of that name


class _Expression(nla):  # type: ignore[misc]
    header_type = 1  # NFTA_LIST_ELEM, for each item of the list
    nla_map = (("UNSPEC", "none"), ("NAME", "asciiz"), ("DATA", "body"))

    @staticmethod
    def body(expression: "Any", **_: object) -> "Any":
        """Return the class that fits the expression's name."""
        return getattr(expression, expression.get_attr("NAME"), expression.hex)

    class meta(nla):  # type: ignore[misc]  # noqa: N801 - the kernel's name, likewise below
        nla_map = (("UNSPEC", "none"), ("DREG", "be32"), ("KEY", "be32"))

    class payload(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = tuple(
            zip(("UNSPEC", "DREG", "BASE", "OFFSET", "LEN"), ("none", *["be32"] * 4), strict=True)
        )

    class cmp(_WithData):  # noqa: N801
        nla_map = (("UNSPEC", "none"), ("SREG", "be32"), ("OP", "be32"), ("DATA", "register"))

    class bitwise(_WithData):  # noqa: N801
        nla_map = (
            *(("UNSPEC", "none"), ("SREG", "be32"), ("DREG", "be32"), ("LEN", "be32")),
            *(("MASK", "register"), ("XOR", "register")),
        )

    class lookup(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = (
            *(("UNSPEC", "none"), ("SET", "asciiz"), ("SREG", "be32"), ("DREG", "be32")),
            *(("SET_ID", "be32"), ("FLAGS", "be32")),
        )

    class immediate(_WithData):  # noqa: N801
        nla_map = (("UNSPEC", "none"), ("DREG", "be32"), ("DATA", "register"))

    class masq(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = (("UNSPEC", "none"), ("FLAGS", "be32"))


class NfgenMessage(nlmsg):  # type: ignore[misc]
    """struct nfgenmsg, which starts every message."""

    fields = (("nfgen_family", "B"), ("version", "B"), ("res_id", "!H"))


class ChainMessage(NfgenMessage):
    """NFT_MSG_*CHAIN."""

    nla_map = (
        *(("UNSPEC", "none"), ("TABLE", "asciiz"), ("HANDLE", "be64"), ("NAME", "asciiz")),
        *(("HOOK", "hook"), ("POLICY", "be32"), ("USE", "be32"), ("TYPE", "asciiz")),
    )

    class hook(nla):  # type: ignore[misc]  # noqa: N801
        nla_map = (("UNSPEC", "none"), ("HOOKNUM", "be32"), ("PRIORITY", "be32"))


class RuleMessage(NfgenMessage):
    """NFT_MSG_*RULE."""

    nla_map = (
        *(("UNSPEC", "none"), ("TABLE", "asciiz"), ("CHAIN", "asciiz"), ("HANDLE", "be64")),
        *(("EXPRESSIONS", "*expression"), ("COMPAT", "hex"), ("POSITION", "be64")),
        ("USERDATA", "cdata"),
    )
    expression = _Expression


class SetMessage(NfgenMessage):
    """NFT_MSG_*SET."""

    nla_map = (
        *(("UNSPEC", "none"), ("TABLE", "asciiz"), ("NAME", "asciiz"), ("FLAGS", "be32")),
        *(("KEY_TYPE", "be32"), ("KEY_LEN", "be32"), ("DATA_TYPE", "be32"), ("DATA_LEN", "be32")),
        *(("POLICY", "be32"), ("DESC", "hex"), ("ID", "be32"), ("TIMEOUT", "be64")),
        *(("GC_INTERVAL", "be32"), ("USERDATA", "cdata")),
    )


decode_rule = decoder(RuleMessage)


def base_chain(table: str, name: str, *, kind: str, hook: int, priority: int) -> bytes:
    """Return the attributes of a new chain of type `kind` at a netfilter hook."""
    where = {"attrs": [("HOOKNUM", hook), ("PRIORITY", priority & 0xFFFFFFFF)]}
    return _encode(ChainMessage, TABLE=table, NAME=name, HOOK=where, TYPE=kind)


def rule(table: str, chain: str, expressions: "Sequence[tuple[str, Any]]") -> bytes:
    """Return the attributes of a new rule."""
    items = [{"attrs": [("NAME", name), ("DATA", {"attrs": data})]} for name, data in expressions]
    return _encode(RuleMessage, TABLE=table, CHAIN=chain, EXPRESSIONS=items)


def new_set(
    table: str, name: str, key: tuple[int, int], *, verdicts: bool, host_order: bool
) -> bytes:
    """Return the attributes of a new set, or of a map from its keys to verdicts."""
    length, kind = key
    what = {"FLAGS": _SET_MAP, "DATA_TYPE": _VERDICTS, "DATA_LEN": 16} if verdicts else {}
    userdata = _HOST_ORDER_KEY if host_order else b""
    names = {"TABLE": table, "NAME": name, "KEY_TYPE": kind, "KEY_LEN": length}
    return _encode(SetMessage, **names, **what, ID=1, USERDATA=userdata)


def _encode(kind: "type[NfgenMessage]", **attrs: object) -> bytes:
    body = kind()
    body["attrs"] = list(attrs.items())
    return encode(body)[_NFGENMSG_SIZE:]
