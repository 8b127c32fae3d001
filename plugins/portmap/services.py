"""Addresses of Services, which are no addresses of the node though a device of it has them.

kube-proxy in mode ipvs puts each Service's address on kube-ipvs0, and NodeLocal DNSCache its own on
nodelocaldns: so packets to them are for a local address, and a host port of that number would get
them. For a local address nftables does not know the device. So while such a device is there, two
chains come before the look-up of host ports. These chains let packets pass that are for an address
of the input interface, or for one that another device had at the last ADD. Any other packet for a
local address gets the translation to where it goes anyway, and no chain after that redirects it. A
new Service is kept out from its first packet on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.nft_layout import TABLE, Chain, Layout, Set
from plugins.portmap import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Rule

DEVICES = ("kube-ipvs0", "nodelocaldns")
PREROUTING, OUTPUT = "hostport_services_prerouting", "hostport_services_output"
ADDRESSES = {4: "node_addresses4", 6: "node_addresses6"}
_BEFORE_PORTS = layout.AFTER_DSTNAT - 1


def _rules(to_own: list[bytes]) -> Iterator[Rule]:
    """Yield the rules; `to_own` matches packets for an address of their interface."""
    accept = nft_expressions.verdict(nft_table.ACCEPT)
    yield [*nft_expressions.to_local_address(invert=True), accept]
    yield [*to_own, accept]
    for version, family in nft_layout.FAMILIES.items():
        destination = [
            *nft_expressions.meta_nfproto(family.protocol),
            nft_expressions.network_bytes(family.destination, family.key[0]),
        ]
        yield [*destination, nft_expressions.lookup(ADDRESSES[version]), accept]
        yield [*destination, nft_expressions.dnat(family.protocol)]


LAYOUT = Layout(
    TABLE,
    tuple(
        Set(name, nft_layout.FAMILIES[version].key, goes_filled=True)
        for version, name in ADDRESSES.items()
    ),
    (
        Chain(
            PREROUTING,
            lambda: _rules(nft_expressions.to_local_address(of="input")),
            ("nat", nft_table.PREROUTING, _BEFORE_PORTS),
        ),
        Chain(
            OUTPUT,
            lambda: _rules(nft_expressions.to_local_address(of="output")),
            ("nat", nft_table.OUTPUT, _BEFORE_PORTS),
        ),
    ),
)


def keep_out(netns: NetNS) -> None:
    """Keep host ports from packets to Services, as long as a device has their addresses.

    Raises NetlinkError.
    """
    found = (netns.netlink.identify(name) for name in DEVICES)
    devices = {one[0] for one in found if one}
    if not devices:
        LAYOUT.remove_if_unused(netns)
        return
    wanted = {address.packed for address in netns.netlink.addresses_beside(devices)}
    if LAYOUT.is_there(netns) and wanted == {
        one.key for name in ADDRESSES.values() for one in TABLE.elements(netns, name)
    }:
        return
    names = {nft_layout.FAMILIES[version].key[0]: name for version, name in ADDRESSES.items()}
    nft_table.apply(
        netns,
        [
            *LAYOUT.base(),
            *(TABLE.flush_set(name) for name in ADDRESSES.values()),
            *(TABLE.add_element(names[len(one)], one) for one in sorted(wanted)),
        ],
    )
