"""Operations shared by interface plugins: the veth pair, addresses, routes, CHECK."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from functools import cache, cached_property, partial
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_common.kernel.link import IFF_LOWER_UP, IFF_NOARP, VethEnd
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.netns import NETLINK_ROUTE
from cni_common.kernel.route import (
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    RT_SCOPE_LINK,
    RT_TABLE_MAIN,
)
from cni_common.kernel.rtnetlink import RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_LINK
from cni_common.spec.errors import CNIError, Code, drifted, listed
from cni_common.spec.steps import CALL, WAIT, now

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netlink import Channel, Message
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.names import Address, Subnet
    from cni_common.spec.result import IPConfig, Result, Route

    Events = Callable[[], Channel]

_NAME_TRIES = 10
# First octet of the host's ends. A bridge without a MAC of its own has the lowest of its ports:
# that of a host's uplink, not that of a container.
_HIGHEST = 0xFE
_DAD_SECONDS = 5.0
_DELIVERY_SECONDS = 1.0
_MTU_MIN, _MTU_MAX = 68, 65535  # bytes, the range of veth (drivers/net/veth.c, RFC 791)
IPV6_MTU_MIN = 1280  # bytes, RFC 8200 section 5
_IPV6_EVENTS = RTMGRP_LINK | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def refuse_existing(container: NetNS, ifname: str) -> None:
    """Raise CNIError 4 if the container has an interface called `ifname`."""
    if container.netlink.identify(ifname) is not None:
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"interface '{ifname}' already exists in '{container.path}'; delete it first or choose"
            " another CNI_IFNAME",
        )


def required(netns: NetNS, name: str) -> Link:
    """Return an interface that must exist. Raises CNIError if it was removed meanwhile."""
    link = netns.netlink.link(name)
    if link is None:
        raise CNIError(
            Code.INTERNAL, f"'{name}' vanished from '{netns.path}' while it was being set up"
        )
    return link


def create_veth(
    host: NetNS,
    end: VethEnd,
    *,
    mtu: int = 0,
    master: int = 0,
    intend: Callable[[VethEnd], object] = lambda _end: None,
) -> Link:
    """Create a veth pair of which `end` is the container's, and return the host's end.

    Both ends are born in their namespaces with name, MAC and MTU; the host's, of random name and
    MAC, is up and in the bridge `master`. `intend` is told the host's end before it exists. Raises
    NetlinkError.
    """
    for attempt in range(_NAME_TRIES):
        ours = VethEnd(f"veth{os.urandom(4).hex()}", random_mac(_HIGHEST), mtu)
        intend(ours)
        try:
            link = host.netlink.add_veth(ours, replace(end, mtu=mtu), master=master)
        except NetlinkError as error:
            # The name appeared a moment ago, on the host or in the container.
            taken = error.errno == errno.EEXIST and host.netlink.link(ours.name) is not None
            if not taken or attempt == _NAME_TRIES - 1:
                raise
            continue
        # Before the other end is up, so before the carrier.
        stay_silent(host, ours.name)
        return link
    raise AssertionError  # pragma: no cover - the loop returns or raises


def host_end(host: NetNS, container: NetNS, link: Link) -> Link | None:
    """Return the other end of the container's veth `link`, None if it is not on the host."""
    other = host.netlink.link_at(link.peer) if link.kind == "veth" else None
    if other is None or other.kind != "veth" or other.peer != link.index:
        return None
    # Every namespace numbers its interfaces from 1, so the indices may agree by chance.
    return other if other.peer_nsid == host.netlink.nsid(container.fd) else None


def random_mac(first: int = 0) -> str:
    """Return a random, locally administered unicast MAC (IEEE 802, 8.2.2); `first`: its octet."""
    octets = bytearray(os.urandom(6))
    octets[0] = first or octets[0] & 0xFC | 0x02
    return octets.hex(":")


