"""What each plugin's attachments have on the node, and how they are taken apart.

A plugin that keeps records, or makes something in the kernel, has its entry in KINDS: `audit`,
`reclaim` and `explain` need nothing else.
"""

import os
from dataclasses import dataclass
from functools import partial

from cni_common import attachment
from commands import hostports
from commands.owned import Owned, Stray, objects_of_pair
from plugins import ptp, tuning
from plugins.bridge.kind import KIND as BRIDGE
from plugins.portmap import attachment as portmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cni_common.host import Host
    from cni_common.record import Record
    from cni_common.request import Request
    from commands.node import Known


def _no_strays(_: "Host") -> "list[Stray]":
    return []


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is of one plugin."""

    # Takes an attachment apart by its record, as DEL does.
    dissolve: "Callable[[Request, Host, Record], object]"
    # What a record says was made on the node, and whether it is there.
    objects: "Callable[[Host, Known], Iterator[Owned]]"
    # What is there and may have no record, and by which names of owners a record claims it. What
    # bridge and ptp have of that kind, the audit looks for itself.
    strays: "Callable[[Host], list[Stray]]" = _no_strays
    claims: "Callable[[Known], tuple[str, ...]]" = lambda _: ()


def _objects_of_tuning(_: "Host", known: "Known") -> "Iterator[Owned]":
    # Sysctls and attributes are the container's and go with it.
    if known.facts.get("device"):
        path = str(known.facts.get("backup", ""))
        yield Owned("backup", f"file {path}", os.path.exists(path))


KINDS: "Mapping[str, Kind]" = {
    "bridge": Kind(partial(attachment.dissolve, BRIDGE), objects_of_pair),
    "portmap": Kind(portmap.dissolve, hostports.objects_of, hostports.strays, hostports.claims),
    "ptp": Kind(partial(attachment.dissolve, ptp.KIND), objects_of_pair),
    "tuning": Kind(tuning.dissolve, _objects_of_tuning),
}


def objects_of(host: "Host", known: "Known") -> "Iterator[Owned]":
    """Yield what `known` says was made, and whether it is there."""
    if known.plugin in KINDS:
        yield from KINDS[known.plugin].objects(host, known)


def strays(host: "Host") -> "list[Stray]":
    """Return what is in the kernel that may have no record, of all plugins."""
    return [one for kind in KINDS.values() for one in kind.strays(host)]


def claimed(records: "Iterable[Known]") -> frozenset[str]:
    """Return the owners of strays that have a record."""
    known = [one for one in records if one.plugin in KINDS]
    return frozenset(text for one in known for text in KINDS[one.plugin].claims(one))
