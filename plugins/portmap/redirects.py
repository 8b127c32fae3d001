"""Rules of others that redirect a port before our look-up, as those of the reference's portmap.

Only chains where such rules usually are get looked at, since a node of Kubernetes has thousands of
others: the reference's, docker's and the built-in one of table nat.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel import nft_messages, nft_table
from cni_common.kernel.netlink import attributes, string_of
from plugins.portmap import nftables
from plugins.portmap.conf import PLUGIN, PROTOCOLS
from plugins.portmap.route_localnet import DNAT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.kernel.nft_messages import Rule
    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from plugins.portmap.conf import Conf, Port

_FAMILIES = {4: nft_table.IPV4, 6: nft_table.IPV6}
_CHAINS = (DNAT, "DOCKER", "PREROUTING", "prerouting")  # of table nat, the last one by people
_REFERENCE_TABLE, _REFERENCE_CHAIN = "cni_hostport", "hostports"  # of its backend nftables
_REFERENCE_PREFIX = "CNI-DN-"  # of its chains of iptables
_TARGET_NAME, _MATCH_NAME, _MATCH_INFO = 1, 1, 3  # NFTA_TARGET_*, NFTA_MATCH_*
_NAT_FAMILY = 2  # NFTA_NAT_FAMILY
_MULTIPORT_MAX = 15  # linux/netfilter/xt_multiport.h
_LEGACY_RULE = r" -p (\w+) .*--dports ([\d,]+) .*-j (CNI-DN-\w+)"


@dataclass(frozen=True, slots=True)
class Redirect:
    """A rule that sends a wanted port elsewhere."""

    port: str  # for messages
    where: str  # likewise
    chain: str = ""  # of the container, in the reference's layout for iptables
    containerid: str = (
        ""  # of the reference's container, as its addresses and what removes the rule
    )
    addresses: frozenset[Address] = frozenset()
    remove: Callable[[], object] | None = None


def take_over(req: Request, host: Host, conf: Conf) -> None:
    """Remove what redirects the ports of `conf` to containers that are gone; log other rules.

    Raises CNIError naming a container that may live, OSError.
    """
    for found in _find(host, conf):
        if found.chain:
            _take_over_chain(req, host, found)
        elif found.containerid:
            _take_over_rule(req, host, found)
        else:
            host.log(f"{found.port} does not reach the container: {found.where} redirects it first")


def _take_over_chain(req: Request, host: Host, found: Redirect) -> None:
    """Handle a chain of the reference's layout: ours, which has a record, or the reference's."""
    from cni_common.node.liveness import Liveness, State, describe
    from plugins.portmap import inspection, iptables
    from plugins.portmap.shared_ports import owner_of

    for record in host.records.of_plugin(PLUGIN):
        if iptables.chain_of(record.network, record.attachment) != found.chain:
            continue
        if record.attachment.containerid == req.containerid:
            return  # the rule that is first serves
        state, reason = Liveness(host).assess(record.facts)
        if state is not State.GONE:
            raise nftables.taken(found.port, describe(owner_of(record), state, reason))
        iptables.remove(host, found.chain)
        return
    for stray in inspection.chains(host):
        if stray.owner == found.chain:
            containerid = stray.names[1] if len(stray.names) > 1 else "?"
            known = replace(found, containerid=containerid, addresses=stray.addresses)
            _take_over_rule(req, host, replace(known, remove=stray.remove))


def _take_over_rule(req: Request, host: Host, found: Redirect) -> None:
    """Remove a rule of the reference if its container is gone. Raises CNIError unless it is."""
    from cni_common.node.liveness import Liveness

    if found.containerid == req.containerid:
        return
    where = f"container '{found.containerid}' by the reference's portmap ({found.where})"
    beside = Liveness(host).addresses_beside(host.identity_of(req.netns))
    living = sorted(map(str, found.addresses & beside))
    if living or not found.addresses:
        why = f"whose address {living[0]} is in use" if living else "whose address is unknown"
        raise nftables.taken(found.port, f"{where}, {why}")
    host.log(f"takes {found.port} over from {where}: its address is in no namespace")
    if found.remove:
        found.remove()


def _find(host: Host, conf: Conf) -> Iterator[Redirect]:
    for version, family in _FAMILIES.items():
        wanted = _Wanted(port for port, cidr in conf.targets() if cidr.version == version)
        if not wanted.protocols:
            continue
        for nat in (nft_table.Table(family, "nat"), nft_table.Table(nft_table.INET, "nat")):
            yield from _in_table(host, nat, family, wanted)
        yield from _of_legacy(host, version, wanted)
        yield from _of_reference(host, version, wanted)


def _in_table(host: Host, nat: nft_table.Table, family: int, wanted: _Wanted) -> Iterator[Redirect]:
    """Yield the rules of a table nat for packets of a family: iptables-nft's or another one."""
    for chain in nat.chains_there(host.netns, _CHAINS):
        for rule in nat.rules(host.netns, chain):
            port = wanted.among(_protocols(rule), _ports(rule))
            if not port or (nat.family == nft_table.INET and not _is_of_family(rule, family)):
                continue
            if rule.target.startswith(_REFERENCE_PREFIX):
                yield Redirect(port, f"chain {rule.target} of {nat}", chain=rule.target)
            elif _redirects(rule):
                yield Redirect(port, f"a rule of chain {chain} of {nat}")