def veth_mtu(mtu: int) -> int:
    """Return `mtu`, 0 for the kernel's choice. Raises CNIError 7 outside of 68 to 65535 bytes."""
    if mtu and not _MTU_MIN <= mtu <= _MTU_MAX:
        raise CNIError(
            Code.INVALID_CONFIG, f'"mtu" is {mtu}, it must be {_MTU_MIN} to {_MTU_MAX} bytes, or 0'
        )
    return mtu


def set_sysctls(netns: NetNS, wanted: dict[str, str], needed: dict[str, str]) -> None:
    """Set sysctls; `wanted` ones may be absent or read-only, a failure of `needed` is CNIError."""
    failures = netns.sysctls({**wanted, **needed}, unseen=wanted)
    for name, error in failures.items():
        tolerable = error.errno in (errno.ENOENT, errno.EROFS, errno.EACCES)
        if name in needed or not tolerable:
            raise CNIError(
                Code.INTERNAL,
                f"cannot set sysctl {name} in '{netns.path}': {error.strerror}; is it switched off"
                " or read-only on this host?",
            )


def stay_silent(host: NetNS, name: str, *, dad: bool = False) -> None:
    """Disable router advertisements on a host's interface, and without `dad` duplicate detection.

    Call it before the interface is up. A container's router advertisement must not change the
    host's routes (CVE-2020-10749). No other host has the link-local address of a random MAC: it can
    be used at once without duplicate detection, which the host needs to find its containers.
    """
    conf = f"net/ipv6/conf/{name}"
    quiet = {} if dad else {f"{conf}/accept_dad": "0"}
    set_sysctls(host, {f"{conf}/accept_ra": "0", **quiet}, {})


def enable_forwarding(host: NetNS, versions: set[int], log: Callable[[str], object]) -> None:
    """Enable forwarding on the host for these IP versions. Never reverted. Raises CNIError."""
    if 6 in versions and host.sysctl(FORWARDING[6]) == "0":
        _keep_advertised_routes(host, log)
    set_sysctls(host, {}, {FORWARDING[version]: "1" for version in sorted(versions)})


def check_pair(
    container: NetNS, ifname: str, link: Link | None, ours: Link | None
) -> Iterator[CNIError]:
    """Yield a finding if `link` in the container or its end on the host, `ours`, is missing."""
    if link is None:
        yield drifted(f"interface '{ifname}' is missing in '{container.path}'")
    elif link.kind != "veth":
        yield drifted(f"'{ifname}' is no veth but '{link.kind}'")
    elif ours is None:
        yield drifted(f"the host's end of '{ifname}' is missing")


def check_forwarding(host: NetNS, versions: Iterable[int]) -> Iterator[CNIError]:
    """Yield a finding for each of these IP versions that the host does not forward."""
    for version in sorted(set(versions)):
        if host.sysctl(FORWARDING[version]) == "0":
            name = FORWARDING[version].replace("/", ".")
            remedy = f"run 'sysctl -w {name}=1'"
            yield drifted(f"the host no longer forwards IPv{version}", remedy)


def configure(  # noqa: PLR0913 - those by keyword are each of one kind of plugin
    container: NetNS,
    ifname: str,
    index: int,
    result: Result,
    *,
    dad: bool = False,
    routers: bool = False,
    advertised: bool = False,
    subnet_routes: Sequence[Message] | None = None,
) -> None:
    """Configure an interface with the addresses and routes of `result`, set it up, and wait for it.

    With `dad` it runs IPv6 duplicate address detection and waits for that. `routers`: the link has
    other machines' routers, which may advertise IPv6 where `result` has none; `advertised`: the
    routes for its IPv6 addresses are those. `subnet_routes`: routes to the addresses' subnets,
    instead of the kernel's own. Raises NetlinkError, CNIError.
    """
    ips = ips_of(result, ifname)
    versions = {ip.address.version for ip in ips}
    heeds_routers = advertised or (routers and 6 not in versions)
    _prepare(container, ifname, versions, dad=dad, heeds_routers=heeds_routers)
    routes = routes_of(result, ips)
    refuse_unreachable(ifname, ips, routes, routed=subnet_routes is not None)
    addresses = [ip.address for ip in ips]
    try:
        container.netlink.configure(index, addresses, routes, dad=dad, subnet_routes=subnet_routes)
    except NetlinkError as error:
        raise refused(error, container, ifname) from None
    if 6 in versions:
        events = cache(partial(container.channel, NETLINK_ROUTE, _IPV6_EVENTS))
        if dad:
            _await_dad(container, ifname, index, events)
        ipv6 = [ip.address.ip for ip in ips if ip.address.version == 6]
        _await_delivery(container, index, ipv6, events)


