"""The bridge itself, and the container's port on it."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_common.kernel.link import IFF_PROMISC
from cni_common.kernel.netlink import NetlinkError
from cni_common.node import veth
from cni_common.spec.errors import CNIError, Code, drifted
from plugins.bridge.vlan import replace_vlans, vlans_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Cidr
    from cni_common.spec.result import Result
    from plugins.bridge.conf import Conf


def ensure_bridge(host: NetNS, conf: Conf) -> tuple[Link, list[Cidr]]:
    """Return the bridge, up; create it unless it exists. Shared, so never rolled back.

    With it come those of its addresses that had to be looked at. Raises CNIError 7 if the existing
    interface cannot serve this configuration, NetlinkError.
    """
    link = host.netlink.link(conf.bridge)
    if link is None:
        try:
            host.netlink.add_bridge(
                conf.bridge,
                # A MAC of its own; otherwise the kernel would use the lowest MAC of its ports.
                mac=veth.random_mac(),
                mtu=conf.mtu,
                vlan_filtering=conf.vlan_filtering,
            )
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP and conf.vlan_filtering:
                raise _no_vlans(conf) from None
            if error.errno != errno.EEXIST:  # another ADD was faster
                raise
        link = host.netlink.link(conf.bridge)
    if link is None:
        raise CNIError(Code.INTERNAL, f"bridge '{conf.bridge}' vanished as soon as it was made")
    refuse_other_type(link, conf)
    if conf.vlan_filtering and not link.vlan_filtering:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"bridge '{conf.bridge}' does not filter VLANs, so its ports would not be separated;"
            f" run 'ip link set {conf.bridge} type bridge vlan_filtering 1'",
        )
    _refuse_to_remove_ipv6(host, link, conf)
    # A bridge that is up may lead into a real network: its DAD setting is kept.
    veth.stay_silent(host, conf.bridge, dad=link.up)
    if conf.promiscuous and not link.flags & IFF_PROMISC:
        host.netlink.set_promiscuous(link.index)
    if not link.up:
        host.netlink.set_up(link.index)
    if conf.is_gateway and conf.ipam:
        return _with_kept_mac(host, link)
    return link, []


def fix_mac(host: NetNS, link: Link) -> str:
    """Have an interface keep its MAC, and return that."""
    # A bridge that had ports and has none any more has the MAC 0, which cannot be set.
    mac = link.mac if link.mac.strip("0:") else veth.random_mac()
    host.netlink.set_mac(link.index, mac)
    return mac


def _with_kept_mac(host: NetNS, bridge: Link) -> tuple[Link, list[Cidr]]:
    """Have a bridge keep its MAC when ports come and go, before it gets its first address.

    Return it with its addresses of the first IP version of which it has one.

    A bridge made without a MAC has the lowest MAC of its ports: containers would lose their gateway
    for a while. To be called before our port is in it. One with an address has neighbours, which
    the kernel forgets when a MAC is set.
    """
    for version in (4, 6):
        addresses = [cidr for cidr, _ in host.netlink.addresses(bridge.index, (version,))]
        if any(version == 4 or not cidr.is_link_local for cidr in addresses):
            return bridge, addresses
    return replace(bridge, mac=fix_mac(host, bridge)), []


def refuse_other_type(link: Link | None, conf: Conf) -> None:
    """Raise CNIError 7 if an interface with the bridge's name is no bridge."""
    if link is not None and link.kind != "bridge":
        raise CNIError(
            Code.INVALID_CONFIG,
            f"'{conf.bridge}' already exists but is not a bridge; rename one of the two",
        )


def fit_mtu(host: NetNS, bridge: Link, conf: Conf) -> int:
    """Lower the bridge's MTU to the port's, and return the bridge's MTU in bytes.

    The kernel does so by itself unless a program has set the bridge's MTU. To be called after
    every check that can refuse the ADD: other networks use the bridge, too.
    """
    if not 0 < conf.mtu < bridge.mtu:
        return bridge.mtu
    host.netlink.set_mtu(bridge.index, conf.mtu)
    return conf.mtu


def configure(host: NetNS, port: Link, conf: Conf, *, anew: bool = False) -> None:
    """Give the port its flags and VLANs; `anew`: other programs may have changed them."""
    if conf.hairpin or conf.isolated or anew:
        host.netlink.set_port(port.index, hairpin=conf.hairpin, isolated=conf.isolated)
    if conf.vlans:
        keep = conf.preserve_default_vlan
        replace_vlans(host.netlink, port.index, conf.vlans, keep=keep)


