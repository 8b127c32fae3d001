"""The parts that interface plugins share: a veth pair, masquerading, the addresses of IPAM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.node import masquerade, veth
from cni_common.node.lifecycle import Part, attached_already
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import ipam_type
from cni_common.spec.names import CURRENT_VERSION
from cni_common.spec.request import Attachment, Command
from cni_common.spec.result import IPConfig, Result
from cni_common.spec.undo import BestEffort

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cni_common.kernel.link import Link, VethEnd
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Unrecorded
    from cni_common.node.owned import Owned, Stray, Usage
    from cni_common.node.record import Record
    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_OVER_INTERFACE = "dhcp"  # the IPAM plugin that needs the interface, ours or the reference's
_ROUTES_MAX = 256  # that a record notes: enough to see that routes are gone

# --- the veth pair -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VethFacts:
    """A veth pair. The record with `host_end` and its MAC owns that interface."""

    PART = "veth"
    host_end: str = ""  # name of the host's end
    host_end_mac: str = ""
    container_mac: str = ""


class Veth(Part):
    """A veth pair between the container and the host."""

    facts = VethFacts
    derived = True
    has_addresses = True

    def __init__(self, is_in_network: Callable[[Request, Host, Link], bool]) -> None:
        """`is_in_network` decides on a pair without a record, by its end on the host."""
        self._is_in_network = is_in_network

    def create(
        self, attaching: Attaching, host: Host, end: VethEnd, *, mtu: int, master: int = 0
    ) -> Link:
        """Create the pair with `end` in the container; return the host's end, a port of `master`.

        The pair is noted before it exists, and taken back if the ADD fails. Raises NetlinkError.
        """

        def intend(ours: VethEnd) -> None:
            attaching.note(VethFacts(ours.name, ours.mac, end.mac))
            attaching.take_back(self)

        return veth.create_veth(host.netns, end, mtu=mtu, master=master, intend=intend)

    def teardown(self, req: Request, host: Host, _record: Record, facts: VethFacts) -> None:
        """Delete the pair, by either end."""
        if host.delete_link(host.netns, facts.host_end, facts.host_end_mac):
            return
        # The host's end may have been renamed; the container's end still has its MAC.
        container = host.find_netns(req.netns)
        if container and facts.container_mac:
            host.delete_link(container, req.ifname, facts.container_mac)

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Delete the container's interface if it leads to the network; note its addresses."""
        container = host.find_netns(req.netns)
        if container is None:
            return
        try:
            link = container.netlink.link(req.ifname)
            ours = veth.host_end(host.netns, container, link) if link else None
            is_ours = ours is not None and self._is_in_network(req, host, ours)
        except OSError:
            found.exists = req.ifname in container.interfaces()
            raise
        if link is None or ours is None:
            return
        if not is_ours:
            host.log(f"DEL leaves '{req.ifname}' alone: '{ours.name}' is not of this network")
            return
        record = record_of(host, found.plugin, ours)
        if record and record.attachment.containerid:
            # The path was that of a namespace which died, and by now is that of another.
            other = record.attachment.containerid
            host.log(f"DEL leaves '{req.ifname}' alone: it is of container {other}")
            return
        found.exists = True
        addresses = {cidr.ip for cidr, _ in container.netlink.addresses(link.index)}
        host.delete_link(host.netns, ours.name, ours.mac)
        found.addresses.update(one for one in addresses if not one.is_link_local)

    def refuse_living(self, req: Request, host: Host, record: Record, facts: VethFacts) -> None:
        """Raise CNIError 4 when the interface is there."""
        if _find(host, facts):
            raise attached_already(req, record)

    def restore(self, _req: Request, host: Host, _record: Record, facts: VethFacts) -> None:
        """Set the host's end up; a pair that is gone stays gone."""
        link = _find(host, facts)
        if link and not link.up:
            host.netns.netlink.set_up(link.index)

    def present(self, host: Host, _record: Record, facts: VethFacts) -> Iterator[Owned]:
        """Yield the pair, by the host's end, and its state if that is down."""
        from cni_common.node.owned import Owned

        link = _find(host, facts)
        port = host.netns.netlink.link_at(link.master) if link and link.master else None
        where = f", port of '{port.name}'" if port else ""
        what = f"'{facts.host_end}' ({facts.host_end_mac}){where}"
        yield Owned(self.name, what, link is not None, final=True)
        if link and not link.up:
            yield Owned(self.name, f"'{facts.host_end}', up", present=False)

    def devices(self, facts: VethFacts) -> Iterator[str]:
        """Yield the host's end."""
        yield facts.host_end


