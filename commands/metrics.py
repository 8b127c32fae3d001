"""`pycni metrics`: this node's numbers for Prometheus, on stdout or for the node exporter."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_common.node.journal import make_private_directory
from cni_common.serve import status
from cni_common.spec.names import VERSION
from commands import DONE, counters, missing, pools, view
from commands.audit import Audit
from commands.exposition import GAUGE, Family, text
from commands.first_seen import FirstSeen
from plugins import TYPES, profile_of

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.spec.request import Attachment
    from commands.node import Node

_MODE = 0o644  # the node exporter is not root


def run(options: Namespace, host: Host) -> int:
    """Print all metrics, or write them to a file. Raises OSError."""
    found = families(host, options.data_dir)
    if options.json:
        view.write_json({"metrics": [one.json() for one in found]})
        return DONE
    page = text(found)
    if options.textfile:
        _replace(options.textfile, page.encode())
    else:
        view.write_lines(page)
    return DONE


def families(host: Host, data_dir: str) -> Iterator[Family]:
    """Yield all that is known of this node and of the calls on it. Raises OSError."""
    build = Family("pycni_build_info", "The version of this program.", GAUGE)
    build.add(1, version=VERSION)
    yield build
    yield from _of_engine(status.look(f"{host.state_dir}/engine.sock"))
    queue = Family("pycni_delete_queue_length", "DELs that a daemon has still to complete.", GAUGE)
    queue.add(_queued())
    yield queue
    audit = Audit(host, data_dir, FirstSeen(host.state_dir))
    yield from _of_node(audit.node)
    leftovers = Family(
        "pycni_leftovers", "Objects that belong to no living container, by kind.", GAUGE
    )
    found = audit.findings()
    for kind, count in sorted(Counter(one.kind for one in found).items()):
        leftovers.add(count, kind=kind)
    yield leftovers
    candidates = Family(
        "pycni_ipam_leak_candidates", "Leases that belong to no living container.", GAUGE
    )
    candidates.add(sum(one.kind == "lease" for one in found))
    yield candidates
    lacking = Family("pycni_missing_objects", "Objects that living containers lack.", GAUGE)
    lacking.add(len(missing.of(audit.node, host, data_dir)))
    yield lacking
    make_private_directory(host.state_dir)
    yield from counters.of_calls(host.state_dir)


def _of_engine(found: status.Status | None) -> Iterator[Family]:
    up = Family("pycni_engine_up", "Whether an engine answers.", GAUGE)
    up.add(bool(found and found.build))
    yield up
    memory = Family("pycni_engine_memory_bytes", "Memory of the engine (PSS).", GAUGE)
    if found:
        memory.add(found.memory_kib * 1024)
    yield memory


def _of_node(node: Node) -> Iterator[Family]:
    attachments = Family(
        "pycni_attachments", "Attachments that have a record, by network and by life.", GAUGE
    )
    states = Counter((owner[0], _life(node, owner)) for owner in node.attachments)
    for (network, state), count in sorted(states.items()):
        attachments.add(count, network=network, state=state)
    yield attachments
    yield pools.addresses(node.pools())


def _life(node: Node, owner: tuple[str, Attachment]) -> str:
    states = [node.alive(one.facts) for one in node.attachments[owner]]
    if True in states:
        return "alive"
    return "unknown" if None in states else "gone"


def _queued() -> int:
    profiles = filter(None, map(profile_of, TYPES))
    found = 0
    for directory in (one for profile in profiles for one in profile.queues):
        with suppress(FileNotFoundError):
            found += len(os.listdir(directory))
    return found


def _replace(path: str, data: bytes) -> None:
    """Give a file its content by a rename: the node exporter never reads half of it."""
    new = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(new, flags, _MODE)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, _MODE)
            file.write(data)
        os.rename(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise
