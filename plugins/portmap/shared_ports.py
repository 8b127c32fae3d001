"""Ports that one container wants on several networks: one has them, the next inherits them.

A runtime passes a container's ports to each of its networks (`podman network connect`). They lead
to the network that was first, as with the reference. The others are noted in its record as heirs;
its DEL hands over to them what they wait for, by the transaction that takes it from it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.kernel.netns import reachable_namespaces
from cni_common.node.liveness import lives, owner_of
from cni_common.node.masquerade import Owner
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import Attachment
from plugins.portmap import nftables
from plugins.portmap.conf import PLUGIN, Conf

if TYPE_CHECKING:
    from cni_common.node.host import Host
    from cni_common.node.record import Record
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
        holders = nftables.add(host.netns, conf, owner(req), partial(judge, req, host))
        if all(_wait_behind(req, host, holder) for holder in sorted(holders)):
            return
    raise CNIError(
        Code.TRY_AGAIN_LATER, f"the ports of container {req.containerid} keep changing; try again"
    )


def judge(req: Request, host: Host, text: str) -> str:
    """Return what the owner that an element's comment names is to the container of `req`."""
    facts = _facts_of(host, text)
    if facts is None or lives(facts, reachable_namespaces) is not True:
        return nftables.DEAD
    return nftables.SAME if facts.get("containerid") == req.containerid else nftables.ALIVE


def pass_on(req: Request, host: Host, facts: Json) -> None:
    """Take back the elements that `facts` tell of; what an heir waits for goes over to him.

    Who is being deleted inherits nothing, and who is being added looks himself once this record is
    gone: he waits for it with his own locked, so his is only tried here.
    """
    records = [record for record in (_heir(req, host, *whose) for whose in _heirs(facts)) if record]
    try:
        heirs: dict[tuple[str, bytes], nftables.Heir] = {}
        for number, record in enumerate(records):
            whose = owner_of(PLUGIN, record.facts)
            for key, data in nftables.targets_of(record.facts).items():
                heirs.setdefault(key, nftables.Heir(whose, data))
            if records[number + 1 :]:
                later = [[r.facts["network"], r.facts["ifname"]] for r in records[number + 1 :]]
                record.note(heirs=[*_heirs(record.facts), *later])
        nftables.remove(host, facts, owner(req), heirs)
    finally:
        for record in records:
            record.close()


def _heirs(facts: Json) -> list[list[str]]:
    """Return networks and interfaces of those who wait for ports of the attachment."""
    return list(facts.get("heirs", ()))


def _heir(req: Request, host: Host, network: str, ifname: str) -> Record | None:
    try:
        attachment = Attachment(req.containerid, ifname)
        return host.records.find(PLUGIN, network, attachment, wait=False)
    except CNIError:
        return None


def _wait_behind(req: Request, host: Host, holder: str) -> bool:
    """Become an heir of `holder`; False when he is gone by now."""
    facts = _facts_of(host, holder)
    if facts is None:
        return False
    attachment = Attachment(req.containerid, facts.get("ifname", ""))
    record = host.records.find(PLUGIN, facts.get("network", ""), attachment)
    if record is None:
        return False
    own, heirs = [req.network, req.ifname], _heirs(record.facts)
    if own not in heirs:
        record.note(heirs=[*heirs, own])
    record.close()
    return True


def _facts_of(host: Host, text: str) -> Json | None:
    survey = host.records.survey(PLUGIN)
    return next((facts for facts in survey if owner_of(PLUGIN, facts) == text), None)
