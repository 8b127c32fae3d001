"""What others have taken away from living containers, put back by the plugins' own code."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import recorded_add
from cni_common.node.owned import recorded_netns
from cni_common.spec.undo import BestEffort
from commands import DATA_DIR, missing
from commands.node import Node

if TYPE_CHECKING:
    from cni_common.node.host import Host


def put_back(host: Host, data_dir: str = DATA_DIR) -> list[str]:
    """Put back what living containers lack, as far as their parts can; return what is back.

    An attachment on which another call works is left alone, as are damaged records. Raises an
    ExceptionGroup after all attachments.
    """
    node = Node(host, data_dir)
    restored: list[str] = []
    with BestEffort() as steps:
        for (network, attachment), _ in missing.lacking(node, host, data_dir):
            for known in node.attachments.get((network, attachment), ()):
                where = f"{attachment.containerid} {attachment.ifname} of network {network}"
                steps.attempt(where, partial(_put_back, host, known.path, restored))
    return restored


def _put_back(host: Host, path: str, restored: list[str]) -> None:
    record = host.records.open(path)
    if record is None:
        return
    try:
        module = host.load(record.plugin)
        lifecycle = module.lifecycle() if module else None
        if lifecycle is None or record.damage or record.is_unbegun():
            return
        with recorded_netns(record) as living:
            if living is None:
                return
            req = recorded_add(record, os.path.dirname(host.executable))
            for what in lifecycle.restore(req, host, record):
                host.log(f"put back for container {req.containerid}: {what}")
                restored.append(what)
    finally:
        record.close()
