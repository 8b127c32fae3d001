"""Chains that drop forwarded packets, of every program and both flavours of iptables."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import pairwise
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import attributes, string_of
from cni_common.kernel.nft_messages import each_expression

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_messages import Rule
    from cni_common.spec.names import Subnet

_FAMILIES = {
    "ip": (nft_table.IPV4, (4,)),
    "ip6": (nft_table.IPV6, (6,)),
    "inet": (nft_table.INET, (4, 6)),
}
_LEGACY = {4: "iptables-legacy", 6: "ip6tables-legacy"}
_CHAIN, _TABLE = "FORWARD", "filter"  # of iptables
_DROPS = ("DROP", "REJECT")  # its targets
# linux/netfilter/nf_tables.h
_IMMEDIATE_DATA, _DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 2, 1, 2, 1
_TARGET_NAME = _MATCH_NAME = _LOOKUP_SET = 1
_META_KEY, _META_NAMES = 2, (6, 7)  # NFT_META_IIFNAME, NFT_META_OIFNAME
_PAYLOAD_BASE, _PAYLOAD_OFFSET, _CMP_DATA = 2, 3, 3
_NETWORK_HEADER = 1
_PLACES = [(_NETWORK_HEADER, offset) for offset in (12, 16, 8, 24)]  # of addresses: IPv4, IPv6
_ADDRESS, _INTERFACE = "address", "interface"
_CHAINS_MAX = 200  # that are read of one table
_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Dropping:
    """A chain at the hook of forwarded packets that drops what it does not accept."""

    table: str  # as nft has it, or "filter of iptables-legacy"
    chain: str
    versions: Sequence[int]  # of IP
    how: str  # "policy" or "last rule"
    is_iptables: bool  # its rules are those of the command iptables
    addresses: frozenset[bytes]  # that rules look for, or how these begin
    interfaces: frozenset[str]  # likewise

    def knows(self, subnet: Subnet) -> bool:
        """Tell whether a rule looks for packets of a subnet, or of a larger one."""
        first = subnet.network_address.packed
        return any(first.startswith(one) for one in self.addresses)


def dropping(netns: NetNS) -> list[Dropping]:
    """Return these chains of a namespace. Raises NetlinkError; OSError for a command."""
    return [*_of_nftables(netns), *_of_legacy(netns)]


def _of_nftables(netns: NetNS) -> Iterator[Dropping]:
    for one in nft_table.base_chains(netns):
        family, _, name = one.table.partition(" ")
        if one.hook != nft_table.FORWARD or one.type != "filter" or family not in _FAMILIES:
            continue
        number, versions = _FAMILIES[family]
        table = nft_table.Table(number, name)
        rules = table.rules(netns, one.name)
        if one.drops or (rules and _drops_all(rules[-1])):
            how = "policy" if one.drops else "last rule"
            known = list(_looked_for(table, netns, rules))
            addresses = frozenset(value for value in known if isinstance(value, bytes))
            interfaces = frozenset(value for value in known if isinstance(value, str))
            is_iptables = (name, one.name) == (_TABLE, _CHAIN) and family != "inet"
            yield Dropping(one.table, one.name, versions, how, is_iptables, addresses, interfaces)


def _drops_all(rule: Rule) -> bool:
    """Tell whether a rule drops or rejects every packet that comes to it."""
    verdict = False
    for name, data in each_expression(rule.expressions):
        attrs = attributes(data)
        if name == "immediate":
            code = attributes(attributes(attrs[_IMMEDIATE_DATA]).get(_DATA_VERDICT, b""))
            verdict = code.get(_VERDICT_CODE) == nft_table.DROP.to_bytes(4, "big")
        elif name == "target":  # of iptables
            verdict = string_of(attrs[_TARGET_NAME]) in _DROPS
        elif name == "reject":
            verdict = True
        elif name == "match" and string_of(attrs[_MATCH_NAME]) == "comment":
            continue
        elif name not in ("counter", "log"):
            return False
    return verdict


def _looked_for(
    table: nft_table.Table, netns: NetNS, rules: Sequence[Rule]
) -> Iterator[bytes | str]:
    """Yield addresses and interfaces in rules, and in those of the chains that they lead to."""
    waiting, seen = list(rules), {""}
    while waiting and len(seen) < _CHAINS_MAX:
        rule = waiting.pop()
        loaded = ""  # what the next comparison is about
        for name, data in each_expression(rule.expressions):
            attrs = attributes(data)
            if name in ("payload", "meta"):
                loaded = _loaded(name, attrs)
            elif name == "cmp" and loaded:
                value = attributes(attrs[_CMP_DATA])[_DATA_VALUE]
                yield value if loaded == _ADDRESS else string_of(value)
            elif name == "lookup" and loaded == _ADDRESS:
                found = table.elements(netns, string_of(attrs[_LOOKUP_SET]))
                yield from (one.key for one in found if any(one.key))
        if rule.target not in seen:
            seen.add(rule.target)
            waiting += table.rules(netns, rule.target)


def _loaded(name: str, attrs: Mapping[int, bytes]) -> str:
    """Return whether an expression reads an address or the name of an interface, "" for others."""
    number = {key: int.from_bytes(value, "big") for key, value in attrs.items()}
    if name == "meta":
        return _INTERFACE if number.get(_META_KEY) in _META_NAMES else ""
    place = number.get(_PAYLOAD_BASE), number.get(_PAYLOAD_OFFSET)
    return _ADDRESS if place in _PLACES else ""


def _of_legacy(netns: NetNS) -> Iterator[Dropping]:
    import subprocess

    for version, command in _LEGACY.items():
        program = shutil.which(command, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if not program or _TABLE not in netns.legacy_tables(version):
            continue
        done = subprocess.run(
            [program, "-w", "2", "-S", _CHAIN],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        lines = done.stdout.splitlines()
        policy = f"-P {_CHAIN} DROP" in lines
        last = lines[-1].split() if lines else []
        if policy or (last[:3] == ["-A", _CHAIN, "-j"] and last[3] in _DROPS):
            words = [pair for line in lines for pair in pairwise(line.split())]
            nets = [ip_network(text, strict=False) for key, text in words if key in ("-s", "-d")]
            yield Dropping(
                f"{_TABLE} of {command}",
                _CHAIN,
                (version,),
                "policy" if policy else "last rule",
                is_iptables=True,
                addresses=frozenset(
                    one.network_address.packed[: -(-one.prefixlen // 8)] for one in nets
                ),
                interfaces=frozenset(text for key, text in words if key in ("-i", "-o")),
            )
