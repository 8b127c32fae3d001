"""What each plugin's attachments have on the node, and how they are taken apart.

A plugin that keeps records, or makes something in the kernel, has its entry in KINDS: `audit`,
`reclaim` and `explain` need nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node import lifecycle
from commands import hostports
from commands.owned import Owned, Stray, objects_of_pair
from plugins import firewall, ptp, tuning
from plugins.bandwidth import ifb
from plugins.bandwidth import parts as bandwidth
from plugins.bridge.parts import KIND as BRIDGE
from plugins.firewall import survey
from plugins.portmap import parts as portmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.request import Request
    from commands.node import Known


def _no_strays(_: Host) -> list[Stray]:
    return []


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is of one plugin."""

    # Takes an attachment apart by its record, as DEL does.
    dissolve: Callable[[Request, Host, Record], object]
    # What a record says was made on the node, and whether it is there.
    objects: Callable[[Host, Known], Iterator[Owned]]
    # What is there and may have no record, and by which names of owners a record claims it. What
    # bridge and ptp have of that kind, the audit looks for itself.
    strays: Callable[[Host], list[Stray]] = _no_strays
    claims: Callable[[Known], tuple[str, ...]] = lambda _: ()


def _objects_of_tuning(_: Host, known: Known) -> Iterator[Owned]:
    # Sysctls and attributes are the container's and go with it.
    if known.facts.get("device"):
        path = str(known.facts.get("backup", ""))
        yield Owned("backup", f"file {path}", os.path.exists(path))


def _objects_of_bandwidth(host: Host, known: Known) -> Iterator[Owned]:
    for kind, what, present in bandwidth.objects_of(host, known.facts):
        yield Owned(kind, what, present)


def _idle_ifbs(host: Host) -> list[Stray]:
    return [
        Stray(
            "ifb",
            f"'{link.name}' ({link.mac})",
            (),
            owner=link.mac,
            addresses=frozenset(),
            reason="nothing is redirected to it, and no record names it",
            remove=partial(ifb.delete_idle, host.netns, link.name, link.mac),
            idle=True,
        )
        for link in ifb.orphans(host.netns)
    ]


def _objects_of_firewall(host: Host, known: Known) -> Iterator[Owned]:
    for what, present in survey.owned(host, known.facts):
        yield Owned("firewall", what, present)


def _strays_of_firewall(host: Host) -> list[Stray]:
    rules = [
        Stray(
            "firewall",
            f"rules of {address} in {table}",
            (),
            owner=str(address),
            addresses=frozenset([address]),
            reason="no record names it, and the address is in no namespace",
            remove=partial(survey.remove_address, host, address),
        )
        for table, address in survey.admitted(host.netns)
    ]
    policies = [
        Stray(
            "firewall",
            f"'{pair[1]}' in set '{pair[0]}'",
            (),
            owner="",
            addresses=frozenset(),
            reason="no record has an ingress policy for it",
            remove=partial(survey.remove_policy, host, pair),
            idle=True,
        )
        for pair in survey.idle_policies(host)
    ]
    return rules + policies


KINDS: Mapping[str, Kind] = {
    "bandwidth": Kind(
        bandwidth.dissolve,
        _objects_of_bandwidth,
        _idle_ifbs,
        lambda known: (known.facts.get("ifb_mac", ""),),
    ),
    "bridge": Kind(partial(lifecycle.dissolve, BRIDGE), objects_of_pair),
    "firewall": Kind(
        firewall.parts.dissolve,
        _objects_of_firewall,
        _strays_of_firewall,
        lambda known: tuple(known.facts.get("addresses", ())),
    ),
    "portmap": Kind(portmap.dissolve, hostports.objects_of, hostports.strays, hostports.claims),
    "ptp": Kind(partial(lifecycle.dissolve, ptp.KIND), objects_of_pair),
    "tuning": Kind(tuning.dissolve, _objects_of_tuning),
}


def objects_of(host: Host, known: Known) -> Iterator[Owned]:
    """Yield what `known` says was made, and whether it is there."""
    if known.plugin in KINDS:
        yield from KINDS[known.plugin].objects(host, known)


def strays(host: Host) -> list[Stray]:
    """Return what is in the kernel that may have no record, of all plugins."""
    return [one for kind in KINDS.values() for one in kind.strays(host)]


def claimed(records: Iterable[Known]) -> frozenset[str]:
    """Return the owners of strays that have a record."""
    known = [one for one in records if one.plugin in KINDS]
    return frozenset(text for one in known for text in KINDS[one.plugin].claims(one))