def record_of(host: Host, plugin: str, link: Link) -> Record | None:
    """Return the plugin's record of the pair whose end on the host is `link`, only to be read."""
    return next(
        (
            record
            for record in host.records.of_plugin(plugin)
            if (facts := record.get(VethFacts))
            and (facts.host_end, facts.host_end_mac) == (link.name, link.mac)
        ),
        None,
    )


def _find(host: Host, facts: VethFacts) -> Link | None:
    link = host.netns.netlink.link(facts.host_end)
    return link if link and link.mac == facts.host_end_mac else None


# --- masquerading ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MasqueradeFacts:
    """Masquerading of what leaves the network."""

    PART = "masquerade"
    backend: str = ""  # nftables or iptables
    addresses: Sequence[str] = ()  # of the container, with prefix length


class Masquerade(Part):
    """Masquerading of a container's addresses, by nftables or iptables."""

    facts = MasqueradeFacts
    derived = True

    def teardown(self, _req: Request, host: Host, record: Record, facts: MasqueradeFacts) -> None:
        """Remove the elements, or the chain."""
        addresses = [ip_interface(text) for text in facts.addresses]
        masquerade.remove(
            host.netns,
            masquerade.owner_of(record),
            [cidr.ip for cidr in addresses],
            backend=facts.backend,
            subnets={cidr.network for cidr in addresses},
        )

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Remove what there is for the addresses, ours and the reference's."""
        owner = masquerade.Owner(found.plugin, req.network, req.attachment)
        with BestEffort() as steps:
            steps.attempt("ours", lambda: masquerade.remove(host.netns, owner, found.addresses))
            steps.attempt(
                "the reference's",
                lambda: masquerade.remove_of_reference(host.netns, owner, found.addresses),
            )

    def collect(self, req: Request, host: Host, plugin: str) -> None:
        """GC: remove what no record names, ours and the reference's, of addresses not in use."""
        valid = req.valid_attachments
        if valid is None:
            return
        from cni_common.node.namespaces import addresses_in_use

        in_use = cache(partial(addresses_in_use, host))

        def keep() -> frozenset[Attachment]:
            # To be asked for after a look at what there is: a record is there before all the rest.
            recorded = host.records.of_plugin(plugin)
            return valid | {one.attachment for one in recorded if one.network == req.network}

        with BestEffort() as steps:
            network = [plugin, req.network]
            steps.attempt(
                "elements", lambda: _collect_elements(host, network, keep=keep, in_use=in_use)
            )
            steps.attempt(
                "the reference's",
                lambda: [
                    host.log(f"GC removes {what}")
                    for what in masquerade.gc_of_reference(
                        host.netns, req.network, keep, lambda address: address in in_use()
                    )
                ],
            )

    def restore(self, req: Request, host: Host, record: Record, facts: MasqueradeFacts) -> None:
        """Add the elements again, with the base around them, or the chain and what leads to it."""
        addresses = [ip_interface(text) for text in facts.addresses]
        if facts.backend == "iptables":
            from cni_common.node import masquerade_iptables

            names = record.network, record.attachment
            masquerade_iptables.add(host.netns, *names, addresses, again=True)
            return
        masquerade.add(
            host.netns,
            masquerade.owner_of(record),
            addresses,
            backend=facts.backend,
            holder_of=lambda text, address: _holder_of(req, host, text, address),
        )

    def present(self, host: Host, record: Record, facts: MasqueradeFacts) -> Iterator[Owned]:
        """Yield the chain of iptables, or the elements of nftables."""
        from cni_common.kernel import nft_layout
        from cni_common.node.owned import Owned, lost_rules

        cidrs = [ip_interface(text) for text in facts.addresses]
        if facts.backend == "iptables":
            from cni_common.kernel import iptables
            from cni_common.node import masquerade_iptables

            chain = masquerade_iptables.chain_of(record.network, record.attachment)
            there = iptables.has_chain(host.netns, chain)
            yield Owned("iptables", f"chain {chain} of table nat", there)
            names = record.network, record.attachment
            for what in masquerade_iptables.check(host.netns, *names, cidrs):
                yield Owned("iptables", what.removesuffix(" is missing"), present=False)
            return
        for cidr in cidrs:
            what = f"element {cidr.ip} of {nft_layout.TABLE}"
            there = masquerade.holds(host.netns, masquerade.owner_of(record), cidr.ip)
            yield Owned(self.name, what, there)
        chain = masquerade.chain_of(record.network, cidrs)
        yield from lost_rules(self.name, masquerade.LAYOUT, host.netns, chain)

    def usage(self, host: Host, record: Record, facts: MasqueradeFacts) -> Iterator[Usage]:
        """Yield each address; of iptables those of one family together, as one rule has them."""
        from cni_common.node.owned import Usage

        found = [ip_interface(text).ip for text in facts.addresses]
        if facts.backend == "iptables":
            from cni_common.node import masquerade_iptables

            for version in sorted({one.version for one in found}):
                names = record.network, record.attachment
                hits = masquerade_iptables.counted(host.netns, *names, version)
                what = ", ".join(str(one) for one in found if one.version == version)
                yield Usage(self.name, what, *(hits or ()))
            return
        counted = masquerade.counted(host.netns, found)
        for address, one in zip(found, counted, strict=True):
            yield Usage(self.name, str(address), *(one or ()))

    def strays(self, host: Host) -> list[Stray]:
        """Return the elements of nftables, and what the reference has made."""
        from cni_common.node import masquerade_strays

        return masquerade_strays.of(host)

    def claims(self, record: Record) -> tuple[str, ...]:
        """Return the owner as elements name it, and as chains of the reference do."""
        return str(masquerade.owner_of(record)), f"{record.network} {record.attachment.containerid}"

    def addresses(self, facts: MasqueradeFacts) -> Sequence[str]:
        """Return them with prefix length."""
        return facts.addresses


