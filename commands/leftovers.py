"""Removal of objects without an owner: by the plugins' own code, after another look."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.absence import Absence
from cni_common.node.lifecycle import recorded_delete
from cni_common.node.liveness import GRACE_SECONDS
from cni_common.node.namespaces import addresses_in_use
from commands.node import PROBE, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Part
    from cni_common.node.owned import Stray
    from cni_common.node.record import Record
    from cni_common.spec.undo import BestEffort


def teardown(host: Host, path: str) -> None:
    """Tear down the attachment whose record is `path`, if its namespace was gone twice."""
    record = host.records.open(path)
    if record is None:
        return
    try:
        reason = "" if record.damage else _reason(host, record)
        module = host.load(record.plugin)
        lifecycle = module.lifecycle() if module else None
        if not reason or lifecycle is None:
            return
        owner = record.attachment
        _log(host, f"{owner.containerid} {owner.ifname} of network {record.network}", reason)
        gone = recorded_delete(record, os.path.dirname(host.executable))
        lifecycle.teardown(gone, host, record)
    finally:
        record.close()


def remove_empty_record(host: Host, path: str) -> None:
    """Remove a record that a kill has left without a line: nothing has been made for it."""
    record = host.records.open(path)
    if record is None:
        return
    if record.is_unbegun() and record.age() >= GRACE_SECONDS:
        _log(host, f"record '{path}'", "a call that was killed left it empty")
        record.remove()
    record.close()


def note_returns(host: Host, steps: BestEffort) -> None:
    """Forget that a container was found GONE where that can no longer be told."""
    absence = Absence(host, patient=True)
    for known in Node(host, "").records:
        record = host.records.open(known.path) if known.facts.get("gone_since") else None
        if record is not None:
            steps.attempt(known.path, partial(absence.reason, record))
            record.close()


def remove_stray(host: Host, part: Part, stray: Stray, network: str = "") -> None:
    """Remove `stray` if it still has no record and no living container."""
    claimed = Node(host, "").claimed(part)
    if stray.owner in claimed or stray.addresses & addresses_in_use(host):
        return
    _log(host, stray.what, stray.reason)
    if stray.remove_from:
        stray.remove_from(network)
    else:
        stray.remove()


def temporary_files(host: Host, node: Node) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each file that a killed call has left, and how it can be removed."""
    directories = sorted({directory for _, directory in node.directories()})
    found: list[tuple[str, Callable[[], object]]] = []
    found += [(path, partial(os.unlink, path)) for path in _probes(host)]
    for leases in node.leases_of_plugins:
        found += leases.temporary_files(host, directories)
    for path, remove in found:
        if _age(path) >= GRACE_SECONDS:
            yield path, partial(_remove_file, host, path, remove)


def _probes(host: Host) -> list[str]:
    """Return the files of a STATUS that was killed."""
    directory = host.records.directory
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in sorted(names) if name.startswith(PROBE)]


def _reason(host: Host, record: Record) -> str:
    """Return why an attachment can go; notes the first sight of a container that is GONE."""
    if record.age() < GRACE_SECONDS:
        return ""
    return Absence(host, patient=True).reason(record)


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0


def _remove_file(host: Host, path: str, remove: Callable[[], object]) -> None:
    if _age(path) >= GRACE_SECONDS:
        _log(host, f"'{path}'", "a call that was killed left it")
        remove()


def _log(host: Host, what: str, reason: str) -> None:
    host.log(f"pycni reclaim: removes {what}: {reason}")
