"""What there is on this node: records, lease directories, living namespaces; changes nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cni_common.node import liveness
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import check_identifier
from cni_common.spec.request import Attachment
from plugins.host_local import reclaim
from plugins.host_local.expiry import Expiry
from plugins.host_local.lease import GRACE_SECONDS
from plugins.host_local.lease import PLUGIN as HOST_LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from cni_common.spec.wire import Json
    from plugins.host_local.lease import Lease

PROBE = ".probe-"  # how the names of files begin that STATUS makes among the records


@dataclass(frozen=True, slots=True)
class Known:
    """One attachment record, as it was when it was read."""

    path: str
    facts: Json  # empty for a file that a kill left
    changed: float  # seconds since the epoch

    @property
    def plugin(self) -> str:
        """The plugin that wrote it; empty when nobody can tell."""
        return str(self.facts.get("plugin", ""))

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self.facts.get("network", ""))

    @property
    def attachment(self) -> Attachment:
        """Whose record it is."""
        return Attachment(self.facts.get("containerid", ""), self.facts.get("ifname", ""))

    @property
    def pod(self) -> str:
        """The pod as namespace/name, empty when the runtime did not say."""
        return str(self.facts.get("pod", "")) or _pod_of(self.facts.get("cni_args", ""))

    @property
    def changed_at(self) -> str:
        """When it was last written to, RFC 3339 in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.changed))

    def is_young(self) -> bool:
        """Tell whether it is within the grace time; one from the future is."""
        return time.time() - self.changed < GRACE_SECONDS


@dataclass(frozen=True, slots=True)
class Tenancy:
    """One lease, and all that is known about who has it."""

    lease: Lease
    network: str
    directory: str
    pod: str
    netns: str
    alive: bool | None  # None: nobody can tell
    reason: str  # why host-local would take it back now

    @property
    def owner(self) -> Attachment:
        """Who has it, empty names for a file that names nobody."""
        return self.lease.owner or Attachment("", "")


class Node:
    """The node as it is at one moment: each part is read once, when it is first needed."""

    def __init__(self, host: Host, data_dir: str) -> None:
        self.host = host
        self._data_dir = data_dir.rstrip("/") or "/"

    @cached_property
    def records(self) -> list[Known]:
        """All attachment records."""
        listing = self.host.records.listing()
        return [Known(*one) for one in listing if not os.path.basename(one[0]).startswith(PROBE)]

    @cached_property
    def expiry(self) -> Expiry:
        """What tells at first sight which container is GONE; writes nothing."""
        return Expiry(self.host, "", notes=False)

    @cached_property
    def patient_expiry(self) -> Expiry:
        """What tells which of them was found GONE before, a grace time ago."""
        return Expiry(self.host, "", patient=True, notes=False)

    @cached_property
    def in_use(self) -> frozenset[Address]:
        """Every address in every namespace that can be found."""
        return liveness.addresses_in_use()

    def alive(self, facts: Json) -> bool | None:
        """Tell whether the container of a record lives, None when it cannot be told."""
        return self.expiry.state_of(facts).alive

    def directories(self, network: str = "") -> list[tuple[str, str]]:
        """Return network and lease directory, of all networks or of one."""
        found = {(one.network, directory) for one in self.records for directory in _stores(one)}
        try:
            names = os.listdir(self._data_dir)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        found |= {(name, f"{self._data_dir}/{name}") for name in names if _is_network(name)}
        return sorted(
            (name, directory)
            for name, directory in found
            if network in ("", name) and os.path.isdir(directory)
        )

    @cached_property
    def tenancies(self) -> list[Tenancy]:
        """All leases of all networks."""
        return list(self.leases())

    def leases(self, network: str = "") -> Iterator[Tenancy]:
        """Yield all leases, or those of one network. Raises CNIError."""
        by_container: dict[tuple[str, str], list[Known]] = {}
        for one in self.records:
            if one.plugin != HOST_LOCAL:
                key = one.network, one.attachment.containerid
                by_container.setdefault(key, []).append(one)
        for name, directory in self.directories(network):
            for held in reclaim.holdings(self.host, name, directory):
                owner = held.lease.owner or Attachment("", "")
                others = [
                    one
                    for one in by_container.get((name, owner.containerid), ())
                    if owner.ifname in (one.attachment.ifname, "")
                ]
                states = [self.alive(one.facts) for one in others]
                alive = held.alive
                if alive is None and states:  # the interface plugin knows what host-local does not
                    alive = True if True in states else states[0]
                yield Tenancy(
                    held.lease,
                    name,
                    directory,
                    held.pod or next((one.pod for one in others if one.pod), ""),
                    held.netns or next((str(one.facts.get("netns", "")) for one in others), ""),
                    alive,
                    held.reason,
                )


def _pod_of(cni_args: str) -> str:
    pairs = dict(pair.partition("=")[::2] for pair in cni_args.split(";"))
    names = [pairs.get(key, "") for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME")]
    return "/".join(names) if all(names) else ""


def _stores(record: Known) -> Iterator[str]:
    """Yield the lease directories that a record names, of host-local or of who delegated to it."""
    directory = record.facts.get("directory")
    if isinstance(directory, str) and directory.startswith("/"):
        yield directory
    try:
        ipam = wire.decode(str(record.facts.get("stdin", "{}")).encode()).get("ipam")
    except CNIError:
        return
    data_dir = ipam.get("dataDir") if isinstance(ipam, dict) else None
    if isinstance(data_dir, str) and data_dir.startswith("/") and _is_network(record.network):
        yield f"{data_dir.rstrip('/')}/{record.network}"


def _is_network(name: str) -> bool:
    try:
        check_identifier(name, "network name", Code.INVALID_CONFIG)
    except CNIError:
        return False
    return True
