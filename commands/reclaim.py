"""`pycni reclaim`: removes what `pycni audit` shows, if it was seen twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.undo import BestEffort
from commands import DONE, FOUND, leftovers, view
from commands.audit import COLUMNS, LATER, NEVER, NOW, Audit
from commands.first_seen import FirstSeen

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from cni_common.node.host import Host
    from commands.audit import Finding


def run(options: Namespace, host: Host) -> int:
    """Remove what can go, say what has gone and what is left; FOUND when more will go later.

    Raises an ExceptionGroup, after the report, when something could not be removed.
    """
    first_seen = FirstSeen(host.state_dir)
    before = Audit(host, options.data_dir, first_seen).findings()
    with BestEffort() as steps:
        if options.dry_run:
            gone, left = [one for one in before if one.reclaim == NOW], before
        else:
            leftovers.note_returns(host, steps)
            _act(before, steps)
            left = Audit(host, options.data_dir, first_seen).findings()
            first_seen.remember(one.key for one in left if one.reclaim == LATER)
            remaining = {(one.kind, one.what, one.containerid) for one in left}
            gone = [o for o in before if (o.kind, o.what, o.containerid) not in remaining]
        later = [one for one in left if one.reclaim != NEVER and one not in gone]
        kept = [one for one in left if one.reclaim == NEVER]
        _report(options, gone, later, kept)
    return FOUND if later or (options.dry_run and gone) else DONE


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
    columns = COLUMNS[:-1]
    parts = ((verb, gone), ("left for a call in a minute", later), ("left to you", kept))
    shown = [(title, findings) for title, findings in parts if findings]
    for number, (title, findings) in enumerate(shown):
        if number:
            view.write_line()
        rows = [one.row()[:-1] for one in findings]
        view.write_table(columns, rows, title=f"{title}: {len(findings)}")
    if not shown:
        view.write_line("nothing to reclaim")
