"""`pycni leases`: the addresses that are given out, and the container of each one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commands import DONE, view
from commands.node import Node

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from cni_common.node.host import Host
    from commands.node import Tenancy

_STATES = {True: "alive", False: "gone", None: "unknown whether alive"}


def run(options: Namespace, host: Host) -> int:
    """Print the leases: those of each container together, in the order of networks and addresses.

    Raises CNIError.
    """
    leases = list(Node(host, options.data_dir).leases(options.network))
    if options.json:
        view.write_json({"leases": [_json(one) for one in leases]})
        return DONE
    if not leases:
        view.write_line("no leases")
        return DONE
    owners: dict[str, list[Tenancy]] = {}
    for one in leases:
        owners.setdefault(one.owner.containerid, []).append(one)
    of = f" of {view.number(len(owners.keys() - {''}), 'container')}"
    view.write_line(f"{view.number(len(leases), 'lease')}{of}")
    view.write_line()
    view.write_page([line for owner, found in owners.items() for line in _lines(owner, found)])
    return DONE


def _lines(containerid: str, leases: Sequence[Tenancy]) -> Iterator[tuple[str, str]]:
    yield f"container {containerid}" if containerid else "of no container", ""
    yield from (("pod", pod) for pod in dict.fromkeys(one.pod for one in leases) if pod)
    for one in leases:
        where = f"{one.owner.ifname or 'any interface'} on network {one.network}"
        yield str(one.held.address), f"{where}, {_STATES[one.alive]}, since {one.held.since}"


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
