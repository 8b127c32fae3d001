"""Puts back what living containers have lost to others, by the plugins' own code."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import recorded_add
from cni_common.node.owned import recorded_netns
from cni_common.spec.undo import BestEffort
from cni_common.spec.wire import fold
from commands import DATA_DIR, DONE, FOUND, LACKING, grouped, lookup, missing, rebuild, view
from commands.node import Node
from commands.verb import RefusedError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Sequence

    from cni_common.node.host import Host
    from commands.missing import Missing
    from commands.node import Known
    from commands.rebuild import Attempt


@dataclass(frozen=True, slots=True)
class Restored:
    """One object that is back."""

    network: str
    containerid: str
    ifname: str
    what: str

    def __str__(self) -> str:
        return f"put back for container {self.containerid}: {self.what}"

    def json(self) -> dict[str, str]:
        """Return the object for --json."""
        return {name: str(getattr(self, name)) for name in self.__match_args__}


def put_back(
    host: Host,
    data_dir: str = DATA_DIR,
    *,
    is_meant: Callable[[str], bool] = lambda _containerid: True,
    inside: bool = True,
    tell_lost: Callable[[Missing], object] = lambda _one: None,
    tell: Callable[[Restored], object] | None = None,
) -> list[Restored]:
    """Put back what living containers lack, as far as their parts can; return what is back.

    `is_meant` chooses containers by their ids. Without `inside` settings of the containers' own
    namespaces stay as they are. `tell_lost` gets each object that only a new ADD makes. `tell`, by
    default the log, gets each that is back, of a failing call, too. An attachment on which another
    call works is left alone, as are damaged records. Raises an ExceptionGroup after all
    attachments.
    """
    node = Node(host, data_dir)
    restored: list[Restored] = []

    def note(one: Restored) -> None:
        restored.append(one)
        if tell is None:
            host.log(str(one))
        else:
            tell(one)

    with BestEffort() as steps:
        for (network, attachment), lost in missing.lacking(node, host, data_dir):
            if not is_meant(attachment.containerid):
                continue
            for one in lost:
                if one.final:
                    tell_lost(one)
            if all(one.final for one in lost):
                continue
            where = f"{attachment.containerid} {attachment.ifname} of network {network}"
            records = node.attachments.get((network, attachment), ())
            steps.attempt(where, partial(_put_back, host, records, note, inside=inside))
    return restored


def _put_back(
    host: Host, records: Iterable[Known], note: Callable[[Restored], object], *, inside: bool
) -> None:
    """Have each record's plugin restore what it lacks, in the order of the chain's ADDs."""
    with BestEffort() as steps:
        for known in sorted(records, key=lambda one: one.changed):
            step = partial(_put_back_of, host, known.path, note, inside=inside)
            steps.attempt(known.plugin, step)


def _put_back_of(
    host: Host, path: str, note: Callable[[Restored], object], *, inside: bool
) -> None:
    record = host.records.open(path)
    if record is None:
        return
    try:
        module = host.load(record.plugin)
        lifecycle = module.lifecycle() if module else None
        if module is None or lifecycle is None or record.damage or record.is_unbegun():
            return
        with recorded_netns(record) as living:
            if living is None:
                return
            req = recorded_add(record, os.path.dirname(host.executable))
            req = replace(req, config=fold(req.config, module.SCHEMA))
            for what in lifecycle.restore(req, host, record, inside=inside):
                note(Restored(record.network, req.containerid, req.ifname, what))
    finally:
        record.close()


def run(options: Namespace, host: Host) -> int:
    """Put back what the chosen containers lack, and say so; LACKING if something stays lost.

    Raises RefusedError when it is not clear which container is meant, and an ExceptionGroup, after
    the report, when a part could not be put back.
    """
    is_meant = _chosen(options, host)
    if options.watch:
        from commands import repair_watch

        return repair_watch.run(options, host, is_meant)
    node = Node(host, options.data_dir)
    found = rebuild.attempts(node, options.results_dir, is_meant, dry_run=options.dry_run)
    damaged = list(found)
    before = _lacked(host, options.data_dir, is_meant)
    with BestEffort() as steps:
        left = before
        if not options.dry_run and any(not one.final for one in before):
            back = partial(
                put_back, host, options.data_dir, is_meant=is_meant, tell=lambda _one: None
            )
            steps.attempt("repair", back)  # the report has each object
            left = _lacked(host, options.data_dir, is_meant)
        _report(options, before, left, damaged)
    if any(one.final or not options.dry_run for one in left) or any(one.reason for one in damaged):
        return LACKING
    return FOUND if left or (damaged and options.dry_run) else DONE


def _chosen(options: Namespace, host: Host) -> Callable[[str], bool]:
    """Return what tells by an id whether a container is meant. Raises RefusedError."""
    if options.all:
        return lambda _containerid: True
    node = Node(host, options.data_dir)
    found = lookup.find(node, options.container, options.by)
    if len(found) > 1 and lookup.ID not in found.values():
        # A pod keeps its name when it gets a new container, and an address may be given anew.
        found = {one: found[one] for one in lookup.living(node, found)}
    if not found:
        raise RefusedError(f"no living container is '{options.container}'")
    if len(found) > 1:
        raise RefusedError(
            f"'{options.container}' can mean several containers: {', '.join(found)}; give an id,"
            " or --by"
        )
    return found.__contains__


def _lacked(host: Host, data_dir: str, is_meant: Callable[[str], bool]) -> list[Missing]:
    """Return what the chosen living containers lack, a shared object once."""
    lacking = missing.lacking(Node(host, data_dir), host, data_dir)
    meant = (lost for (_, attachment), lost in lacking if is_meant(attachment.containerid))
    return list(dict.fromkeys(one for lost in meant for one in lost))


def _report(
    options: Namespace,
    before: Sequence[Missing],
    left: Sequence[Missing],
    damaged: Sequence[Attempt],
) -> None:
    final = [one for one in left if one.final]
    rest = [one for one in left if not one.final]
    back = [] if options.dry_run else [one for one in before if one not in left]
    if options.json:
        view.write_json(
            {
                "dryRun": options.dry_run,
                "restored": [one.json() for one in back],
                "missing": [one.json() for one in rest],
                "onlyByAdd": [one.json() for one in final],
                "rebuilt": [one.json() for one in damaged if not one.reason],
                "damaged": [one.json() for one in damaged if one.reason],
            }
        )
        return
    _write_damaged(damaged, dry_run=options.dry_run)
    if not before:
        if not damaged:
            view.write_line("nothing is missing")
        return
    would = "would be put back" if options.dry_run else "could not be put back, see stderr"
    _write_list("put back", back, "bold green")
    _write_list(would, rest, "bold yellow" if options.dry_run else "bold red")
    _write_list("lost until the container is started anew", final, "bold red")


def _write_damaged(damaged: Sequence[Attempt], *, dry_run: bool) -> None:
    for one in damaged:
        container = f"container {one.known.attachment.containerid}"
        done = "would be written anew" if dry_run else "written anew"
        what = (
            f"record of {container}: {done}" if not one.reason else f"damaged record of {container}"
        )
        view.write_text(what, style="bold red" if one.reason else "bold green")
        view.write_text(one.known.path, indent="  ")
        view.write_text(f"it was damaged: {one.known.damage}", indent="  ")
        if one.reason:
            view.write_text(f"it stays, for its DEL: {one.reason}", indent="  ")
        view.write_line()


def _write_list(title: str, found: Sequence[Missing], style: str) -> None:
    if found:
        noun = "object" if len(found) == 1 else "objects"
        view.write_text(f"{title}: {len(found)} {noun}", style=style)
        view.write_line()
        grouped.write_missing(found)
        view.write_line()