def _is_of_family(rule: Rule, family: int) -> bool:
    """Tell whether a rule for both families is for packets of this one, too."""
    for name, data in nft_messages.each_expression(rule.expressions):
        told = int.from_bytes(attributes(data).get(_NAT_FAMILY, b""), "big") if name == "nat" else 0
        if told in _FAMILIES.values():
            return told == family
    return not any(bytes([one]) in rule.compared for one in _FAMILIES.values() if one != family)


def _of_reference(host: Host, version: int, wanted: _Wanted) -> Iterator[Redirect]:
    """Yield the rules of the reference's backend for nftables."""
    from ipaddress import ip_address

    table = nft_table.Table(_FAMILIES[version], _REFERENCE_TABLE)
    for chain in table.chains_there(host.netns, [_REFERENCE_CHAIN]):
        for rule in table.rules(host.netns, chain):
            port = wanted.among(_protocols(rule), _ports(rule))
            if port and rule.comment:
                loaded = _loaded(rule.expressions)
                addresses = frozenset(ip_address(one) for one in loaded if len(one) in (4, 16))
                yield Redirect(
                    port,
                    f"chain {chain} of {table}",
                    containerid=rule.comment,
                    addresses=addresses,
                    remove=partial(_remove_rule, host, table, chain, rule.handle),
                )


def _remove_rule(host: Host, table: nft_table.Table, chain: str, handle: int) -> None:
    nft_table.apply_if_unused(host.netns, [table.delete_rule(chain, handle)])


def _of_legacy(host: Host, version: int, wanted: _Wanted) -> Iterator[Redirect]:
    """Yield the reference's chains in a table of iptables-legacy, if there is one."""
    if "nat" not in host.netns.legacy_tables(version):
        return
    import re

    from cni_common.kernel import iptables

    binary = iptables.installed(f"{iptables.COMMANDS[version]}-legacy")
    for line in iptables.listed(host.netns, binary, DNAT) if binary else ():
        found = re.search(_LEGACY_RULE, line)
        if found:
            numbers = {int(one) for one in found[2].split(",")}
            port = wanted.among({found[1]}, numbers)
            if port:
                yield Redirect(port, f"chain {found[3]} of iptables-legacy", chain=found[3])


class _Wanted:
    """The wanted ports of one IP version."""

    def __init__(self, ports: Iterable[Port]) -> None:
        self._single: set[tuple[str, int]] = set()
        self._ranges: list[Port] = []
        self.protocols: set[str] = set()
        for port in ports:
            self.protocols.add(port.protocol)
            if port.count > 1:
                self._ranges.append(port)
            else:
                self._single.add((port.protocol, port.host_port))

    def among(self, protocols: set[str], numbers: set[int]) -> str:
        """Return, for messages, a port that is wanted of `numbers`, or ""."""
        for protocol in sorted(protocols & self.protocols):
            ranges = [port for port in self._ranges if port.protocol == protocol]
            for number in sorted(numbers):
                in_range = any(port.host_port <= number <= port.last for port in ranges)
                if in_range or (protocol, number) in self._single:
                    return f"host port {number}/{protocol}"
        return ""


def _protocols(rule: Rule) -> set[str]:
    return {name for name, number in PROTOCOLS.items() if bytes([number]) in rule.compared}


def _ports(rule: Rule) -> set[int]:
    """Return the ports that a rule compares with, by itself or by iptables' match multiport."""
    ports = {int.from_bytes(one, "big") for one in rule.compared if len(one) == 2}
    for name, data in nft_messages.each_expression(rule.expressions):
        attrs = attributes(data) if name == "match" else {}
        if string_of(attrs.get(_MATCH_NAME)) == "multiport":
            info = attrs[_MATCH_INFO]  # flags, count, ports
            count = min(info[1], _MULTIPORT_MAX)
            both = (info[at : at + 2] for at in range(2, 2 + 2 * count, 2))
            ports.update(int.from_bytes(one, sys.byteorder) for one in both)
    return ports


def _redirects(rule: Rule) -> bool:
    for name, data in nft_messages.each_expression(rule.expressions):
        target = string_of(attributes(data).get(_TARGET_NAME)) if name == "target" else ""
        if name in ("nat", "redir") or target in ("DNAT", "REDIRECT"):
            return True
    return False


def _loaded(expressions: bytes) -> Iterator[bytes]:
    """Yield the constants that a rule loads, such as the address of a dnat statement."""
    for name, data in nft_messages.each_expression(expressions):
        if name == "immediate":
            value = nft_messages.immediate(data)
            if value:
                yield value
