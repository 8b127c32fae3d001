"""ADD and DEL as transactions over an attachment's record and its leases.

Every call locks the record first and the store second; GC waits for no record.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.record import dump
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import parse_address
from cni_common.spec.undo import BestEffort
from plugins.host_local import choose
from plugins.host_local.lease import PLUGIN, Lease, LeaseFacts, pod_key
from plugins.host_local.store import Store, indexes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Attachment, Request
    from cni_common.spec.undo import Undo
    from plugins.host_local import Conf

_TRIES = 4  # attempts of an ADD: one more for the pod's stale leases, others after a reclaim


def reserve(
    req: Request, host: Host, undo: Undo, *, conf: Conf, wanted: Mapping[int, Address]
) -> Sequence[choose.Choice]:
    """Lease one address of each range set, or raise and change nothing.

    Raises CNIError 5, 11 or 999.
    """
    undo.reserve()
    noted = {**_header(req, host), **dump(_facts(conf, ()))}
    record, created = host.records.begin_or_find(PLUGIN, req.network, req.attachment, noted)
    taken: list[Lease] = []
    try:
        # Inside `try`: the undo waits for the record, which is closed below even after a signal.
        take_back = partial(_take_back, req, host, conf, taken=taken, created=created)
        undo.push("address reservation", partial(take_back, inode=record.inode))
        _refuse_elsewhere(record, host, conf.directory, req.attachment)
        attempt = partial(_attempt, req, host, record, conf=conf, wanted=wanted, taken=taken)
        left: Sequence[Lease] | None = None
        for last in (*[False] * (_TRIES - 1), True):
            try:
                return attempt(left=left)
            except _LeftBehind as error:
                left = _abandoned(req, host, conf, error)
            except choose.Shortage as shortage:
                if last or not _make_room(req, host, conf, shortage):
                    raise
        raise _busy(conf.directory)
    finally:
        record.close()


def release(req: Request, host: Host, configured: str, *, rest_seconds: int) -> None:
    """Free the attachment's leases in the directory `configured` and in the recorded one.

    The record is held meanwhile, an empty one if there is none: no ADD can lease what would then
    be freed. Raises an ExceptionGroup.
    """
    record = host.records.hold(PLUGIN, req.network, req.attachment)
    facts = (record.get(LeaseFacts) if record else None) or LeaseFacts()
    try:
        with BestEffort() as steps:
            for directory in sorted({configured, facts.directory or configured}):
                steps.attempt(
                    f"releasing addresses in '{directory}'",
                    partial(free, directory, req, host, facts, rest_seconds=rest_seconds),
                )
        if record:
            record.remove()
    finally:
        if record and record.is_unbegun():
            record.remove()
        elif record:
            record.close()


def free(directory: str, req: Request, host: Host, facts: LeaseFacts, *, rest_seconds: int) -> None:
    """Free what the attachment has in `directory`. Raises CNIError, OSError, an ExceptionGroup."""
    owner = req.attachment
    pod = pod_key(facts.pod_uid, owner)
    with Store(directory, indexes=indexes_of(host), log=host.log) as store:
        held = store.lock().held_by(owner)
        recorded = [_recorded(store, text) for text in facts.addresses]
        missed = [lease for lease in recorded if lease and lease.is_of(owner) and lease not in held]
        if missed:
            store.forget_index()
        # Only an early release of the reference wrote leases without ifname, never beside others.
        held = [lease for lease in held + missed if lease.owner == owner] or held
        # Torn by a crash, and not in progress: this call has the lock.
        held += [Lease(one.address, owner) for one in recorded if one and one.reclaimable]
        with BestEffort() as steps:
            for lease in held:
                step = partial(store.release, lease, pod=pod, rest_seconds=rest_seconds)
                steps.attempt(str(lease.address), step)
        for one in recorded:
            if one and one.owner is None and not one.reclaimable:
                raise CNIError(
                    Code.IO_FAILURE,
                    f"cannot read the lease of {one.address} in '{directory}', which the"
                    " attachment record names; repair or remove the file",
                )


class _LeftBehind(Exception):  # noqa: N818 - not an error
    """Leases that seem stale: the attachment's from before the boot, its pod's earlier ones."""

    def __init__(self, own: Sequence[Lease], of_pod: Sequence[Lease]) -> None:
        super().__init__()
        self.own = own
        self.of_pod = of_pod


def _attempt(  # noqa: PLR0913 - one transaction
    req: Request,
    host: Host,
    record: Record,
    *,
    conf: Conf,
    wanted: Mapping[int, Address],
    taken: list[Lease],
    left: Sequence[Lease] | None,
) -> Sequence[choose.Choice]:
    """Reserve under one lock. Raises Shortage, and _LeftBehind if `left` is not known yet."""
    pod = conf.pod_key(req.attachment)
    size = sum(one.size for one in conf.sets)
    with Store(
        conf.directory, create=True, indexes=indexes_of(host), capacity=size, log=host.log
    ) as store:
        store.lock()
        held = store.held_by(req.attachment)
        if left is None:
            of_pod, own = store.held_by_pod(pod), _of_earlier_boot(store, record, held)
            if of_pod or own:
                raise _LeftBehind(own, of_pod)
        lost = [lease for lease in held if lease in (left or ())]
        held = [lease for lease in held if lease not in lost]
        choose.refuse_duplicate(conf.sets, held, req.attachment)
        choices = _choose(store, conf, wanted, left or ())
        addresses = [lease.address for lease in held] + [choice.address for choice in choices]
        facts = _facts(conf, [str(address) for address in addresses])
        _note(record, facts, _header(req, host))
        for choice in choices:
            taken.append(Lease(choice.address, req.attachment))
            store.claim(choice.address, req.attachment, pod=pod, replace=choice.former)
        for lease in lost:
            if lease.address not in addresses:
                store.release(lease)
        _remember(req, host, store, choices)
    return choices


def _of_earlier_boot(store: Store, record: Record, held: Sequence[Lease]) -> Sequence[Lease]:
    """Return the leases `held` that the attachment has from before the boot."""
    facts = record.get(LeaseFacts)
    if not held or (facts and facts.addresses):  # a record is of this boot
        return ()
    from plugins.host_local.expiry import is_of_earlier_boot

    booted_ns = store.booted_ns()
    return [lease for lease in held if lease.owner and is_of_earlier_boot(lease, booted_ns)]


def _choose(
    store: Store, conf: Conf, wanted: Mapping[int, Address], left: Sequence[Lease]
) -> list[choose.Choice]:
    left = [lease for lease in left if store.lease(lease.address) == lease]
    choices = []
    for index, range_set in enumerate(conf.sets):
        address = wanted.get(index)
        choice = choose.choose_left(index, range_set, address, left)
        if choice is None and address is not None:
            choice = choose.choose_requested(index, range_set, address, store)
        choices.append(choice or choose.choose_next(index, range_set, store))
    return choices


def _make_room(req: Request, host: Host, conf: Conf, shortage: choose.Shortage) -> bool:
    from plugins.host_local import reclaim

    try:
        return reclaim.make_room(host, req.network, conf.directory, shortage)
    except (CNIError, OSError, ExceptionGroup) as error:
        shortage.add_note(f"nothing could be reclaimed: {error}")
        return False


def _abandoned(req: Request, host: Host, conf: Conf, behind: _LeftBehind) -> Sequence[Lease]:
    from plugins.host_local import reclaim

    of_pod = [one for one in behind.of_pod if one.owner and one.owner.ifname == req.ifname]
    return [
        *reclaim.not_in_use(host, behind.own),
        *reclaim.abandoned(host, req.network, of_pod, conf.pod_uid),
    ]


def _busy(directory: str) -> CNIError:
    return CNIError(
        Code.TRY_AGAIN_LATER, f"other calls keep changing the leases in '{directory}'; try again"
    )


def _header(req: Request, host: Host) -> dict[str, object]:
    return {"netns": req.netns, "netns_id": host.identity_of(req.netns), "gone_since": None}


def _facts(conf: Conf, addresses: Sequence[str]) -> LeaseFacts:
    return LeaseFacts(conf.directory, addresses, conf.pod, conf.pod_uid)


def _refuse_elsewhere(record: Record, host: Host, directory: str, owner: Attachment) -> None:
    """Raise CNIError if an earlier ADD left a lease in another dataDir: DEL must free it."""
    facts = record.get(LeaseFacts)
    recorded = (facts and facts.directory) or directory
    if recorded == directory:
        return
    with Store(recorded, indexes=indexes_of(host), log=host.log) as store:
        for lease in store.lock().held_by(owner):
            if lease.owner == owner:
                raise CNIError(Code.INTERNAL, f"{choose.duplicate(lease, owner)} ('{recorded}')")


def _note(record: Record, facts: LeaseFacts, header: dict[str, object]) -> None:
    try:
        record.put(facts, **header)
    except OSError as error:
        raise CNIError(
            Code.IO_FAILURE, f"cannot write the attachment record: {error.strerror}"
        ) from error


def _remember(req: Request, host: Host, store: Store, choices: Sequence[choose.Choice]) -> None:
    """Log reused leases and write last_reserved_ip; a failure here does not fail the ADD."""
    for choice in choices:
        if choice.former:
            why = "it is of the same pod, and its network namespace is gone"
            if choice.former.owner == req.attachment:
                why = "it is its own, of an earlier boot"
            host.log(
                f"{PLUGIN}: network {req.network}: took over {choice.address} of"
                f" {choice.former.holder} in '{store.directory}': {why}"
            )
        try:
            store.set_last_reserved(choice.index, choice.address)
        except OSError as error:
            # Only the order of later addresses suffers.
            host.log(f"{PLUGIN}: cannot write last_reserved_ip.{choice.index}: {error.strerror}")


def _take_back(
    req: Request, host: Host, conf: Conf, *, taken: Sequence[Lease], created: bool, inode: int
) -> None:
    """Free the leases of this ADD, and no other lease of the attachment.

    `inode`: of the record of this ADD. A DEL may have removed that, and another ADD begun its own.
    """
    record = host.records.hold(PLUGIN, req.network, req.attachment)
    is_new = record is not None and record.is_unbegun()
    try:
        if record and not is_new and record.inode != inode:
            return
        if taken:
            with Store(conf.directory, indexes=indexes_of(host), log=host.log) as store:
                store.lock()
                for one in taken:
                    lease = store.lease(one.address)
                    if lease is not None and lease.owner == req.attachment:
                        store.release(lease, pod=conf.pod_key(req.attachment))
        if record and (created or is_new):
            record.remove()
    finally:
        if record:
            record.close()


def _recorded(store: Store, text: str) -> Lease | None:
    try:
        return store.lease(parse_address(text))
    except ValueError:
        return None  # another program has written into the record