def check(container: NetNS, link: Link, expected: Result) -> Iterator[CNIError]:
    """Yield each difference of the container's interface `link` from `expected`."""
    for interface in expected.interfaces:
        if interface.name == link.name and interface.sandbox:
            if interface.mac and interface.mac.lower() != link.mac:
                yield drifted(f"MAC of '{link.name}' is {link.mac}, ADD gave {interface.mac}")
            if interface.mtu and interface.mtu != link.mtu:
                yield drifted(f"MTU of '{link.name}' is {link.mtu}, ADD gave {interface.mtu}")
    if not link.up:
        yield drifted(f"interface '{link.name}' is down")
    yield from _check_addresses(container, link, expected)
    yield from _check_routes(container, link, expected)


def await_operational(host: NetNS, index: int, seconds: float) -> None:
    """Wait until the interface's operstate is UP. Raises CNIError after `seconds`."""
    link = await_link(host, index, seconds)
    if link.operstate != "UP":
        raise CNIError(
            Code.INTERNAL,
            f"interface {index} did not come up: the state of '{link.name}' is {link.operstate}",
        )


def await_link(host: NetNS, index: int, seconds: float) -> Link:
    """Return an interface as soon as its operstate is UP, or as it is after `seconds`.

    Raises CNIError if it is gone.
    """
    found: list[Link | None] = []

    def is_up() -> bool:
        found[:] = [host.netlink.link_at(index)]
        return found[0] is None or found[0].operstate == "UP"

    wait_until(is_up, partial(host.channel, NETLINK_ROUTE, RTMGRP_LINK), seconds)
    if found[0] is None:
        raise CNIError(
            Code.INTERNAL, f"interface {index} of '{host.path}' is gone while it was being set up"
        )
    return found[0]


def wait_until(condition: Callable[[], bool], subscribe: Events, seconds: float) -> bool:
    """Tell whether `condition` became true within `seconds`; it is checked after each event.

    `subscribe` returns the channel of events. `subscribe` is called only if waiting is necessary:
    each subscriber gets the events of all interfaces, while the kernel holds the RTNL lock.
    """
    if condition():
        return True
    deadline, since = time.monotonic() + seconds, now()
    events = subscribe()  # then check again: it may have become true before
    try:
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0 or not events.await_event(left):
                return False
    finally:
        CALL.note(WAIT, since)
    return True


def is_operational(netns: NetNS, index: int) -> bool:
    """Tell whether an interface exists and passes packets on.

    One without neighbours (IFF_NOARP), such as a dummy, has no carrier, and no state that tells.
    """
    link = netns.netlink.link_at(index)
    if link is None:
        return False
    return link.operstate == "UP" or bool(link.up and link.flags & IFF_NOARP)


def _has_carrier(netns: NetNS, index: int) -> bool:
    """Tell whether an interface exists whose lower layer is up (IFF_LOWER_UP)."""
    link = netns.netlink.link_at(index)
    return link is not None and bool(link.flags & IFF_LOWER_UP)


def _keep_advertised_routes(host: NetNS, log: Callable[[str], object]) -> None:
    """Let the host accept router advertisements as a router, too: its uplink may need them.

    The kernel drops advertised default routes when forwarding is switched on, unless accept_ra is 2
    (ip-sysctl.rst). If it is 0, another program handles the advertisements.
    """
    for index in host.netlink.advertised_defaults():
        link = host.netlink.link_at(index)
        name = f"net/ipv6/conf/{link.name}/accept_ra" if link else ""
        if link and host.sysctl(name) == "1":
            set_sysctls(host, {name: "2"}, {})
            log(f"set sysctl {name} to 2: the default route by '{link.name}' is an advertised one")


