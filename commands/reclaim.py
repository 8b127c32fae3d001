"""`pycni reclaim`: removes what `pycni audit` shows, if it was seen twice."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cni_common.spec.undo import BestEffort
from commands import DONE, FOUND, counters, grouped, leftovers, view
from commands.audit import Audit
from commands.first_seen import FirstSeen
from commands.grouped import LATER, NEVER, NOW

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Container, Sequence

    from cni_common.node.host import Host
    from commands.audit import Finding


def run(options: Namespace, host: Host) -> int:
    """Remove what can go, say what has gone and what is left; FOUND when more will go later.

    Raises an ExceptionGroup, after the report, when something could not be removed.
    """
    with BestEffort() as steps:
        if options.dry_run:
            before = Audit(host, options.data_dir, FirstSeen(host.state_dir)).findings()
            gone, left = [one for one in before if one.reclaim == NOW], before
        else:
            gone, left = _remove(host, options.data_dir, steps)
        later = [one for one in left if one.reclaim != NEVER and one not in gone]
        kept = [one for one in left if one.reclaim == NEVER]
        _report(options, gone, later, kept)
    return FOUND if later or (options.dry_run and gone) else DONE


def reclaim(host: Host, data_dir: str, *, known: Container[str]) -> list[Finding]:
    """Remove what can go but for the `known` containers; return what has gone.

    Raises an ExceptionGroup when something could not be removed.
    """
    with BestEffort() as steps:
        gone, _ = _remove(host, data_dir, steps, known)
    return gone


def _remove(
    host: Host, data_dir: str, steps: BestEffort, known: Container[str] = ()
) -> tuple[list[Finding], list[Finding]]:
    """Remove what can go; return what has gone, and what is left."""
    first_seen = FirstSeen(host.state_dir)

    def look() -> list[Finding]:
        found = Audit(host, data_dir, first_seen).findings()
        # One act frees all leases of a directory: it waits for those of the known containers.
        kept = {one.key for one in found if one.containerid in known}
        return [one for one in found if one.key not in kept]

    before = look()
    leftovers.note_returns(host, steps)
    _act(before, steps)
    left = look()
    first_seen.remember(one.key for one in left if one.reclaim == LATER)
    remaining = {(one.kind, one.what, one.containerid) for one in left}
    gone = [o for o in before if (o.kind, o.what, o.containerid) not in remaining]
    leases = sum(one.kind == grouped.LEASE for one in gone)
    if leases:
        with suppress(OSError):  # a count is worth no failure
            counters.note_released(host.state_dir, counters.RECLAIMED, leases)
    return gone, left


def _act(findings: Sequence[Finding], steps: BestEffort) -> None:
    done: set[str] = set()
    for one in findings:
        # The act of a finding due later notes it in its record, if there is one.
        has_record = one.key.startswith(("/", "lease "))
        if one.act and one.key not in done and (one.reclaim == NOW or has_record):
            done.add(one.key)
            steps.attempt(one.what, one.act)


def _report(
    options: Namespace,
    gone: Sequence[Finding],
    later: Sequence[Finding],
    kept: Sequence[Finding],
) -> None:
    if options.json:
        view.write_json(
            {
                "dryRun": options.dry_run,
                "removed": [one.json() for one in gone],
                "later": [one.json() for one in later],
                "kept": [one.json() for one in kept],
            }
        )
        return
    verb = "would be removed" if options.dry_run else "removed"
    parts = ((verb, gone), ("left for a call in a minute", later), ("left to you", kept))
    shown = [(title, findings) for title, findings in parts if findings]
    for title, findings in shown:
        view.write_text(f"{title}: {grouped.counted(findings)}")
    for title, findings in shown:
        view.write_line()
        view.write_text(f"{title}:", style="bold")
        view.write_line()
        grouped.write_findings(findings, states=False)
    if not shown:
        view.write_line("nothing to reclaim")
