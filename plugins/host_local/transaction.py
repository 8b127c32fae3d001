"""ADD and DEL as transactions over an attachment's record and its leases.

The record is locked first, the store second, in every call; GC waits for no record.
"""

from functools import cache, partial

from cni_common.errors import CNIError, Code
from cni_common.steps import BestEffort
from plugins.host_local import plan
from plugins.host_local.store import PLUGIN, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cni_common.host import Host
    from cni_common.record import Record
    from cni_common.request import Attachment, Request
    from cni_common.steps import Undo
    from cni_common.types import Address
    from plugins.host_local import Conf
    from plugins.host_local.store import Lease

    Json = Mapping[str, Any]


def reserve(
    req: "Request", host: "Host", undo: "Undo", *, conf: "Conf", wanted: "Mapping[int, Address]"
) -> "Sequence[plan.Choice]":
    """Lease one address of each range set, or raise and leave everything as it was."""
    facts = _facts(req, conf.directory)
    record, created = _open_record(req, host, facts)
    taken: list[Address] = []
    try:
        # In here, since it waits for the record, which is closed below even if a signal comes.
        undo.push(
            "address reservation",
            partial(_take_back, req, host, conf.directory, taken=taken, created=created),
        )
        _refuse_elsewhere(record, conf.directory, req.attachment)
        with Store(conf.directory, create=True) as store:
            choices, others = _choose(store, conf, wanted, req.attachment)
            held = [lease.address for lease in others] + [choice.address for choice in choices]
            _note(record, {**facts, "addresses": [str(address) for address in held]})
            for choice in choices:
                taken.append(choice.address)
                store.claim(choice.address, req.attachment, replace=choice.stale is not None)
            _remember(store, host, choices)
    finally:
        record.close()
    return choices


def release(req: "Request", host: "Host", configured: str) -> None:
    """Free what the attachment holds in the directory `configured` and in the recorded one."""
    record = host.records.find(PLUGIN, req.network, req.attachment)
    facts = record.facts if record else {}
    try:
        with BestEffort() as steps:
            for directory in sorted({configured, facts.get("directory") or configured}):
                steps.attempt(
                    f"releasing addresses in '{directory}'",
                    partial(_release, directory, req.attachment, facts.get("addresses", ())),
                )
        if record:
            record.remove()
    finally:
        if record:
            record.close()


def _facts(req: "Request", directory: str) -> "dict[str, object]":
    from cni_common import netns  # noqa: PLC0415 - not before the configuration is accepted

    return {
        "netns": req.netns,
        "netns_id": netns.identity(req.netns),
        "directory": directory,
        "addresses": [],
    }


def _open_record(req: "Request", host: "Host", facts: "Json") -> "tuple[Record, bool]":
    """Return the attachment's record, and whether this call created it."""
    while True:
        try:
            return host.records.begin(PLUGIN, req.network, req.attachment, facts), True
        except FileExistsError:
            record = host.records.find(PLUGIN, req.network, req.attachment)
        if record is not None:
            return record, False
        # A DEL has just removed it.


def _refuse_elsewhere(record: "Record", directory: str, owner: "Attachment") -> None:
    """Raise CNIError when an earlier ADD left a lease in another dataDir: DEL must free it."""
    recorded = record.facts.get("directory") or directory
    if recorded == directory:
        return
    with Store(recorded) as store:
        for lease in store.lock().leases():
            if lease.owner == owner:
                raise CNIError(Code.INTERNAL, f"{plan.duplicate(lease, owner)} ('{recorded}')")


def _choose(
    store: Store, conf: "Conf", wanted: "Mapping[int, Address]", owner: "Attachment"
) -> "tuple[list[plan.Choice], list[Lease]]":
    """Return what this ADD takes, and what the attachment holds outside of its range sets."""
    leases = {lease.address: lease for lease in store.lock().leases()}
    ledger = plan.Ledger(leases, cache(_in_use))
    plan.refuse_duplicate(conf.sets, ledger, owner)
    choices = [
        plan.choose_requested(index, range_set, wanted[index], ledger)
        if index in wanted
        else plan.choose_next(index, range_set, store.last_reserved(index), ledger)
        for index, range_set in enumerate(conf.sets)
    ]
    return choices, [lease for lease in leases.values() if lease.owner == owner]


def _note(record: "Record", facts: "Json") -> None:
    try:
        record.note(**facts)
    except OSError as error:
        raise CNIError(
            Code.IO_FAILURE, f"cannot write the attachment record: {error.strerror}"
        ) from error


def _remember(store: Store, host: "Host", choices: "Sequence[plan.Choice]") -> None:
    """Note what follows from the leases just made; none of it is worth failing the ADD."""
    for choice in choices:
        if choice.stale:
            host.log(
                f"{PLUGIN}: took over {choice.address} in '{store.directory}': its lease file"
                f" of {choice.stale.since} names no owner and nobody uses the address"
            )
        try:
            store.set_last_reserved(choice.index, choice.address)
        except OSError as error:
            # Only the order of later addresses suffers.
            host.log(f"{PLUGIN}: cannot write last_reserved_ip.{choice.index}: {error.strerror}")


def _take_back(
    req: "Request", host: "Host", directory: str, *, taken: "Sequence[Address]", created: bool
) -> None:
    """Free what this ADD took, and nothing else of this attachment's."""
    record = host.records.find(PLUGIN, req.network, req.attachment)
    try:
        if taken:
            with Store(directory) as store:
                store.lock()
                for address in taken:
                    lease = store.lease(address)
                    if lease is not None and lease.owner == req.attachment:
                        store.release(address)
        if record and created:
            record.remove()
    finally:
        if record:
            record.close()


def _release(directory: str, owner: "Attachment", recorded: "Sequence[str]") -> None:
    with Store(directory) as store:
        leases = store.lock().leases()
        held = [lease for lease in leases if lease.owner == owner]
        # Only an early release of the reference wrote leases without ifname, never beside others.
        held = held or [lease for lease in leases if lease.is_of(owner)]
        with BestEffort() as steps:
            for lease in held:
                steps.attempt(str(lease.address), partial(store.release, lease.address))
        for lease in leases:
            if str(lease.address) in recorded and lease.owner is None and not lease.reclaimable:
                raise CNIError(
                    Code.IO_FAILURE,
                    f"cannot read the lease of {lease.address} in '{directory}', which the"
                    " attachment record names; repair or remove the file",
                )


def _in_use() -> "frozenset[Address]":
    from cni_common import netns  # noqa: PLC0415 - rare, and slow in itself

    return netns.addresses_in_use()
