"""The output of `pycni` alone: this node in a few lines."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from cni_common.node.host import STATE_DIR, Host
from cni_common.serve.protocol import execute
from cni_common.spec.errors import CNIError
from commands import DATA_DIR, grouped, missing, view
from commands.verb import log, words_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Loader
    from commands.node import Node

_NETWORKS_MAX = 8  # with a line of their own
_LABEL = 11  # columns


def write(load: Loader) -> None:
    """Print networks, containers, leases, and what is wrong; for other users than root nothing.

    Raises OSError if stdout cannot be written.
    """
    if os.geteuid() or not any(map(os.path.isdir, (STATE_DIR, DATA_DIR))):
        return
    executable = os.path.realpath(sys.argv[0])
    try:
        with Host(load, executable, log, execute=execute, state_dir=STATE_DIR) as host:
            rows = list(_rows(host))
    except (CNIError, OSError, ExceptionGroup) as error:
        rows = [("", f"this node cannot be looked at: {words_of(error)}")]
    try:
        for label, text in rows:
            view.write_text(f"{label:{_LABEL}}{text}", more_indent=" " * _LABEL)
        view.write_line()
    except view.UndeliveredError as error:
        raise error.reason from None  # main answers


def _rows(host: Host) -> Iterator[tuple[str, str]]:
    from commands.audit import Audit
    from commands.first_seen import FirstSeen

    audit = Audit(host, DATA_DIR, FirstSeen(host.state_dir))
    yield from _networks(audit.node)
    findings, lacking = audit.findings(), missing.of(audit.node, host, DATA_DIR)
    if findings:
        yield "leftovers", grouped.of_findings(findings)
    if lacking:
        yield "missing", f"{grouped.of_missing(lacking)}; 'pycni audit' shows them"
    if not findings and not lacking:
        yield "", "nothing is wrong; 'pycni doctor' looks closer"


def _networks(node: Node) -> Iterator[tuple[str, str]]:
    containers: defaultdict[str, set[str]] = defaultdict(set)
    for network, attachment in node.attachments:
        containers[network].add(attachment.containerid)
    leases: defaultdict[str, int] = defaultdict(int)
    for one in node.tenancies:
        leases[one.network] += 1
    names = sorted(containers.keys() | leases.keys())
    known = {one for found in containers.values() for one in found}
    dead = known - _not_dead(node)
    more = f", {len(dead)} of them dead" if dead else ""
    yield "containers", f"{len(known)} on {view.number(len(names), 'network')}{more}"
    for name in names[:_NETWORKS_MAX]:
        yield "network", _words(name, len(containers[name]), leases[name])
    if names[_NETWORKS_MAX:]:
        yield "", f"and {len(names) - _NETWORKS_MAX} more: pycni leases"


def _not_dead(node: Node) -> set[str]:
    """Return the containers of which a record says that they live, or may live."""
    return {
        attachment.containerid
        for (_, attachment), records in node.attachments.items()
        if any(node.alive(one.facts) is not False for one in records)
    }


def _words(name: str, containers: int, leases: int) -> str:
    return f"{name}: {view.number(containers, 'container')}, {view.number(leases, 'lease')}"