MASQUERADE = Masquerade()


def add_masquerade(
    attaching: Attaching, req: Request, host: Host, addresses: Sequence[Cidr], *, backend: str
) -> None:
    """Masquerade what `addresses` send to outside of their subnets. Raises CNIError, OSError."""
    attaching.note(MasqueradeFacts(backend, [str(cidr) for cidr in addresses]))
    attaching.take_back(MASQUERADE)
    masquerade.add(
        host.netns,
        masquerade.owner_of(attaching.record),
        addresses,
        backend=backend,
        holder_of=lambda text, address: _holder_of(req, host, text, address),
    )


def _holder_of(req: Request, host: Host, owner: str, address: Address) -> str:
    from cni_common.node import liveness

    return liveness.holder_of(host, owner, address, ours=req.netns)


def _collect_elements(
    host: Host,
    network: Sequence[str],
    *,
    keep: Callable[[], Collection[Attachment]],
    in_use: Callable[[], Collection[Address]],
) -> None:
    """Remove the elements of a network, given as plugin and name, without an attachment."""
    present = masquerade.owners(host.netns)
    kept = keep()
    for text, address in present:
        parts = text.split(" ")
        if parts[:2] != network or len(parts) != 4:
            continue
        attachment = Attachment(parts[2], parts[3])
        if attachment in kept or address in in_use():
            continue
        held = host.records.hold_place(parts[0], parts[1], attachment)
        if held is None:
            continue
        try:
            masquerade.remove_element(host.netns, address, text)
            host.log(f"GC removes the masquerade element of {address}: no record of {text}")
        finally:
            held.remove()


# --- the container's interface -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConfigurationFacts:
    """The configuration of the container's interface, as ADD has left it."""

    PART = "configuration"
    mtu: int = 0  # bytes
    ips: Sequence[Json] = ()  # as in a result of CNI 1.1.0, without the interface
    routes: Sequence[Json] = ()  # likewise, the first _ROUTES_MAX


class Configuration(Part):
    """MAC, MTU, addresses and routes; they go with the interface."""

    facts = ConfigurationFacts
    derived = True
    inside = True

    def restore(
        self, _req: Request, _host: Host, record: Record, facts: ConfigurationFacts
    ) -> None:
        """Add addresses and routes again; another MAC or MTU may be the container's wish."""
        from cni_common.node.owned import recorded_netns

        with recorded_netns(record) as container:
            link = container.netlink.link(record.attachment.ifname) if container else None
            if container and link:
                veth.put_back(container, link, _noted(facts))

    def present(self, _host: Host, record: Record, facts: ConfigurationFacts) -> Iterator[Owned]:
        """Yield each setting, if the container's namespace can be entered."""
        from cni_common.node.owned import Owned, recorded_netns

        ifname, pair = record.attachment.ifname, record.get(VethFacts)
        expected = _noted(facts)
        with recorded_netns(record) as container:
            if container is None:
                return
            link = container.netlink.link(ifname)
            mac, mtu = (link.mac, link.mtu) if link else ("", 0)
            if pair and pair.container_mac:
                what, setting = f"{pair.container_mac} of '{ifname}'", f"mac of {ifname}"
                yield Owned("mac", what, mac == pair.container_mac, setting=setting, final=True)
            what, setting = f"{facts.mtu} of '{ifname}'", f"mtu of {ifname}"
            yield Owned("mtu", what, mtu == facts.mtu, setting=setting, final=True)
            for what, there in veth.found_addresses(container, link, expected):
                yield Owned("address", f"{what} of '{ifname}'", there, final=link is None)
            for what, there in veth.found_routes(container, link, expected):
                yield Owned("route", f"{what} over '{ifname}'", there, final=link is None)

    def addresses(self, facts: ConfigurationFacts) -> list[str]:
        """Return them with prefix length."""
        return [str(ip["address"]) for ip in facts.ips]


