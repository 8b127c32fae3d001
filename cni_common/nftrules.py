"""What an nftables rule consists of: expressions, named as in nftmessages.py."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Expression = tuple[str, list[tuple[str, Any]]]

# linux/netfilter/nf_tables.h
_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2  # of 16 bytes each
_META_IIFNAME, _META_NFPROTO = 6, 15
_INVERT = 1


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
    masked = [("SREG", _REG_1), ("DREG", _REG_1), ("LEN", len(network)), ("MASK", _register(mask))]
    return [("bitwise", [*masked, ("XOR", _register(bytes(len(network))))]), _compare(network)]


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
    return ("cmp", [("SREG", _REG_1), ("OP", 0), ("DATA", _register(value))])


def _register(data: bytes) -> "dict[str, Any]":
    return {"attrs": [("VALUE", data)]}


def _verdict(code: int, chain: str) -> "dict[str, Any]":
    attrs: list[tuple[str, Any]] = [("CODE", code & 0xFFFFFFFF)]
    if chain:
        attrs.append(("CHAIN", chain))
    return {"attrs": [("VERDICT", {"attrs": attrs})]}


def target(expressions: "Any") -> str:
    """Return the chain that a rule jumps or goes to, "" for none."""
    for expression in expressions:
        if expression.get_attr("NAME") == "immediate":
            where = expression.get_attr("DATA").get_attr("DATA").get_attr("VERDICT")
            return (where.get_attr("CHAIN") if where else "") or ""
    return ""


def compared(expressions: "Any") -> tuple[bytes, ...]:
    """Return what a rule compares with, in its order."""
    return tuple(
        bytes(expression.get_attr("DATA").get_attr("DATA").get_attr("VALUE"))
        for expression in expressions
        if expression.get_attr("NAME") == "cmp"
    )
