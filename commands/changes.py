"""Kernel events after which living containers may lack something that the plugins have made."""

from __future__ import annotations

from cni_common.kernel.netlink import HEADER_SIZE, attributes, string_of

# linux/rtnetlink.h, as bits: RTNLGRP_LINK, TC, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE,
# IPV4_NETCONF, IPV6_NETCONF; linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES.
GROUPS = 0x1 | 0x8 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 23 | 1 << 24
NFT_GROUPS = 1 << 6
# RTM_NEWLINK tells of a port that left its bridge, or of an interface that was set down; the others
# are RTM_DELLINK, DELADDR, DELROUTE, DELQDISC, DELTFILTER and NEWNETCONF, which has forwarding.
_RTNETLINK = frozenset({16, 17, 21, 25, 37, 45, 80})
_NFTABLES, _NFGENMSG_SIZE = 10, 4
# NFT_MSG_*
_NEWTABLE, _DELTABLE, _DELCHAIN, _DELRULE, _DELSET, _DELSETELEM = 0, 2, 5, 8, 11, 14
_OURS = ("pycni", "pycni_isolation")
_SHARED = ("filter", "nat")  # of iptables, with chains of others beside ours
# firewalld makes this table at a start and a reload, and has then forgotten what is in its zones.
_FIREWALLD = "firewalld"
_HOOKS = ("FORWARD", "PREROUTING", "OUTPUT", "POSTROUTING")
_NFTA_TABLE, _NFTA_NAME, _NFTA_CHAIN_NAME = 1, 2, 3  # the chain of a rule is the second, too


def is_change(kind: int, part: bytes) -> bool:
    """Tell whether an rtnetlink event may tell of a loss; which one, the event alone cannot say."""
    del part
    return kind in _RTNETLINK


def is_loss(kind: int, part: bytes) -> bool:
    """Tell whether an event of nftables tells of a deletion among the plugins' objects.

    So does firewalld's table when it is made anew. Deleted elements count: a flushed map has lost
    those of all containers. So does the DEL of each container, after which nothing is missing.
    """
    if kind >> 8 != _NFTABLES:
        return False
    message = kind & 0xFF
    if message not in (_NEWTABLE, _DELTABLE, _DELCHAIN, _DELRULE, _DELSET, _DELSETELEM):
        return False
    found = attributes(part, HEADER_SIZE + _NFGENMSG_SIZE)
    table = string_of(found.get(_NFTA_TABLE))
    if message == _NEWTABLE:
        return table == _FIREWALLD
    if table in _OURS:
        return True
    if table not in _SHARED:
        return False
    if message == _DELTABLE:
        return True
    name = string_of(found.get(_NFTA_CHAIN_NAME if message == _DELCHAIN else _NFTA_NAME))
    return message in (_DELCHAIN, _DELRULE) and (name.startswith("CNI-") or name in _HOOKS)