CONFIGURATION = Configuration()


def _noted(facts: ConfigurationFacts) -> Result:
    return Result.parse({"ips": list(facts.ips), "routes": list(facts.routes)})


def ips_in(facts: ConfigurationFacts) -> list[IPConfig]:
    """Return the noted addresses with their gateways."""
    return Result.parse({"ips": list(facts.ips)}).ips


def note_configuration(attaching: Attaching, ifname: str, mtu: int, result: Result) -> None:
    """Note how the container's interface is about to be configured. Raises OSError."""
    ips = [IPConfig(ip.address, ip.gateway) for ip in veth.ips_of(result, ifname)]
    told = Result(ips=ips, routes=result.routes[:_ROUTES_MAX]).to_json(CURRENT_VERSION)
    attaching.note(ConfigurationFacts(mtu, told.get("ips", ()), told.get("routes", ())))


def forwarding(host: Host, versions: Collection[int]) -> Iterator[Owned]:
    """Yield the sysctls by which the host forwards packets of these IP versions."""
    from cni_common.node.owned import Owned

    for version in sorted(versions):
        name = veth.FORWARDING[version]
        there = host.netns.sysctl(name) != "0"
        yield Owned("forwarding", f"sysctl {name.replace('/', '.')}", there, shared=True)


# --- addresses ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IpamFacts:
    """Addresses that an IPAM plugin gives."""

    PART = "ipam"
    type: str = ""  # of the plugin


class Ipam(Part):
    """Addresses of the IPAM plugin, with the configuration of their ADD."""

    facts = IpamFacts
    derived = True
    lasting = True
    gives_addresses = True

    def teardown(self, req: Request, host: Host, record: Record, facts: IpamFacts) -> None:
        """Release the addresses by the plugin's DEL."""
        stdin = record.facts.get("stdin", "").encode() or req.stdin
        host.delegate(facts.type, req, Command.DEL, stdin=stdin)

    def teardown_unrecorded(self, req: Request, host: Host, _found: Unrecorded) -> None:
        """Likewise, by the configuration of the DEL; without that plugin it gave no address."""
        type = ipam_type(req.config)
        if not type:
            return
        try:
            host.is_ours(type, req.path)
        except CNIError as error:
            host.log(f"DEL goes on without the IPAM plugin: {error.msg}")
            return
        host.delegate(type, req, Command.DEL)

    def goes_first(self, req: Request, facts: IpamFacts | None) -> bool:
        """Tell whether it is DHCP: a lease is given back over the interface."""
        return (facts.type if facts else ipam_type(req.config)) == _OVER_INTERFACE

    def collect(self, req: Request, host: Host, _plugin: str) -> None:
        """Have the plugin do its GC."""
        if ipam_type(req.config):
            host.delegate(ipam_type(req.config), req, Command.GC)


IPAM = Ipam()


def check_ipam(req: Request, host: Host, type: str) -> Iterator[CNIError]:
    """Yield the IPAM plugin's answer to CHECK, if that is an error: all else is still looked at."""
    try:
        host.delegate(type, req, Command.CHECK)
    except CNIError as error:
        yield error


def allocate(req: Request, host: Host, type: str, attaching: Attaching, *, mtu: int) -> Result:
    """Return the IPAM plugin's result, of one address at least, taken back if the ADD fails.

    Raises CNIError, also when `mtu` (0: the kernel's) is too small for the addresses.
    """
    undo = partial(attaching.give_back, first=type == _OVER_INTERFACE)
    given = host.delegate(type, req, Command.ADD, undo=undo)
    if given is None:
        raise CNIError(Code.INTERNAL, f"IPAM plugin '{type}' returned no result")
    given.refuse_contradictions(f"IPAM plugin '{type}'")
    if not given.ips:
        raise CNIError(
            Code.INTERNAL, f"IPAM plugin returned missing IP config: '{type}' gave no address"
        )
    refuse_small_mtu(given.ips, mtu)
    return given


def refuse_small_mtu(ips: Sequence[IPConfig], mtu: int) -> None:
    """Raise CNIError 7 if `mtu`, in bytes (0: the kernel's), is too small for the addresses."""
    if 0 < mtu < veth.IPV6_MTU_MIN and any(ip.address.version == 6 for ip in ips):
        raise CNIError(
            Code.INVALID_CONFIG,
            f'"mtu" is {mtu}, IPv6 needs {veth.IPV6_MTU_MIN} bytes (RFC 8200)',
        )
