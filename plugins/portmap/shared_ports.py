"""Ports that one container wants on several networks: one has them, the next inherits them.

A runtime passes a container's ports to each of its networks (`podman network connect`). The ports
lead to the network that was first, as with the reference. Its record notes which others wait; its
DEL hands the ports over to these, by the transaction that removes its own elements.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.node import masquerade
from cni_common.node.record import NewerFormatError
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from plugins.portmap import nftables
from plugins.portmap.claims import Claims, HostPortsFacts
from plugins.portmap.conf import PLUGIN, Conf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_common.kernel.nft_layout import Key
    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Attaching
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request


def owner(req: Request) -> str:
    """Return the attachment as the comments of its elements name it."""
    return str(masquerade.Owner(PLUGIN, req.network, req.attachment))


def claim(req: Request, host: Host, conf: Conf, attaching: Attaching) -> None:
    """Map the ports of `conf`; wait for those that the container has on another network.

    Raises CNIError naming another container that has one, NetlinkError.
    """
    ranges = True
    for _ in range(nft_table.TRIES):
        holders = take(req, host, attaching.record)
        try:
            elsewhere = partial(holder_of, req, host)
            holders |= nftables.add(host.netns, conf, owner(req), elsewhere, ranges=ranges)
        except nftables.NoRangesError:
            ranges = False
            own = _facts_of(attaching.record)
            attaching.note(replace(own, **nftables.facts_of(conf, ranges=False)))
            continue
        if all(_wait_behind(req, host, holder) for holder in sorted(holders)):
            return
    raise CNIError(
        Code.TRY_AGAIN_LATER, f"the ports of container {req.containerid} keep changing; try again"
    )


def take(req: Request, host: Host, record: Record) -> set[str]:
    """Enter `record` as the owner of its ports; return the same container's other owners of some.

    Elements that gone owners have left are removed where ranges overlap; elsewhere they are
    replaced. Raises CNIError naming another container that has one.
    """
    same: set[str] = set()
    gone: list[Record] = []

    def check(other: Record, ports: str) -> bool:
        if other.attachment.containerid == req.containerid:
            same.add(owner_of(other))
            return True
        from cni_common.node.liveness import Liveness, State, describe

        state, reason = Liveness(host).assess(other.facts)
        if state is not State.GONE:
            raise nftables.taken(ports, describe(owner_of(other), state, reason))
        gone.append(other)
        return False

    Claims(host.records).take(record, check)
    for other in gone:
        facts = _facts_of(other)
        if facts.ranges or _facts_of(record).ranges:
            nftables.remove_elements(host.netns, nftables.keys_of(facts), owner_of(other))
    return same


def holder_of(req: Request, host: Host, text: str, address: Address) -> nftables.Holder | None:
    """Return the owner of an element for the ADD or CHECK `req`, None when it is GONE.

    The element's comment names it by `text`; `address` is that of its container.
    """
    from cni_common.node import liveness

    words = liveness.holder_of(host, text, address, ours=req.netns)
    if not words:
        return None
    return nftables.Holder(words, is_of_container(host, text, req.containerid))


def is_of_container(host: Host, text: str, containerid: str) -> bool:
    """Tell whether the owner `text` of an element is an attachment of this container."""
    record = _record_of(host, text)
    return record is not None and record.attachment.containerid == containerid


def pass_on(req: Request, host: Host, own_record: Record, facts: HostPortsFacts) -> None:
    """Remove the elements in `facts`; hand those over that another network waits for.

    An attachment being deleted inherits nothing. One being added waits for this record while it
    holds its own, so that one is only try-locked here; it claims the ports once this record is
    gone.
    """
    found = (_waiting(req, host, *names) for names in facts.waiting)
    records = [record for record in found if record]
    try:
        successors: dict[Key, nftables.Successor] = {}
        for number, record in enumerate(records):
            for key, data in nftables.targets_of(_facts_of(record)).items():
                successors.setdefault(key, nftables.Successor(owner_of(record), data))
            later = [[one.network, one.attachment.ifname] for one in records[number + 1 :]]
            if later:
                own = _facts_of(record)
                record.put(replace(own, waiting=[*own.waiting, *later]))
        nftables.remove(host, facts, owner(req), successors)
        release(host, own_record, records)
    finally:
        for record in records:
            record.close()


def rejoin(host: Host, record: Record) -> None:
    """Note the networks that wait for ports of `record`, which was written anew, and that it waits.

    The slots of the ports name their owners. A record that cannot be read now does its part when it
    is written anew itself. Raises CNIError, OSError.
    """
    claims = Claims(host.records)
    others = [
        one
        for one in host.records.of_plugin(PLUGIN)
        if one.attachment.containerid == record.attachment.containerid and one.path != record.path
    ]
    behind = [one for one in others if record.path in claims.owners(one)]
    if behind:
        waiting = sorted(map(_names_of, behind), key=_place)
        record.put(replace(_facts_of(record), waiting=waiting))
    holders = claims.owners(record)
    for one in others:
        if one.path in holders and not one.damage:
            _note_waiting(host, one, _names_of(record), place=_place)


def _names_of(record: Record) -> list[str]:
    return [record.network, record.attachment.ifname]


def _place(names: Sequence[str]) -> tuple[int, str]:
    """Return where a network and an interface stand among others, if no ADD tells that.

    Runtimes number the interfaces as they attach them: eth2 is before eth10.
    """
    return len(names[1]), names[1]


def release(
    host: Host, record: Record, successors: Sequence[Record] = (), *, by_nftables: bool = True
) -> None:
    """Note that `record` has no port any more, and which other records have them now."""

    def is_idle() -> bool:  # without a look at nftables, which may not be there
        return not by_nftables or nftables.is_idle(host.netns)

    try:
        Claims(host.records).release(record, successors, is_idle)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise  # the next DEL finds the record, and tries again
        # Claims of a record that is gone count for nothing.
        host.log(f"the owners of ports could not be changed: {error}")


def owner_of(record: Record) -> str:
    """Return the recorded attachment as the comments of its elements name it."""
    return str(masquerade.owner_of(record))


def _facts_of(record: Record) -> HostPortsFacts:
    return record.get(HostPortsFacts) or HostPortsFacts()


def _waiting(req: Request, host: Host, network: str, ifname: str) -> Record | None:
    """Return the record of the container on another network, None when it is being worked on."""
    try:
        attachment = Attachment(req.containerid, ifname)
        return host.records.find(PLUGIN, network, attachment, wait=False)
    except NewerFormatError:
        raise
    except CNIError:
        return None


def _wait_behind(req: Request, host: Host, holder: str) -> bool:
    """Have the ports of `holder` when it goes; False when it is gone by now."""
    known = _record_of(host, holder)
    return known is not None and _note_waiting(host, known, [req.network, req.ifname])


def _note_waiting(
    host: Host,
    known: Record,
    names: Sequence[str],
    *,
    place: Callable[[Sequence[str]], tuple[int, str]] | None = None,
) -> bool:
    """Note a network and an interface in the record `known`; False when that is gone by now.

    The new entries come last, or at `place` if it is given.
    """
    record = host.records.find(PLUGIN, known.network, known.attachment)
    if record is None:
        return False
    facts = _facts_of(record)
    if names not in facts.waiting:
        waiting = [*facts.waiting, names]
        record.put(replace(facts, waiting=sorted(waiting, key=place) if place else waiting))
    record.close()
    return True


def _record_of(host: Host, text: str) -> Record | None:
    return next((one for one in host.records.of_plugin(PLUGIN) if owner_of(one) == text), None)