def _prepare(
    container: NetNS, ifname: str, versions: Collection[int], *, dad: bool, heeds_routers: bool
) -> None:
    """Set the sysctls that must be set before the link is up."""
    conf4, conf6 = f"net/ipv4/conf/{ifname}", f"net/ipv6/conf/{ifname}"
    wanted = {
        # Announce the addresses, or a neighbour may keep the MAC of their last owner for a while.
        f"{conf4}/arp_notify": "1",
    }
    if heeds_routers:
        wanted[f"{conf6}/ndisc_notify"] = "1"
    else:
        # The addresses come from IPAM: a router advertisement must not add any.
        wanted[f"{conf6}/accept_ra"] = "0"
    wanted[f"{conf6}/accept_dad"] = "1" if dad else "0"
    if dad:
        wanted[f"{conf6}/enhanced_dad"] = "1"
    needed = {}
    if 6 in versions:
        wanted |= {f"{conf6}/keep_addr_on_down": "1", f"{conf6}/ndisc_notify": "1"}
        needed = {"net/ipv6/conf/lo/disable_ipv6": "0", f"{conf6}/disable_ipv6": "0"}
    set_sysctls(container, wanted, needed)


def ips_of(result: Result, ifname: str) -> list[IPConfig]:
    """Return the addresses of the container's interface `ifname`. Raises CNIError."""
    return [ip for ip in result.ips if _is_for(ip, result, ifname)]


def _is_for(ip: IPConfig, result: Result, ifname: str) -> bool:
    if ip.interface is None:
        return True
    if not 0 <= ip.interface < len(result.interfaces):
        raise CNIError(
            Code.INTERNAL,
            f"address {ip.address} is for interface {ip.interface}, and the result has"
            f" {len(result.interfaces)}",
        )
    interface = result.interfaces[ip.interface]
    return interface.name == ifname and bool(interface.sandbox)


def routes_of(result: Result, ips: Sequence[IPConfig]) -> list[Route]:
    """Return the routes of `result` in the form for the kernel, those without a gateway first.

    A gateway outside of the addresses' subnets may be reached by one of those.
    """
    gateways = _first_gateways(ips)
    routes = [_with_next_hop(route, gateways) for route in result.routes]
    return sorted(routes, key=lambda route: route.gw is not None)


def refuse_unreachable(
    ifname: str, ips: Sequence[IPConfig], routes: Sequence[Route], *, routed: bool
) -> None:
    """Raise CNIError 7 that names a route whose gateway is not on the link of the interface.

    The kernel refuses such a route. `routed`: only the addresses' gateways are on the link, not
    their subnets.
    """
    if routed:
        near = [ip_network(ip.gateway) for ip in ips if ip.gateway is not None]
    else:
        near = [ip.address.network for ip in ips]
    reached = _membership([*near, *(route.dst for route in routes if route.gw is None)])
    for route in routes:
        gateway = route.gw
        if gateway is None or (gateway.version == 6 and gateway.is_link_local) or reached(gateway):
            continue
        any_address = "0.0.0.0" if gateway.version == 4 else "::"
        direct = f'{{"dst": "{ip_network(gateway)}", "gw": "{any_address}"}}'
        raise CNIError(
            Code.INVALID_CONFIG,
            f"'{ifname}' cannot reach gateway {gateway} of the route to {route.dst}: it is in none"
            f' of the subnets {listed(near) or "(none)"}; correct the "gw" of that route, the'
            f" gateway of the address, or add a route to the gateway itself: {direct}",
        )


