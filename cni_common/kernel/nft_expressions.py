"""Expressions of an nftables rule, packed for the kernel."""

from __future__ import annotations

import sys

from cni_common.kernel.netlink import attribute, be32, string

# linux/netfilter/nf_tables.h
_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2  # of 16 bytes each
REG32_01, REG32_02, REG32_04, REG32_05 = 9, 10, 12, 13  # of 4 bytes: parts of those
_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 7, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _NOT_EQUAL, _INVERT = 0, 1, 1
_FIB_DADDR, _FIB_RESULT_ADDRTYPE = 2, 3
_FIB_OF = {"": 0, "input": 8, "output": 16}  # NFTA_FIB_F_IIF, NFTA_FIB_F_OIF
_CT_STATUS, _DST_NAT = 2, 1 << 5  # IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
_NAT_DESTINATION = 1
_RANDOM_FULLY = 1 << 4  # linux/netfilter/nf_nat.h
_RTN_LOCAL = 2  # linux/rtnetlink.h

Expression = bytes


def meta_nfproto(family: int) -> list[Expression]:
    """Return a match on the packet's family."""
    return [_meta(_META_NFPROTO, _REG_1), _compare(bytes([family]))]


def meta_l4proto(register: int = _REG_1) -> Expression:
    """Return a load of the transport protocol's number."""
    return _meta(_META_L4PROTO, register)


def iifname(register: int = _REG_1) -> Expression:
    """Return a load of the input interface's name."""
    return _meta(_META_IIFNAME, register)


def oifname(register: int = _REG_1) -> Expression:
    """Return a load of the output interface's name."""
    return _meta(_META_OIFNAME, register)


def iifname_oifname() -> list[Expression]:
    """Return a load of both interface names, one behind the other."""
    return [_meta(_META_IIFNAME, _REG_1), _meta(_META_OIFNAME, _REG_2)]


def ether_saddr(register: int = _REG_2) -> Expression:
    """Return a load of the source MAC."""
    return _payload(0, 6, 6, register)


def network_bytes(offset: int, length: int, register: int = _REG_1) -> Expression:
    """Return a load of bytes of the network header."""
    return _payload(_NETWORK_HEADER, offset, length, register)


def destination_port(register: int) -> Expression:
    """Return a load of the destination port of TCP, UDP or SCTP."""
    return _payload(_TRANSPORT_HEADER, 2, 2, register)


def in_subnet(network: bytes, prefixlen: int) -> list[Expression]:
    """Return a comparison of the loaded address with a network."""
    bits = len(network) * 8
    mask = ((1 << bits) - (1 << (bits - prefixlen))).to_bytes(len(network), "big")
    return [_masked(mask), _compare(network)]


def equals(value: bytes, *, invert: bool = False) -> Expression:
    """Return a comparison of the loaded bytes with `value`, in its length."""
    return _compare(value, _NOT_EQUAL if invert else _EQUAL)


def to_local_address(*, of: str = "", invert: bool = False) -> list[Expression]:
    """Return a match on packets whose destination is an address of this host.

    `of` is "input" or "output" for an address of that interface of the packet alone.
    """
    load = be32(1, _REG_1) + be32(2, _FIB_RESULT_ADDRTYPE) + be32(3, _FIB_DADDR | _FIB_OF[of])
    local = _RTN_LOCAL.to_bytes(4, sys.byteorder)
    return [expression("fib", load), equals(local, invert=invert)]


def destination_changed() -> list[Expression]:
    """Return a match on packets of connections that a dnat statement has redirected."""
    load = expression("ct", be32(1, _REG_1) + be32(2, _CT_STATUS))
    mask = _DST_NAT.to_bytes(4, sys.byteorder)
    return [load, _masked(mask), _compare(bytes(4), _NOT_EQUAL)]


def lookup(
    set_name: str, *, verdict: bool = False, invert: bool = False, data: bool = False
) -> Expression:
    """Return a look-up of the loaded key: in a set, a verdict map (`verdict`) or a map (`data`)."""
    attrs = string(1, set_name) + be32(2, _REG_1)
    if verdict or data:
        attrs += be32(3, _REG_VERDICT if verdict else _REG_1)
    if invert:
        attrs += be32(5, _INVERT)
    return expression("lookup", attrs)


def verdict(code: int, chain: str = "") -> Expression:
    """Return the verdict `code`, for JUMP and GOTO with its chain."""
    where = be32(_VERDICT_CODE, code & 0xFFFFFFFF)
    if chain:
        where += string(_VERDICT_CHAIN, chain)
    data = attribute(2, attribute(_DATA_VERDICT, where))
    return expression("immediate", be32(1, _REG_VERDICT) + data)


def counter() -> Expression:
    """Return a packet counter, which iptables has in each rule."""
    return expression("counter", b"")


def masquerade(*, random: bool = False) -> Expression:
    """Return the masquerade statement.

    `random`: source ports are drawn, so two new connections hardly ever want the same one.
    """
    return expression("masq", be32(1, _RANDOM_FULLY) if random else b"")


def dnat(family: int, port_register: int = 0) -> Expression:
    """Return the dnat statement to the loaded address, and to a loaded port if there is one."""
    where = be32(3, _REG_1) + (be32(5, port_register) if port_register else b"")
    return expression("nat", be32(1, _NAT_DESTINATION) + be32(2, family) + where)


def expression(name: str, data: bytes) -> Expression:
    """Return the expression `name` with these attributes."""
    return string(_EXPR_NAME, name) + attribute(_EXPR_DATA, data)


def _meta(key: int, register: int) -> Expression:
    return expression("meta", be32(1, register) + be32(2, key))


def _payload(base: int, offset: int, length: int, register: int) -> Expression:
    where = be32(2, base) + be32(3, offset) + be32(4, length)
    return expression("payload", be32(1, register) + where)


def _masked(mask: bytes) -> Expression:
    """Return a bitwise AND of the loaded value with `mask`."""
    registers = be32(1, _REG_1) + be32(2, _REG_1) + be32(3, len(mask))
    return expression("bitwise", registers + _value(4, mask) + _value(5, bytes(len(mask))))


def _compare(value: bytes, operator: int = _EQUAL) -> Expression:
    return expression("cmp", be32(1, _REG_1) + be32(2, operator) + _value(3, value))


def _value(kind: int, data: bytes) -> bytes:
    return attribute(kind, attribute(_DATA_VALUE, data))
