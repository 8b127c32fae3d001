"""vrf: the interface is routed by itself, in a VRF that it may share with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.policy_routing import all_rules, free_table, used_tables
from cni_common.kernel.route import RT_TABLE_MAIN
from cni_common.node import veth
from cni_common.node.netns_lock import NetnsLock
from cni_common.spec.errors import CNIError, Code, drifted
from plugins.vrf import device, parts
from plugins.vrf.conf import SCHEMA, Conf
from plugins.vrf.parts import LIFECYCLE, PLACE, VrfFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching, Lifecycle
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]

_FIRST_TABLE = 1  # as in the reference
_SECONDS = 5.0  # limit until the kernel uses the IPv6 addresses again


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Put the interface into the VRF, with its addresses and routes, and return prevResult."""
    conf = Conf.of(req)
    result = req.require_prev_result()
    container = host.open_netns(req.netns)
    veth.required(container, req.ifname)
    attaching = LIFECYCLE.begin(req, host, undo)
    with NetnsLock(host.state_dir, container):  # the VRF's last attachment may delete it
        facts = _enter(attaching, container, conf, veth.required(container, req.ifname))
    _complete(container, req.ifname, facts)
    return result


def delete(req: Request, host: Host) -> None:
    """Take the interface out of the VRF: by the record of what ADD made, else by its name."""
    LIFECYCLE.delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    ips = veth.ips_of(req.require_prev_result(), req.ifname)
    container = host.open_netns(req.netns)
    link = container.netlink.link(req.ifname)
    there = device.find(container, conf.name)
    if link is None:
        yield drifted(f"interface '{req.ifname}' is missing in '{req.netns}'")
    elif there is None:
        yield drifted(f"VRF '{conf.name}' is missing in '{req.netns}'")
    else:
        record = host.records.peek(
            host.records.path_of(LIFECYCLE.plugin, req.network, req.attachment)
        )
        facts = (record.get(VrfFacts) if record else None) or VrfFacts()
        yield from _check_place(container, link, *there, wanted=conf.table or facts.table)
        yield from _check_rules(container, {ip.address.version for ip in ips})
        for what, found in parts.found_routes(container, facts):
            if not found:
                yield drifted(f"route {what} over '{link.name}' is missing")


def gc(req: Request, host: Host) -> None:
    """Forget attachments that are gone: the VRFs went with their namespaces."""
    LIFECYCLE.gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state."""
    Conf.of(req)
    host.records.probe()


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    return LIFECYCLE


def _enter(attaching: Attaching, container: NetNS, conf: Conf, link: Link) -> VrfFacts:
    """Make the VRF unless it is there, and put the interface into it with its addresses."""
    netlink = container.netlink
    there = device.find(container, conf.name)
    if there and conf.table not in (0, there[1]):
        raise CNIError(
            Code.INVALID_CONFIG,
            f"VRF {conf.name} already exists with different routing table {there[1]}: correct"
            ' "table", or choose another "vrfname"',
        )
    if link.master:
        master = netlink.link_at(link.master)
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"interface {link.name} has already a master set:"
            f" '{master.name if master else link.master}'; it can be in one VRF, bridge or bond",
        )
    table = there[1] if there else conf.table or free_table(used_tables(netlink), _FIRST_TABLE)
    facts = VrfFacts(
        conf.name,
        table,
        link.index,
        [body.hex() for body in device.ipv6_addresses(netlink, link.index)],
        [one.text for one in device.lost_routes(netlink, link.index, RT_TABLE_MAIN)],
    )
    attaching.note(facts)
    attaching.take_back(PLACE)
    if not there:
        device.create(netlink, conf.name, device.mac_of(container, conf.name), table)
    device.set_master(netlink, link.index, veth.required(container, conf.name).index)
    device.restore_addresses(netlink, link.index, list(map(bytes.fromhex, facts.addresses)))
    return facts


def _complete(container: NetNS, ifname: str, facts: VrfFacts) -> None:
    """Wait until the kernel uses the IPv6 addresses, then make the routes. Raises CNIError."""
    link = veth.required(container, ifname)
    addresses = [device.address_of(bytes.fromhex(text)) for text in facts.addresses]
    if link.up and addresses:
        done = parts.await_use(container, addresses, facts.table, seconds=_SECONDS)
        if not done and veth.is_operational(container, facts.index):
            raise CNIError(
                Code.INTERNAL,
                f"the kernel does not use all IPv6 addresses of '{ifname}' {_SECONDS:g} s after it"
                f" entered '{facts.name}'; does another host on the link have one?",
            )
    container.netlink.channel.exchange([one.add(last=True) for one in facts.in_vrf()])


def _check_place(
    container: NetNS, link: Link, vrf: Link, table: int, *, wanted: int
) -> Iterator[CNIError]:
    """Yield an error if the interface is in another place, or the VRF another one."""
    if wanted not in (0, table):
        yield drifted(f"VRF '{vrf.name}' has table {table}, ADD gave {wanted}")
    if not vrf.up:
        yield drifted(f"VRF '{vrf.name}' is down", f"run 'ip link set {vrf.name} up' in it")
    if link.master != vrf.index:
        yield drifted(f"'{link.name}' is not in VRF '{vrf.name}' of '{container.path}'")


def _check_rules(container: NetNS, versions: set[int]) -> Iterator[CNIError]:
    """Yield an error for each IP version of which no rule leads to the tables of VRFs."""
    rules = all_rules(container.netlink)
    for version in sorted(versions - {rule.version for rule in rules if rule.of_vrfs}):
        remedy = f"run 'ip -{version} rule add l3mdev pref 1000' in the container's namespace"
        yield drifted(f"no rule leads IPv{version} to the tables of VRFs", remedy)