def _membership(subnets: Iterable[Subnet]) -> Callable[[Address], bool]:
    """Return a function that tells whether an address is in one of any number of subnets."""
    prefixes: dict[tuple[int, int], set[int]] = {}  # by IP version and number of host bits
    for subnet in subnets:
        bits = subnet.max_prefixlen - subnet.prefixlen
        prefix = int(subnet.network_address) >> bits
        prefixes.setdefault((subnet.version, bits), set()).add(prefix)
    return lambda address: any(
        version == address.version and int(address) >> bits in found
        for (version, bits), found in prefixes.items()
    )


def refused(error: NetlinkError, netns: NetNS, name: str) -> CNIError:
    """Return the error about what the kernel has refused for an interface, with its remedy."""
    # Of ipvlan alone, which takes no address that another one on its master has.
    taken = error.errno == errno.EADDRINUSE
    remedy = "; another container on the same master has that address" if taken else ""
    disabled = f"net/ipv6/conf/{name}/disable_ipv6"
    try:
        if error.errno == errno.EACCES and netns.sysctl(disabled) != "0":
            remedy = (
                f"; set sysctl {disabled} to 0, and {disabled.replace(name, 'default')} for"
                " interfaces to come"
            )
    except OSError:
        pass
    return CNIError(Code.INTERNAL, f"{error} (interface '{name}' in '{netns.path}'){remedy}")


def _first_gateways(ips: Sequence[IPConfig]) -> dict[int, Address]:
    gateways: dict[int, Address] = {}
    for ip in ips:
        if ip.gateway is not None:
            gateways.setdefault(ip.address.version, ip.gateway)
    return gateways


def _with_next_hop(route: Route, gateways: dict[int, Address]) -> Route:
    """Return `route` in the form for the kernel: 0.0.0.0 and :: as `gw` mean on-link."""
    if route.gw is not None:
        return replace(route, gw=None) if route.gw.is_unspecified else route
    if route.scope is not None and route.scope >= RT_SCOPE_LINK:  # on-link: no next hop
        return route
    return replace(route, gw=gateways.get(route.dst.version))


def _await_dad(container: NetNS, ifname: str, index: int, events: Events) -> None:
    def dad_is_done() -> bool:
        states = container.netlink.addresses(index)
        for address, flags in states:
            if flags & IFA_F_DADFAILED:
                raise CNIError(
                    Code.INTERNAL, f"another host on the link uses {address.ip} of '{ifname}'"
                )
        if not any(flags & IFA_F_TENTATIVE for _, flags in states):
            return True
        # Where no carrier is, detection does not begin, and no packet meets a duplicate.
        return not _has_carrier(container, index)

    if not wait_until(dad_is_done, events, _DAD_SECONDS) and is_operational(container, index):
        raise CNIError(
            Code.INTERNAL,
            f"duplicate address detection on '{ifname}' took over {_DAD_SECONDS:g} s",
        )


def _await_delivery(
    container: NetNS, index: int, addresses: Sequence[Address], events: Events
) -> None:
    """Wait until the container accepts packets for its IPv6 addresses, at most a second.

    Where no carrier is, no packet comes.

    The kernel activates an IPv6 address some time after it was added, in a work item. A neighbour's
    solicitation before that is lost, and delays its first packet by a second.
    """

    def delivers() -> bool:
        if not all(map(container.netlink.is_local, addresses)):
            return not _has_carrier(container, index)
        return is_operational(container, index) or not _has_carrier(container, index)

    wait_until(delivers, events, _DELIVERY_SECONDS)


def found_addresses(
    container: NetNS, link: Link | None, expected: Result
) -> Iterator[tuple[str, bool]]:
    """Yield each address of `expected`, and whether `link` has it."""
    there = {cidr for cidr, _ in container.netlink.addresses(link.index)} if link else set()
    for ip in expected.ips:
        yield str(ip.address), ip.address in there


def found_routes(
    container: NetNS, link: Link | None, expected: Result
) -> Iterator[tuple[str, bool]]:
    """Yield each route of `expected` in words, and whether it leads over `link`."""
    there = _Routes(container, link)
    gateways = _first_gateways(expected.ips)
    for route in expected.routes:
        wanted = _with_next_hop(route, gateways)
        yield _route_text(wanted), there.has(wanted)


