"""The removal of what belongs to nobody: by the plugins' own code, after another look."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node import lifecycle, masquerade
from cni_common.node.liveness import addresses_in_use
from cni_common.spec.request import Attachment
from commands import inventory
from commands.node import PROBE, Node
from plugins.bridge import macfilter
from plugins.host_local.expiry import Expiry
from plugins.host_local.lease import GRACE_SECONDS
from plugins.host_local.store import Store, indexes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_common.node.host import Host
    from cni_common.node.record import Record
    from cni_common.spec.names import Address
    from cni_common.spec.undo import BestEffort
    from commands.node import Known
    from commands.owned import Stray

_STORES_OWN = ".pycni-"  # how the names of files begin that host-local makes beside its leases


def owner_text(known: Known) -> str:
    """Return how masquerade elements name whose record this is."""
    return str(masquerade.Owner(known.plugin, known.network, known.attachment))


def dissolve(host: Host, path: str) -> None:
    """Take apart the attachment whose record is `path`, if its namespace was gone twice."""
    record = host.records.open(path)
    if record is None:
        return
    try:
        reason = _reason(host, record)
        if not reason:
            return
        whose, network = record.attachment, record.facts.get("network")
        _log(host, f"{whose.containerid} {whose.ifname} of network {network}", reason)
        gone = lifecycle.as_delete(record, os.path.dirname(host.executable))
        inventory.KINDS[record.facts["plugin"]].dissolve(gone, host, record)
    finally:
        record.close()


def remove_idle_record(host: Host, path: str) -> None:
    """Remove host-local's record of an attachment that is gone and holds no lease."""
    record = host.records.open(path)
    if record is None:
        return
    try:
        reason = _reason(host, record)
        directory = record.facts.get("directory", "")
        if not reason:
            return
        with Store(directory, indexes=indexes_of(host), log=host.log) as store:
            if not store.lock().held_by(record.attachment):
                _log(host, f"record '{path}'", f"{reason}, and it holds no lease")
                record.remove()
    finally:
        record.close()


def remove_empty_record(host: Host, path: str) -> None:
    """Remove a record that a kill has left without a line: nothing has been made for it."""
    record = host.records.open(path)
    if record is None:
        return
    if not record.facts and record.age() >= GRACE_SECONDS:
        _log(host, f"record '{path}'", "a call that was killed left it empty")
        record.remove()
    record.close()


def note_returns(host: Host, steps: BestEffort) -> None:
    """Forget that a container was found GONE where that can no longer be told."""
    expiry = Expiry(host, "", patient=True)
    for known in Node(host, "").records:
        record = host.records.open(known.path) if known.facts.get("gone_since") else None
        if record is not None:
            steps.attempt(known.path, partial(expiry.of, record.attachment, record))
            record.close()


def remove_element(host: Host, address: Address, text: str) -> None:
    """Remove a masquerade element unless it has got an owner since."""
    recorded = {owner_text(one) for one in Node(host, "").records}
    if text not in recorded and address not in addresses_in_use():
        _log(host, f"the masquerade element of {address}", f"no record of '{text}'")
        masquerade.remove_element(host.netns, address, text)


def remove_stray(host: Host, stray: Stray) -> None:
    """Remove what still has no record and no living container."""
    is_claimed = stray.owner in inventory.claimed(Node(host, "").records)
    if not is_claimed and not stray.addresses & addresses_in_use():
        _log(host, stray.what, stray.reason)
        stray.remove()


def remove_filter(host: Host, port: str) -> None:
    """Remove the MAC filter of a port that is still gone."""
    if port in macfilter.orphans(host.netns):
        _log(host, f"the MAC filter of port '{port}'", "the port is gone")
        macfilter.remove_port(host.netns, port)


def remove_filter_of_reference(host: Host, port: str, whose: str) -> None:
    """Likewise for one that the reference plugin made."""
    if (port, whose) in macfilter.orphans_of_reference(host.netns):
        _log(host, f"the MAC filter of port '{port}' for {whose}", "the port is gone")
        macfilter.remove_named_of_reference(host.netns, whose)


def remove_of_reference(host: Host, node: Node, network: str, source: Address) -> None:
    """Remove the reference's masquerading of one address that no namespace has."""

    def keep() -> frozenset[Attachment]:
        records = [one for one in Node(host, "").records if one.network == network]
        leases = [one.owner for one in node.tenancies if one.network == network]
        return frozenset([*(one.attachment for one in records), *leases])

    in_use: list[frozenset[Address]] = []

    def is_used(address: Address) -> bool:
        in_use[:] = in_use or [addresses_in_use()]
        return address != source or address in in_use[0]

    for what in masquerade.gc_of_reference(host.netns, network, keep, is_used):
        _log(host, what, "its address is in no namespace")


def temporary_files(host: Host, node: Node) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each file that a killed call has left, and how it can be removed."""
    for directory, is_ours in (
        (host.records.directory, lambda name: name.startswith(PROBE)),
        (indexes_of(host), lambda name: name.endswith(".new")),
    ):
        for path in _old_files(directory, is_ours):
            yield path, partial(_remove_file, host, path)
    for directory in sorted({directory for _, directory in node.directories()}):
        for path in _old_files(directory, lambda name: name.startswith(_STORES_OWN)):
            yield path, partial(_tidy, host, directory)


def _reason(host: Host, record: Record) -> str:
    """Return why an attachment can go; notes the first sight of a namespace that is gone."""
    if record.age() < GRACE_SECONDS:
        return ""
    return Expiry(host, "", patient=True).of(record.attachment, record)


def _old_files(directory: str, is_ours: Callable[[str], bool]) -> list[str]:
    try:
        names = [name for name in os.listdir(directory) if is_ours(name)]
    except FileNotFoundError:
        return []
    paths = [f"{directory}/{name}" for name in sorted(names)]
    return [path for path in paths if _age(path) >= GRACE_SECONDS]


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0


def _remove_file(host: Host, path: str) -> None:
    if _age(path) >= GRACE_SECONDS:
        _log(host, f"'{path}'", "a call that was killed left it")
        os.unlink(path)


def _tidy(host: Host, directory: str) -> None:
    """Have host-local remove what killed calls left among its leases."""
    with Store(directory, indexes=indexes_of(host), log=host.log) as store:
        _log(host, f"'{directory}/{_STORES_OWN}*'", "a call that was killed left it")
        store.lock()
        store.tidy(os.listdir(directory))  # by names alone: others wait for the lock


def _log(host: Host, what: str, reason: str) -> None:
    host.log(f"pycni reclaim: removes {what}: {reason}")
