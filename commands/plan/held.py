"""What living containers of this node hold of what a plan's ADD would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DATA_DIR
from commands.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_common.node.host import Host
    from cni_common.spec.wire import Json


def leases(host: Host, files: Iterable[str]) -> dict[str, str]:
    """Return those of some files that are leases, with who has them in words. Raises OSError."""
    wanted = set(files)
    return {
        one.file: f"is leased to container {one.owner.containerid}: the ADD gets another, or is"
        " refused if it asks for this one"
        for one in Node(host, DATA_DIR).tenancies
        if one.file in wanted
    }


def ports(host: Host, capabilities: Json) -> Iterator[tuple[str, str]]:
    """Yield each port of the host that is asked for and taken, with who has it in words."""
    node = Node(host, DATA_DIR)
    mappings = capabilities.get("portMappings")
    for one in mappings if isinstance(mappings, list) else ():
        port = one.get("hostPort") if isinstance(one, dict) else None
        if not isinstance(port, int):
            continue
        holders = {
            known.attachment.containerid
            for known in node.records
            if any(part.has_host_port(facts, port) for part, facts in node.noted(known))
            and node.alive(known.facts) is not False
        }
        for containerid in sorted(holders):
            what = f"{port}/{one.get('protocol', 'tcp')}"
            yield (
                what,
                f"would be refused, unless protocol or address differ: container {containerid} has"
                " that port",
            )
