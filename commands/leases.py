"""`pycni leases`: the addresses that are given out, and to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, view
from commands.node import Node

if TYPE_CHECKING:
    from argparse import Namespace

    from cni_common.node.host import Host
    from commands.node import Tenancy

_COLUMNS = ("address", "network", "container", "interface", "pod", "since", "alive")


def run(options: Namespace, host: Host) -> int:
    """Print the leases, by network and address."""
    leases = list(Node(host, options.data_dir).leases(options.network))
    if options.json:
        view.write_json({"leases": [_json(one) for one in leases]})
        return DONE
    rows = [
        [
            str(one.held.address),
            one.network,
            one.owner.containerid,
            one.owner.ifname,
            one.pod,
            one.held.since,
            view.answer(one.alive),
        ]
        for one in leases
    ]
    view.write_table(_COLUMNS, rows, title="" if rows else "no leases")
    return DONE


def _json(one: Tenancy) -> dict[str, object]:
    return {
        "address": str(one.held.address),
        "network": one.network,
        "containerid": one.owner.containerid,
        "ifname": one.owner.ifname,
        "pod": one.pod,
        "since": one.held.since,
        "netns": one.netns,
        "alive": one.alive,
        "file": one.file,
    }
