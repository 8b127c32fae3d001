"""What others have taken away from living containers, put back by the plugins' own code."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import recorded_add
from cni_common.node.owned import recorded_netns
from cni_common.spec.undo import BestEffort
from cni_common.spec.wire import fold
from commands import DATA_DIR, missing
from commands.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_common.node.host import Host
    from commands.missing import Missing
    from commands.node import Known


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
) -> list[Restored]:
    """Put back what living containers lack, as far as their parts can; return what is back.

    `is_meant` chooses containers by their ids. Without `inside` settings of the containers' own
    namespaces stay as they are. `tell_lost` gets each object that only a new ADD makes. An
    attachment on which another call works is left alone, as are damaged records. Raises an
    ExceptionGroup after all attachments.
    """
    node = Node(host, data_dir)
    restored: list[Restored] = []
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
            steps.attempt(where, partial(_put_back, host, records, restored, inside=inside))
    return restored


def _put_back(
    host: Host, records: Iterable[Known], restored: list[Restored], *, inside: bool
) -> None:
    """Have each record's plugin restore what it lacks, in the order of the chain's ADDs."""
    with BestEffort() as steps:
        for known in sorted(records, key=lambda one: one.changed):
            step = partial(_put_back_of, host, known.path, restored, inside=inside)
            steps.attempt(known.plugin, step)


def _put_back_of(host: Host, path: str, restored: list[Restored], *, inside: bool) -> None:
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
                one = Restored(record.network, req.containerid, req.ifname, what)
                host.log(str(one))
                restored.append(one)
    finally:
        record.close()
