"""GC: frees the addresses of attachments that are gone, and of those that a crash left behind."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.liveness import State
from cni_common.spec.undo import BestEffort
from plugins.host_local.expiry import Expiry
from plugins.host_local.lease import GRACE_SECONDS, PLUGIN, LeaseFacts
from plugins.host_local.sweep import Sweep

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.spec.request import Attachment, Request


def collect(req: Request, host: Host, configured: str, *, rest_seconds: int) -> None:
    """Clean the directory `configured` and those that records of the network name."""
    directories = {configured}
    for path in host.records.paths(PLUGIN, req.network):
        record = host.records.open(path)
        if record is not None:
            facts = record.get(LeaseFacts)
            directories.add((facts and facts.directory) or configured)
            record.close()
    verb = f"{PLUGIN}: GC of network {req.network} removed"

    def sweep() -> Sweep:
        # Liveness is read after the leases, for each directory anew.
        expiry = Expiry(host, req.network, valid=req.valid_attachments)
        return Sweep(host, expiry, verb, rest_seconds)

    left: Counter[Attachment] = Counter()  # leases that remain, by owner
    with BestEffort() as steps:
        for directory in sorted(directories):
            steps.attempt(f"cleaning '{directory}'", partial(_clean, sweep(), directory, left))
        clean_records = partial(_clean_records, req, sweep(), left)
        steps.attempt("cleaning attachment records", clean_records)


def _clean(sweep: Sweep, directory: str, left: Counter[Attachment]) -> None:
    """Remove the stale leases in `directory`, and count the others in `left`."""
    leases, booted_ns = sweep.read(directory)
    left.update(lease.owner for lease in leases if lease.owner is not None)
    for lease, _ in sweep.remove(directory, leases, booted_ns):
        if lease.owner is not None:
            left[lease.owner] -= 1


def _clean_records(req: Request, sweep: Sweep, left: Counter[Attachment]) -> None:
    """Remove the records of attachments that are gone and hold no address, but no damaged one."""
    records = sweep.host.records
    for path in records.paths(PLUGIN, req.network):
        record = records.open(path)
        if record is None:
            continue  # a call for this attachment is in progress
        if record.damage:
            sweep.host.log(f"{sweep.verb} not the record '{path}', which is damaged")
            record.close()
            continue
        others = records.identify(record, PLUGIN, req.network, req.valid_attachments or ())
        owner = record.attachment
        may_live = any(sweep.expiry.state_of(one.facts) is not State.GONE for one in others)
        idle = not left[owner] and record.age() >= GRACE_SECONDS and not may_live
        why = sweep.expiry.of(owner, record) if idle else ""
        if why:
            record.remove()
            removed = f"the attachment record of {owner.containerid} ({owner.ifname})"
            sweep.host.log(f"{sweep.verb} {removed}: {why}")
        record.close()