def check(host: NetNS, conf: Conf, port: Link | None, expected: Result) -> Iterator[CNIError]:
    """Yield each difference of the bridge and the container's `port` from the result of ADD."""
    bridge = host.netlink.link(conf.bridge)
    if bridge is None or bridge.kind != "bridge":
        yield drifted(f"bridge '{conf.bridge}' is {'no bridge' if bridge else 'missing'}")
    else:
        yield from _check_bridge(conf, bridge)
        if port and port.master != bridge.index:
            remedy = f"run 'ip link set {port.name} master {conf.bridge}'"
            yield drifted(f"'{port.name}' is not a port of bridge '{conf.bridge}'", remedy)
    if port:
        yield from _check_port(host, conf, port, expected)


def _check_bridge(conf: Conf, bridge: Link) -> Iterator[CNIError]:
    if not bridge.up:
        yield drifted(f"bridge '{bridge.name}' is down", f"run 'ip link set {bridge.name} up'")
    if conf.promiscuous and not bridge.flags & IFF_PROMISC:
        remedy = f"run 'ip link set {bridge.name} promisc on'"
        yield drifted(f"bridge '{bridge.name}' is not promiscuous", remedy)


def _refuse_to_remove_ipv6(host: NetNS, link: Link, conf: Conf) -> None:
    """Raise CNIError 7 if the port's MTU would remove IPv6 addresses of other networks.

    The bridge gets the MTU of its smallest port, and the kernel removes IPv6 below 1280 bytes.
    """
    if not 0 < conf.mtu < veth.IPV6_MTU_MIN <= link.mtu:
        return
    for cidr, _ in host.netlink.addresses(link.index, (6,)):
        if not cidr.is_link_local:
            raise CNIError(
                Code.INVALID_CONFIG,
                f"\"mtu\" is {conf.mtu}, and bridge '{conf.bridge}' has {cidr}, which needs"
                f" {veth.IPV6_MTU_MIN} bytes (RFC 8200); give this network another bridge",
            )


def _no_vlans(conf: Conf) -> CNIError:
    return CNIError(
        Code.INVALID_CONFIG,
        f"cannot make bridge '{conf.bridge}': this kernel has no VLAN filtering"
        ' (CONFIG_BRIDGE_VLAN_FILTERING); remove "vlan" and "vlanTrunk", or use another kernel',
    )


def _check_port(host: NetNS, conf: Conf, port: Link, expected: Result) -> Iterator[CNIError]:
    for entry in expected.interfaces:
        if entry.name != port.name or entry.sandbox:
            continue
        if entry.mac not in ("", port.mac):
            yield drifted(f"MAC of '{port.name}' is {port.mac}, ADD gave {entry.mac}")
        mtu = entry.mtu or conf.mtu
        if mtu not in (0, port.mtu):
            yield drifted(f"MTU of '{port.name}' is {port.mtu}, ADD gave {mtu}")
    for flag, wanted in _altered_flags(conf, port):
        found, due = ("off", "on") if wanted else ("on", "off")
        remedy = f"run 'bridge link set dev {port.name} {flag} {due}'"
        yield drifted(f"port flag {flag} of '{port.name}' is {found}", remedy)
    for vid in _lost_vlans(host, conf, port):
        yield drifted(f"VLAN {vid} of '{port.name}' is missing or altered")


def altered(host: NetNS, conf: Conf, port: Link) -> Iterator[str]:
    """Yield each flag and VLAN that `configure` gave the port and that it has not."""
    for flag, wanted in _altered_flags(conf, port):
        yield f"flag {flag} {'on' if wanted else 'off'} of '{port.name}'"
    for vid in _lost_vlans(host, conf, port):
        yield f"VLAN {vid} of '{port.name}'"


def _altered_flags(conf: Conf, port: Link) -> Iterator[tuple[str, bool]]:
    """Yield name and due value of each flag that differs."""
    for flag, is_set, wanted in (
        ("hairpin", port.hairpin, conf.hairpin),
        ("isolated", port.isolated, conf.isolated),
    ):
        if is_set != wanted:
            yield flag, wanted


def _lost_vlans(host: NetNS, conf: Conf, port: Link) -> Iterator[int]:
    present = set(vlans_of(host.netlink, port.index)) if conf.vlans else set()
    yield from (one.vid for one in conf.vlans if one not in present)