def put_back(container: NetNS, link: Link, expected: Result) -> None:
    """Add the addresses and routes of `expected` that `link` lacks, and set it up.

    Routes stay away where a later plugin has put the interface's into tables of its own.
    """
    present = {cidr for cidr, _ in container.netlink.addresses(link.index)}
    addresses = [ip.address for ip in expected.ips if ip.address not in present]
    there, gateways = _Routes(container, link), _first_gateways(expected.ips)
    wanted = [_with_next_hop(one, gateways) for one in expected.routes]
    routes = [] if there.are_elsewhere else [one for one in wanted if not there.has(one)]
    if addresses or routes or not link.up:
        container.netlink.configure(link.index, addresses, routes, dad=False)


def _check_addresses(container: NetNS, link: Link, expected: Result) -> Iterator[CNIError]:
    present = {cidr for cidr, _ in container.netlink.addresses(link.index)}
    for ip in ips_of(expected, link.name):
        if ip.address not in present:
            have = listed(sorted(map(str, present))) or "none"
            yield drifted(f"address {ip.address} of '{link.name}' is missing, it has {have}")


def _check_routes(container: NetNS, link: Link, expected: Result) -> Iterator[CNIError]:
    ips = ips_of(expected, link.name)
    gateways = _first_gateways(ips)
    present = _Routes(container, link)
    for route in expected.routes:
        wanted = _with_next_hop(route, gateways)
        if not present.has(wanted):
            have = listed(map(_route_text, present.instead_of(wanted))) or "nothing"
            yield drifted(
                f"route {_route_text(wanted)} over '{link.name}' is missing, there is {have}"
            )


class _Routes:
    """The routes over the container's interface."""

    def __init__(self, container: NetNS, link: Link | None) -> None:
        self._container = container
        self._link = link
        # By destination and table: of thousands a search for each would take long.
        self._found: dict[tuple[Subnet, int], list[Route]] = {}
        for route in container.netlink.routes(link.index) if link else ():
            self._found.setdefault((route.dst, route.table or RT_TABLE_MAIN), []).append(route)

    def has(self, wanted: Route) -> bool:
        """Tell whether there is such a route, also where it was moved from the main table.

        A default route of another table may have another gateway: that is up to its owner.
        """
        if any(_matches(found, wanted) for found in self.instead_of(wanted)):
            return True
        if (wanted.table or RT_TABLE_MAIN) != RT_TABLE_MAIN:
            return False
        return any(
            not wanted.dst.prefixlen or _matches(found, wanted)
            for table in self._other_tables
            for found in self._found.get((wanted.dst, table), ())
        )

    @property
    def are_elsewhere(self) -> bool:
        """Whether a later plugin has put them into tables of its own."""
        return bool((self._link and self._link.master) or self._other_tables)

    def instead_of(self, wanted: Route) -> Sequence[Route]:
        """Return the routes to the same destination in the table of `wanted`."""
        return self._found.get((wanted.dst, wanted.table or RT_TABLE_MAIN), ())

    @cached_property
    def _other_tables(self) -> set[int]:
        """The tables to which a later plugin of the chain may have moved routes."""
        from cni_common.kernel import policy_routing

        link = self._link
        return policy_routing.tables_beside_main(self._container.netlink, link) if link else set()


def _matches(found: Route, wanted: Route) -> bool:
    return found.gw == wanted.gw and all(
        getattr(wanted, key) in (None, getattr(found, key)) for key in ("mtu", "advmss", "priority")
    )


def _route_text(route: Route) -> str:
    parts = [f"to {route.dst}"]
    for word, value in (
        ("via", route.gw),
        ("metric", route.priority),
        ("mtu", route.mtu),
        ("table", route.table),
    ):
        if value is not None:
            parts.append(f"{word} {value}")
    return " ".join(parts)
