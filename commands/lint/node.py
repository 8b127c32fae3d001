"""Configurations, compared with this node. Needs no root, but sees more with it."""

from __future__ import annotations

import json
import os
from functools import cache, cached_property
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import OWN, NetNS
from cni_common.kernel.route import RTN_UNICAST
from cni_common.spec.names import OLDEST_VERSION, SUPPORTED_VERSIONS
from cni_common.spec.profile import HostLink, Pool
from cni_common.spec.request import Command
from commands import runtimes
from commands.kernel.links import PAIR
from commands.lint.values import facts_of
from plugins import profile_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.node.host import Loader
    from cni_common.spec.names import Cidr, Subnet
    from commands.lint.files import Entry, File

_BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
_PROXY = "KUBE-SERVICES"
_VERSION_SECONDS = 2


class ThisNode:
    """The state of the node that matters for lint, read once."""

    def __init__(self, path: Sequence[str]) -> None:
        """`path`: directories of plugins, before those of the runtimes."""
        self._netns = NetNS(OWN)
        self.runtimes = runtimes.found()
        found = [one for runtime in self.runtimes for one in runtime.bin_dirs]
        self.path = list(dict.fromkeys([*path, *(found or [runtimes.BIN_DIR])]))

    def close(self) -> None:
        """Close what was opened."""
        self._netns.close()

    @cached_property
    def links(self) -> dict[str, Link]:
        """The interfaces, by name."""
        return {one.name: one for one in self._netns.netlink.links()}

    @cached_property
    def subnets(self) -> list[tuple[Subnet, str]]:
        """The subnets of addresses and routes, with the interface; without those of containers."""
        names = {one.index: one for one in self.links.values() if one.name != "lo"}
        found = [
            (cidr.network, names[index].name)
            for index in names
            for cidr, _ in self._netns.netlink.addresses(index)
            if not cidr.is_link_local
        ]
        for version in (4, 6):
            for one in self._netns.netlink.all_routes(version):
                link, dst = names.get(one.interface), one.route.dst
                if one.type == RTN_UNICAST and link and dst.prefixlen and not dst.is_link_local:
                    found.append((dst, link.name))
        return [(net, name) for net, name in found if self.links[name].kind != PAIR]

    def addresses(self, name: str) -> list[Cidr]:
        """Return the addresses of an interface, without those that the kernel makes."""
        found = self._netns.netlink.addresses(self.links[name].index)
        return [cidr for cidr, _ in found if not cidr.is_link_local]

    @cached_property
    def uplink(self) -> Link | None:
        """The interface of the default route with the smallest MTU."""
        indexes = {
            one.interface
            for version in (4, 6)
            for one in self._netns.netlink.all_routes(version)
            if not one.route.dst.prefixlen
        }
        found = [one for one in self.links.values() if one.index in indexes]
        return min(found, key=lambda link: link.mtu, default=None)

    @cached_property
    def has_proxy(self) -> bool:
        """Whether kube-proxy writes iptables here; False for a caller that may not see it."""
        try:
            return nft_table.Table(nft_table.IPV4, "nat").has_chain(self._netns, _PROXY)
        except (NetlinkError, OSError):
            return False

    @cached_property
    def is_bridged(self) -> bool:
        """Whether packets between ports of a bridge pass iptables."""
        try:
            with open(_BRIDGED, encoding="ascii") as file:
                return file.read().strip() == "1"
        except OSError:
            return False


def check(files: Sequence[File], load: Loader, path: Sequence[str]) -> None:
    """Report what of the files does not go with this node."""
    node = ThisNode(path)
    try:
        made = {
            fact.name
            for file in files
            for entry in file.entries
            for fact in facts_of(entry, load)
            if isinstance(fact, HostLink)
        }
        for file in files:
            for entry in file.entries:
                _check_plugins(entry, node)
                _check_links(entry, load, node)
                _check_pools(entry, load, node, made)
                _check_gateways(entry, load, node)
        _check_choice(files, node)
    finally:
        node.close()


def _check_plugins(entry: Entry, node: ThisNode) -> None:
    version = entry.file.config.get("cniVersion") or OLDEST_VERSION
    for type, path in ((entry.type, ("type",)), (entry.ipam, ("ipam", "type"))):
        if not type:
            continue
        files = (os.path.join(one, type) for one in node.path)
        file = next(filter(os.path.isfile, files), "")
        if not file:
            text = f'there is no executable "{type}" in {", ".join(node.path)}: install it there'
            entry.report("L601", path, text)
            continue
        known = _versions(file)
        if known and version in SUPPORTED_VERSIONS and version not in known:
            text = (
                f"'{file}' knows the versions {', '.join(known)} and refuses every ADD of {version}"
            )
            entry.report("L608", path, f'{text}: update it, or write an older "cniVersion"')


