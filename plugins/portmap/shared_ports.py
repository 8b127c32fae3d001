"""Ports that one container wants on several networks: one has them, the next inherits them.

A runtime passes a container's ports to each of its networks (`podman network connect`). They lead
to the network that was first, as with the reference. The others are noted in its record; its DEL
lets them inherit what they wait for, by the transaction that takes it back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.node import liveness
from cni_common.node.liveness import owner_of
from cni_common.node.masquerade import Owner
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from plugins.portmap import nftables
from plugins.portmap.conf import PLUGIN, Conf

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json


def owner(req: Request) -> str:
    """Return the attachment as the comments of its elements name it."""
    return str(Owner(PLUGIN, req.network, req.attachment))


def claim(req: Request, host: Host, conf: Conf) -> None:
    """Map the ports of `conf`; wait for those that the container has on another network.

    Raises CNIError naming another container that has one, NetlinkError.
    """
    for _ in range(nft_table.TRIES):
        holders = nftables.add(host.netns, conf, owner(req), partial(holder_of, req, host))
        if all(_wait_behind(req, host, holder) for holder in sorted(holders)):
            return
    raise CNIError(
        Code.TRY_AGAIN_LATER, f"the ports of container {req.containerid} keep changing; try again"
    )


def holder_of(req: Request, host: Host, text: str, address: Address) -> nftables.Holder | None:
    """Return the owner of an element for the ADD or CHECK `req`, None when it is GONE.

    The element's comment names it by `text`; `address` is that of its container.
    """
    words = liveness.holder_of(host, text, address, ours=req.netns)
    if not words:
        return None
    facts = _facts_of(host, text) or {}
    return nftables.Holder(words, facts.get("containerid") == req.containerid)


def pass_on(req: Request, host: Host, facts: Json) -> None:
    """Take back the elements that `facts` tell of; attachments that wait for one inherit it.

    One that is being deleted inherits nothing. One that is being added looks for itself once this
    record is gone: its ADD waits for that with its own record locked, which is only tried here.
    """
    found = (_waiting(req, host, *names) for names in _waiting_in(facts))
    records = [record for record in found if record]
    try:
        successors: dict[tuple[str, bytes], nftables.Successor] = {}
        for number, record in enumerate(records):
            whose = owner_of(PLUGIN, record.facts)
            for key, data in nftables.targets_of(record.facts).items():
                successors.setdefault(key, nftables.Successor(whose, data))
            if records[number + 1 :]:
                later = [[r.facts["network"], r.facts["ifname"]] for r in records[number + 1 :]]
                record.note(heirs=[*_waiting_in(record.facts), *later])
        nftables.remove(host, facts, owner(req), successors)
    finally:
        for record in records:
            record.close()


def _waiting_in(facts: Json) -> list[list[str]]:
    """Return network and interface of each attachment that waits for ports of this one."""
    return list(facts.get("heirs", ()))


def _waiting(req: Request, host: Host, network: str, ifname: str) -> Record | None:
    try:
        attachment = Attachment(req.containerid, ifname)
        return host.records.find(PLUGIN, network, attachment, wait=False)
    except CNIError:
        return None


def _wait_behind(req: Request, host: Host, holder: str) -> bool:
    """Note in the record of `holder` that `req` inherits its ports; False without a record."""
    facts = _facts_of(host, holder)
    if facts is None:
        return False
    attachment = Attachment(req.containerid, facts.get("ifname", ""))
    record = host.records.find(PLUGIN, facts.get("network", ""), attachment)
    if record is None:
        return False
    own, waiting = [req.network, req.ifname], _waiting_in(record.facts)
    if own not in waiting:
        record.note(heirs=[*waiting, own])
    record.close()
    return True


def _facts_of(host: Host, text: str) -> Json | None:
    survey = host.records.survey(PLUGIN)
    return next((facts for facts in survey if owner_of(PLUGIN, facts) == text), None)
