"""What an attachment owns in the kernel, and what of an interface's pair is there."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.kernel import iptables, nft_layout
from cni_common.node import masquerade, masquerade_iptables
from plugins.bridge import macfilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from commands.node import Known


@dataclass(frozen=True, slots=True)
class Owned:
    """One object in the kernel."""

    kind: str  # as docs/operators.md has them: veth, masquerade, ...
    what: str
    present: bool


@dataclass(frozen=True, slots=True)
class Stray:
    """Something in the kernel, nobody's unless a record claims it or its address is in use."""

    kind: str
    what: str
    names: tuple[str, ...]  # network, container and interface, as far as they are known
    owner: str  # by what records claim it
    addresses: frozenset[Address]  # of the container; empty: nothing tells whether it lives
    reason: str
    remove: Callable[[], object]  # no questions asked
    idle: bool = False  # nobody can be using it, whoever lives


def objects_of_pair(host: Host, known: Known) -> Iterator[Owned]:
    """Yield what `known`, of a plugin with a veth pair, says was made, and whether it is there."""
    facts = known.facts
    if facts.get("veth"):
        link = host.netns.netlink.link(facts["veth"])
        mine = link is not None and link.mac == facts.get("veth_mac")
        port = host.netns.netlink.link_at(link.master) if link and mine and link.master else None
        where = f", port of '{port.name}'" if port else ""
        yield Owned("veth", f"'{facts['veth']}' ({facts.get('veth_mac')}){where}", mine)
    yield from _masquerading(host, known)
    if facts.get("mac_filter"):
        port_name, mac = facts.get("veth", ""), facts["mac_filter"]
        what = f"port '{port_name}', MAC {mac} in {macfilter.TABLE}"
        yield Owned("mac-filter", what, macfilter.holds(host.netns, port_name, mac))


def _masquerading(host: Host, known: Known) -> Iterator[Owned]:
    facts = known.facts
    if facts.get("masquerade") == "iptables":
        chain = masquerade_iptables.chain_of(known.network, known.attachment)
        yield Owned(
            "iptables", f"chain {chain} of table nat", iptables.has_chain(host.netns, chain)
        )
    elif facts.get("masquerade"):
        owner = masquerade.Owner(known.plugin, known.network, known.attachment)
        for text in facts.get("addresses", ()):
            address = ip_interface(text).ip
            what = f"element {address} of {nft_layout.TABLE}"
            yield Owned("masquerade", what, masquerade.holds(host.netns, owner, address))