@cache
def _versions(file: str) -> tuple[str, ...]:
    """Return the versions of the specification that an executable knows, () if it does not say."""
    import subprocess

    try:
        done = subprocess.run(
            [file],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND": Command.VERSION},
            input=b'{"cniVersion": "1.0.0"}',
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
        )
        known = json.loads(done.stdout).get("supportedVersions", ())
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired):
        return ()
    return tuple(one for one in known if isinstance(one, str)) if isinstance(known, list) else ()


def _check_links(entry: Entry, load: Loader, node: ThisNode) -> None:
    for fact in _links_of(entry, load):
        link = node.links.get(fact.name)
        if link is None and not fact.made:
            text = f"there is no interface '{fact.name}' on this node"
            entry.report("L604", fact.path, text)
        elif link is not None and fact.kind and link.kind != fact.kind:
            kind = link.kind or "device"
            text = (
                f"'{fact.name}' is a {kind} on this node, and no {fact.kind}: choose another name"
            )
            entry.report("L603", fact.path, text)
        if fact.made and node.has_proxy and not node.is_bridged:
            entry.report(
                "L606",
                fact.path,
                "kube-proxy writes iptables, which packets between containers here do not pass:"
                " modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1",
            )
    mtu, uplink = entry.given.get("mtu"), node.uplink
    if isinstance(mtu, int) and uplink and mtu > uplink.mtu:
        text = f"'{uplink.name}', by which packets leave this node, has an MTU of {uplink.mtu}"
        entry.report("L605", ("mtu",), text)


def _check_pools(entry: Entry, load: Loader, node: ThisNode, made: set[str]) -> None:
    profile = profile_of(entry.type)
    if profile is None or not profile.passes_host:
        return  # its addresses are those of another network of the node
    for fact in facts_of(entry, load):
        if not isinstance(fact, Pool):
            continue
        for subnet, name in node.subnets:
            base = name.partition(".")[0]  # a VLAN's gateway interface
            same = subnet.version == fact.subnet.version
            if same and base not in made and _overlaps(subnet, fact.subnet):
                text = f"'{name}' of this node has {subnet}: packets for one go to the other"
                entry.report("L602", fact.path, text)
                break


def _check_gateways(entry: Entry, load: Loader, node: ThisNode) -> None:
    """Report addresses of a bridge that are in the way of a gateway."""
    pools = [fact for fact in facts_of(entry, load) if isinstance(fact, Pool) and fact.gateway]
    for link in _links_of(entry, load):
        if not link.gateway or link.name not in node.links:
            continue
        present = node.addresses(link.name)
        gateways = {pool.gateway for pool in pools}
        missing = [pool for pool in pools if pool.gateway not in {one.ip for one in present}]
        others = [one for one in present if one.ip not in gateways]
        pairs = ((pool, one) for pool in missing for one in others if _excludes(one, pool.subnet))
        for pool, other in pairs:
            text = (
                f"'{link.name}' has {other} on this node, and ADD refuses to add the gateway"
                f" {pool.gateway}: if that is another host, such as the router of this LAN,"
                f' leave "{link.gateway[-1]}" out'
            )
            entry.report("L610", link.gateway, text)
            break


def _excludes(address: Cidr, subnet: Subnet) -> bool:
    """Tell whether a bridge with an address can have no gateway of a subnet beside."""
    if address.version != subnet.version:
        return False
    return address.version == 4 or _overlaps(address.network, subnet)


def _check_choice(files: Sequence[File], node: ThisNode) -> None:
    """Report files that a runtime does not take, by their names or as it takes the first one."""
    for runtime in node.runtimes:
        read = runtime.files()
        for file in files:
            is_here = os.path.dirname(os.path.abspath(file.path)) == runtime.conf_dir.rstrip("/")
            if is_here and file.entries and not file.path.endswith(tuple(runtime.read)):
                text = f"{runtime.name} reads {', '.join(runtime.read)} alone: rename the file"
                file.report("L609", (), text)
        if not runtime.takes_first or not read:
            continue
        for file in files:
            place = os.path.abspath(file.path)
            if file.entries and place in read[1:]:
                name = os.path.basename(read[0])
                text = f"{runtime.name} takes the first file, {name}, as the network of all pods"
                file.report("L607", (), text)


def _links_of(entry: Entry, load: Loader) -> Iterator[HostLink]:
    return (fact for fact in facts_of(entry, load) if isinstance(fact, HostLink))


def _overlaps(one: Subnet, other: Subnet) -> bool:
    first, last = int(one.network_address), int(one.broadcast_address)
    return int(other.network_address) <= last and first <= int(other.broadcast_address)
