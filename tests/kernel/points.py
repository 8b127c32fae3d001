"""Configurations of ptp for its tests, and what its attachments leave on the host."""

from __future__ import annotations

from typing import Any

from tests.machine import Json, Machine, files_below

IPV4, IPV6 = "10.9.0.0/24", "fd00:9::/64"
NOTHING: Json = {"ports": [], "nft": [], "leases": [], "records": []}
STATIC = {"type": "static", "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}]}


def network(machine: Machine, *subnets: str, **keys: Any) -> Json:
    """Return a ptp configuration with these subnets, both by default, and default routes."""
    used = subnets or (IPV4, IPV6)
    ipam = {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[{"subnet": subnet}] for subnet in used],
        "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in used],
    }
    return machine.network(
        **{"type": "ptp", "bridge": None, "isGateway": None, "ipam": ipam, **keys}
    )


def left(machine: Machine) -> Json:
    """Return everything on the host that belongs to an attachment."""
    return {
        "ports": machine.ports(),
        "nft": [entry for entry in machine.nft() if "pycni" in str(entry) or "CNI-" in str(entry)],
        "leases": machine.leases(),
        "records": list(files_below(machine.state_dir)),
    }
