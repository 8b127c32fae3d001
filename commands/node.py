"""A read-only view of the node: records, lease directories, living namespaces."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cni_common.node import namespaces
from cni_common.node.absence import Absence
from cni_common.node.liveness import GRACE_SECONDS
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import check_identifier
from cni_common.spec.request import Attachment
from plugins import TYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import Any

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Leases, Lifecycle, Part
    from cni_common.node.owned import Holding, Owned, Pool
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.wire import Json

PROBE = ".probe-"  # how the names of files begin that STATUS makes among the records


@dataclass(frozen=True, slots=True)
class Known:
    """One attachment record, as it was when it was read."""

    record: Record  # maybe damaged, or without facts since a kill
    changed: float  # seconds since the epoch
    told_pod: str = ""  # by one of its parts

    @property
    def path(self) -> str:
        """The file."""
        return self.record.path

    @property
    def facts(self) -> Json:
        """Everything noted in it."""
        return self.record.facts

    @property
    def plugin(self) -> str:
        """The plugin that wrote it; empty if unknown."""
        return self.record.plugin

    @property
    def network(self) -> str:
        """The network's name."""
        return self.record.network

    @property
    def attachment(self) -> Attachment:
        """The container and its interface."""
        return self.record.attachment

    @property
    def pod(self) -> str:
        """The pod as namespace/name, empty when the runtime did not say."""
        return self.told_pod or _pod_of(self.facts.get("cni_args", ""))

    @property
    def changed_at(self) -> str:
        """The time of the last write, RFC 3339 in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.changed))

    @property
    def damage(self) -> str:
        """The part that cannot be read, in words; "" for none."""
        return self.record.damage or ("it is empty" if self.record.is_unbegun() else "")

    def is_young(self) -> bool:
        """Tell whether the record is within the grace time; one from the future is."""
        return time.time() - self.changed < GRACE_SECONDS


@dataclass(frozen=True, slots=True)
class Tenancy:
    """One lease, and all that is known about its owner."""

    held: Holding
    leases: Leases  # of the plugin that keeps it
    network: str
    directory: str
    pod: str
    netns: str
    alive: bool | None  # None: unknown

    @property
    def owner(self) -> Attachment:
        """The owner, with empty names for a file without one."""
        return self.held.owner or Attachment("", "")

    @property
    def file(self) -> str:
        """The file of the lease."""
        return f"{self.directory}/{self.held.address}"


class Node:
    """The node as it is at one moment: each part is read once, when it is first needed."""

    def __init__(self, host: Host, data_dir: str) -> None:
        self.host = host
        self._data_dir = data_dir.rstrip("/") or "/"

    @cached_property
    def records(self) -> list[Known]:
        """All attachment records."""
        listing = (self._known(*one) for one in self.host.records.listing())
        found = [one for one in listing if not os.path.basename(one.path).startswith(PROBE)]
        nameless = [one for one in found if not one.attachment.containerid]
        if nameless:
            self._identify(nameless, found)
        return found

    def _identify(self, nameless: Collection[Known], records: Collection[Known]) -> None:
        """Name the attachments of records that do not: a record's file is named after its owner.

        Owners are known by their other records, their leases, and their objects in the kernel.
        """
        owners = {(one.network, one.attachment) for one in records}
        for network, directory in self._directories_of(records):
            for leases in self.leases_of_plugins:
                held = leases.holdings(self.host, network, directory)
                owners |= {(network, one.owner) for one in held if one.owner}
        names = (one.names for part in self.parts for one in part.strays(self.host))
        owners |= {(one[0], Attachment(one[1], one[2])) for one in names if len(one) == 3}
        path_of = self.host.records.path_of
        plugins = {one.plugin for one in nameless}
        files = {path_of(plugin, *owner): owner for plugin in plugins for owner in owners}
        for one in nameless:
            if one.path in files and files[one.path][1].containerid:
                one.record.identify(one.plugin, *files[one.path])

    def may_live(self, known: Known) -> bool:
        """Tell whether the container of a record that says nothing may live, by all the rest."""
        containerid = known.attachment.containerid
        if not containerid:
            return False
        others = [one for one in self.records if one.attachment.containerid == containerid]
        told = [one for one in others if not one.record.is_unbegun()]
        if told:
            return any(self.alive(one.facts) is not False for one in told)
        held = [one for one in self.tenancies if one.owner.containerid == containerid]
        return any(one.alive or one.held.address in self.in_use for one in held)

    def may_claim(self, part: Part) -> bool:
        """Tell whether there is a damaged record that may have named objects of a part."""
        damaged = {one.plugin for one in self.records if one.record.damage}
        return any(part in self.lifecycles[one].parts for one in damaged & self.lifecycles.keys())

    def _in_kernel(self, known: Known) -> Iterator[Owned]:
        """Yield the objects that bear the names of a record's attachment, but are not in it."""
        from cni_common.node.owned import Owned

        lifecycle = self.lifecycles.get(known.plugin)
        wanted = known.network, known.attachment.containerid, known.attachment.ifname
        for part in lifecycle.parts if lifecycle else ():
            if known.record.get(part.facts) is None:
                for one in part.strays(self.host):
                    if one.names == wanted:
                        yield Owned(one.kind, one.what, present=True)

    @cached_property
    def lifecycles(self) -> dict[str, Lifecycle]:
        """The lifecycle of each plugin that keeps records, by the plugin's name."""
        modules = (self.host.load(type) for type in TYPES)
        found = (module.lifecycle() for module in modules if module)
        return {one.plugin: one for one in found if one}

    @property
    def parts(self) -> list[Part]:
        """Every part of any plugin."""
        return list(dict.fromkeys(part for one in self.lifecycles.values() for part in one.parts))

    @property
    def leases_of_plugins(self) -> list[Leases]:
        """The leases of each IPAM plugin."""
        return [one.leases for one in self.lifecycles.values() if one.leases]

    def keeps_leases(self, record: Known) -> bool:
        """Tell whether a record is one of an IPAM plugin."""
        known = self.lifecycles.get(record.plugin)
        return known is not None and known.leases is not None

    def claimed(self, part: Part) -> frozenset[str]:
        """Return the owners of strays of a part that have a record."""
        return frozenset(text for one in self.records for text in part.claims(one.record))

    @cached_property
    def attachments(self) -> dict[tuple[str, Attachment], list[Known]]:
        """The records of each attachment, by network and attachment."""
        found: dict[tuple[str, Attachment], list[Known]] = {}
        for one in self.records:
            if one.plugin in self.lifecycles:
                found.setdefault((one.network, one.attachment), []).append(one)
        return found

    def pod_of(self, owner: tuple[str, Attachment]) -> str:
        """Return the pod of an attachment as namespace/name, empty if no record has it."""
        return next((one.pod for one in self.attachments.get(owner, ()) if one.pod), "")

    def _known(self, record: Record, changed: float) -> Known:
        lifecycle = self.lifecycles.get(record.plugin)
        noted = lifecycle.noted(record) if lifecycle else ()
        pods = (part.pod(facts) for part, facts in noted)
        return Known(record, changed, next(filter(None, pods), ""))

    def noted(self, known: Known) -> Iterable[tuple[Part, Any]]:
        """Return the parts that a record has facts about, with these facts."""
        lifecycle = self.lifecycles.get(known.plugin)
        return lifecycle.noted(known.record) if lifecycle else ()

    def owned(self, records: Iterable[Known]) -> list[Owned]:
        """Return what the records of one attachment name. Raises CNIError, OSError.

        Of a setting that several plugins of the chain have changed, the present value counts.
        """
        found = [
            owned
            for one in records
            if one.plugin in self.lifecycles
            for owned in (
                *self.lifecycles[one.plugin].present(self.host, one.record),
                *(self._in_kernel(one) if one.damage else ()),
            )
        ]
        settled = {one.setting for one in found if one.setting and one.present}
        return [one for one in found if one.present or one.setting not in settled]

    def pools(self) -> list[tuple[str, int, int]]:
        """Return each range of a recorded attachment, with its leases and all its addresses."""
        pools = {
            (one.directory, one.text): one
            for known in self.records
            for leases in self.leases_of_plugins
            for one in self._pools_of(leases, known)
        }
        found: dict[str, tuple[str, int, int]] = {}
        for (directory, text), pool in sorted(pools.items()):
            used = sum(
                one.directory == directory and pool.holds(one.held.address)
                for one in self.tenancies
            )
            _, before, size = found.get(text, (text, 0, 0))
            found[text] = text, before + used, size + pool.size
        return list(found.values())

    @staticmethod
    def _pools_of(leases: Leases, known: Known) -> list[Pool]:
        try:
            return list(leases.pools(known.record))
        except CNIError:  # the record is damaged, or another release's
            return []

    def held(self, network: str, attachment: Attachment) -> set[str]:
        """Return the leased addresses of an attachment."""
        return self._held[network, attachment]

    def lost_leases(self, records: Iterable[Known]) -> list[str]:
        """Return the files of leases that the records of one attachment name, and that are gone."""
        return [
            file
            for one in records
            for leases in self.leases_of_plugins
            for file in leases.missing(one.record, self._held[one.network, one.attachment])
        ]

    @cached_property
    def _held(self) -> defaultdict[tuple[str, Attachment], set[str]]:
        """The leased addresses of each attachment."""
        found: defaultdict[tuple[str, Attachment], set[str]] = defaultdict(set)
        for one in self.tenancies:
            found[one.network, one.owner].add(str(one.held.address))
        return found

    @cached_property
    def absence(self) -> Absence:
        """Finds containers that are GONE at first sight; writes nothing."""
        return Absence(self.host, notes=False)

    @cached_property
    def patient_absence(self) -> Absence:
        """Finds containers that were also GONE a grace time ago."""
        return Absence(self.host, patient=True, notes=False)

    @cached_property
    def in_use(self) -> frozenset[Address]:
        """Every address in every namespace that can be found."""
        return namespaces.addresses_in_use(self.host)

    def alive(self, facts: Json) -> bool | None:
        """Tell whether the container of a record lives, None when it cannot be told."""
        return self.absence.liveness.state_of(facts).alive

    def directories(self, network: str = "") -> list[tuple[str, str]]:
        """Return network and lease directory, of all networks or of one."""
        found = self._directories_of(self.records)
        return [(name, directory) for name, directory in found if network in ("", name)]

    def _directories_of(self, records: Iterable[Known]) -> list[tuple[str, str]]:
        """Return network and lease directory, of those that exist."""
        found = {(one.network, directory) for one in records for directory in self._stores(one)}
        try:
            names = os.listdir(self._data_dir)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        found |= {(name, f"{self._data_dir}/{name}") for name in names if _is_network(name)}
        return sorted((name, directory) for name, directory in found if os.path.isdir(directory))

    def _stores(self, record: Known) -> Iterator[str]:
        """Yield the lease directories that a record of an IPAM plugin or of its caller names."""
        for leases in self.leases_of_plugins:
            yield from leases.directories(record.record)
        try:
            ipam = wire.decode(str(record.facts.get("stdin", "{}")).encode()).get("ipam")
        except CNIError:
            return
        data_dir = ipam.get("dataDir") if isinstance(ipam, dict) else None
        if isinstance(data_dir, str) and data_dir.startswith("/") and _is_network(record.network):
            yield f"{data_dir.rstrip('/')}/{record.network}"

    @cached_property
    def tenancies(self) -> list[Tenancy]:
        """All leases of all networks."""
        return list(self.leases())

    def leases(self, network: str = "") -> Iterator[Tenancy]:
        """Yield all leases, or those of one network. Raises CNIError."""
        by_container: dict[tuple[str, str], list[Known]] = {}
        for one in self.records:
            if not self.keeps_leases(one):
                key = one.network, one.attachment.containerid
                by_container.setdefault(key, []).append(one)
        for leases in self.leases_of_plugins:
            for name, directory in self.directories(network):
                for held in leases.holdings(self.host, name, directory):
                    containerid = held.owner.containerid if held.owner else ""
                    others = by_container.get((name, containerid), ())
                    yield self._tenancy(leases, name, directory, held=held, others=others)

    def _tenancy(
        self,
        leases: Leases,
        network: str,
        directory: str,
        *,
        held: Holding,
        others: Iterable[Known],
    ) -> Tenancy:
        """Return a lease, with what the `others` of the container's records tell about it."""
        ifname = held.owner.ifname if held.owner else ""
        others = [one for one in others if ifname in (one.attachment.ifname, "")]
        states = [self.alive(one.facts) for one in others]
        alive = held.alive
        if alive is None and states:  # the interface plugin knows what the IPAM plugin does not
            alive = True if True in states else states[0]
        return Tenancy(
            held,
            leases,
            network,
            directory,
            held.pod or next((one.pod for one in others if one.pod), ""),
            held.netns or next((str(one.facts.get("netns", "")) for one in others), ""),
            alive,
        )


def _pod_of(cni_args: str) -> str:
    pairs = dict(pair.partition("=")[::2] for pair in cni_args.split(";"))
    names = [pairs.get(key, "") for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME")]
    return "/".join(names) if all(names) else ""


def _is_network(name: str) -> bool:
    try:
        check_identifier(name, "network name", Code.INVALID_CONFIG)
    except CNIError:
        return False
    return True
