"""Reclaim of stale leases, by an ADD that finds no address and by `pycni reclaim`.

A lease of an earlier boot is removed at once; a lease of this boot, after its namespace was found
gone twice, GRACE_SECONDS apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.node.liveness import State
from cni_common.node.namespaces import addresses_in_use
from plugins.host_local.expiry import Expiry
from plugins.host_local.lease import GRACE_SECONDS, PLUGIN, LeaseFacts
from plugins.host_local.ranges import unused
from plugins.host_local.store import Store, indexes_of
from plugins.host_local.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.node.host import Host
    from cni_common.node.owned import Holding
    from plugins.host_local.choose import Shortage
    from plugins.host_local.lease import Lease


def holdings(host: Host, network: str, directory: str) -> list[Holding]:
    """Return every lease in `directory`, ordered by address; changes nothing."""
    from cni_common.node.owned import Holding

    expiry = Expiry(host, network, patient=True, notes=False)
    leases, booted_ns = Sweep(host, expiry, "").read(directory)
    found = []
    for lease in sorted(leases, key=lambda one: (one.address.version, int(one.address))):
        record, _ = expiry.find(lease.owner) if lease.owner else (None, False)
        facts = record.facts if record else {}
        leased = record.get(LeaseFacts) if record else None
        if record:
            record.close()
        found.append(
            Holding(
                lease.address,
                lease.owner,
                lease.since,
                is_young=lease.is_young(),
                pod=leased.pod if leased else "",
                netns=facts.get("netns", ""),
                alive=expiry.state_of(facts).alive,
                reason=expiry.reason(lease, booted_ns),
            )
        )
    return found


def reclaim(host: Host, network: str, directory: str) -> list[tuple[Lease, str]]:
    """Remove the stale leases in `directory`, log each, and return them with the reasons.

    A lease without a living namespace is noted at first, and removed by a call GRACE_SECONDS later.
    Raises an ExceptionGroup if a lease could not be removed.
    """
    sweep = _sweep(host, network)
    return sweep.remove(directory, *sweep.read(directory))


def make_room(host: Host, network: str, directory: str, shortage: Shortage) -> bool:
    """Remove the stale leases that block an ADD; return False if no address became free.

    Then the message of `shortage` names the holders of the addresses.
    """
    sweep = _sweep(host, network)
    leases, booted_ns = sweep.read(directory)
    if shortage.address is not None:
        leases = [one for one in leases if one.address == shortage.address]
    else:
        leases = [one for one in leases if shortage.range_set.range_of(one.address) is not None]
    taken = {int(one.address) for one in leases}
    if shortage.address is None and shortage.range_set.pick(unused(taken), None) is not None:
        with Store(directory, indexes=indexes_of(host), log=host.log) as store:
            store.lock().forget_index()
        return True
    if sweep.remove(directory, leases, booted_ns):
        return True
    waiting = sweep.expiry.waiting
    shortage.explain(leases, _patience(waiting) if waiting else "")
    return False


def abandoned(host: Host, network: str, leases: Sequence[Lease], pod_uid: str) -> list[Lease]:
    """Return those of `leases` whose owner was of the same pod and is GONE."""
    expiry = Expiry(host, network)
    found = []
    for lease in leases:
        record, _ = expiry.find(lease.owner) if lease.owner else (None, False)
        if record is None:
            continue
        facts = record.get(LeaseFacts)
        same = facts is not None and facts.pod_uid == pod_uid
        if same and expiry.state_of(record.facts) is State.GONE:
            found.append(lease)
        record.close()
    return found


def not_in_use(host: Host, leases: Sequence[Lease]) -> list[Lease]:
    """Return those of `leases` whose address no namespace has."""
    in_use = addresses_in_use(host) if leases else frozenset()
    return [lease for lease in leases if lease.address not in in_use]


def _sweep(host: Host, network: str) -> Sweep:
    expiry = Expiry(host, network, patient=True)
    return Sweep(host, expiry, f"{PLUGIN}: network {network}: reclaimed")


def _patience(count: int) -> str:
    return (
        f"; {count} of them are of containers that are gone, and can be had in {GRACE_SECONDS} s"
        " at the latest"
    )
