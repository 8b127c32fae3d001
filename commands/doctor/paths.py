"""Finds what other programs changed at the host's ends of containers, by the records."""

from __future__ import annotations

import os
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from cni_common.node.liveness import host_ends
from commands.doctor.lines import ERROR, OK, WARNING, Line
from commands.doctor.neighbours import mac_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.spec.names import Address
    from commands.doctor.lines import Patient

_STRICT = 1  # of rp_filter: ip-sysctl.rst of the kernel
_LOOKS_MAX = 2000  # routes that are asked for
_NO_POLICY = (
    "printf '[Match]\\nOriginalName=veth*\\n[Link]\\nMACAddressPolicy=none\\n'"
    " >/etc/systemd/network/50-pycni.link; udevadm control --reload"
)


def strictness(patient: Patient) -> Iterator[Line]:
    """Report where strict rp_filter drops packets of containers: the route to them is another.

    The kernel takes the greater value of `all` and of the interface.
    """
    everywhere = patient.sysctl("net/ipv4/conf/all/rp_filter")
    strict = {
        link.index: link
        for link in patient.links.values()
        if max(everywhere, patient.sysctl(f"net/ipv4/conf/{link.name}/rp_filter")) == str(_STRICT)
    }
    netlink, wrong = patient.host.netns.netlink, False
    for number, (link, address) in enumerate(_arrivals(patient)):
        if number == _LOOKS_MAX:
            break
        if link.index not in strict or netlink.route_to(address)[1] == link.index:
            continue
        index = netlink.route_to(address)[1]
        leads = next(
            (f"over '{o.name}'" for o in patient.links.values() if o.index == index), "nowhere"
        )
        del strict[link.index]  # one line for each interface
        wrong = True
        yield Line(
            ERROR,
            f"net.ipv4.conf.{link.name}.rp_filter",
            f"is strict, and the route to {address} behind '{link.name}' leads {leads}: the kernel"
            " drops what the container sends",
            f"ip route get {address}, and remove that route; or sysctl -w"
            f" net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{link.name}.rp_filter=2",
        )
    if not wrong:
        names = sorted(one.name for one in strict.values())
        text = (
            f"strict on {', '.join(names)[:200]}: no container suffers" if names else "not strict"
        )
        yield Line(OK, "net.ipv4.conf.*.rp_filter", text)


def _arrivals(patient: Patient) -> Iterator[tuple[Link, Address]]:
    """Yield IPv4 addresses of containers, and the host's interface where their packets arrive."""
    by_index = {one.index: one for one in patient.links.values()}
    for records in patient.node.attachments.values():
        noted = [pair for one in records for pair in patient.node.noted(one)]
        ends = {name for one in records for name, _ in host_ends(one.facts)}
        links = [patient.links[name] for name in ends if name in patient.links]
        for text in {text for part, facts in noted for text in part.addresses(facts)}:
            address = ip_interface(text).ip
            for link in links if address.version == 4 else ():
                yield by_index.get(link.master, link), address


def macs(patient: Patient) -> Iterator[Line]:
    """Report ends of containers whose MAC another program has changed."""
    policy = mac_policy()
    text = f"MACAddressPolicy={policy}" if policy else "there is no policy"
    changed = [
        name
        for known in patient.node.records
        for name, mac in host_ends(known.facts)
        if name in patient.links and patient.links[name].mac != mac
    ]
    if not changed:
        text += "; the plugins choose the MACs of pairs, which it leaves alone"
        yield Line(OK, "udev", text)
        return
    several = f" and {len(changed) - 1} more" if changed[1:] else ""
    what = f"another program has changed the MAC of '{changed[0]}'{several}, by which DEL and audit"
    what += " know the pair as ours"
    if os.path.isdir("/run/NetworkManager"):
        remedy = "have NetworkManager leave pairs alone, see its line; start the containers anew"
    else:
        remedy = f"{_NO_POLICY}; start the containers anew"
    yield Line(WARNING, "udev", f"{text}; {what}", remedy)
