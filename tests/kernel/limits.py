"""Containers with a veth of their own, limits for them, and what `tc` says of those."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.machine import Json, Machine, files_below

MBIT = 1_000_000
BOTH: Json = {
    "ingressRate": 20 * MBIT,
    "ingressBurst": 2 * MBIT,
    "egressRate": 40 * MBIT,
    "egressBurst": 4 * MBIT,
}
SUBNETS = ["192.0.2.0/24", "2001:db8::/64"]
NO_BURST = 2**32 - 1  # what containerd sends
NOTHING: Json = {"ifbs": [], "qdiscs": [], "records": []}


class Tbf(NamedTuple):
    """A token bucket as `tc` sees it."""

    rate: int  # bytes a second
    burst: int  # bytes
    limit: int  # bytes


def container(machine: Machine, number: int = 1, *, mtu: int = 1500) -> str:
    """Return a container whose eth0 is 10.7.N.2, its other end "hostN" 10.7.N.1 on the host."""
    netns, ours = machine.container(), f"host{number}"
    machine.do(
        machine.host,
        f"ip link add {ours} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}",
        f"ip addr add 10.7.{number}.1/24 dev {ours}",
        f"ip link set {ours} up",
    )
    machine.do(netns, f"ip addr add 10.7.{number}.2/24 dev eth0", "ip link set eth0 up")
    return netns


def config(machine: Machine, number: int = 1, **keys: Any) -> Json:
    """Return a configuration behind a plugin that has made the veth of `container`."""
    return {
        "cniVersion": "1.1.0",
        "name": machine.name,
        "type": "bandwidth",
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": f"host{number}"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": f"10.7.{number}.2/24", "interface": 1}],
        },
        **keys,
    }


def by_runtime(**limits: int) -> Json:
    """Return limits as containerd hands them down: by the names of Go's fields."""
    fields = {key[0].upper() + key[1:]: value for key, value in limits.items()}
    return {"runtimeConfig": {"bandwidth": fields}}


def ifb_of(result: Json) -> str:
    """Return the name of the ifb in a result."""
    name = str(result["interfaces"][-1]["name"])
    assert name.startswith("bwp")
    return name


def tc(machine: Machine, *words: str) -> list[Json]:
    """Return what `tc -j` says on the host."""
    found = json.loads(machine.command(machine.host, "tc", "-j", "-raw", *words) or "[]")
    return [entry for entry in found if entry]


def qdiscs(machine: Machine, name: str) -> list[Json]:
    """Return the qdiscs of an interface that others have made."""
    return [one for one in tc(machine, "qdisc", "show", "dev", name) if one["handle"] != "0:"]


def tbf(machine: Machine, name: str) -> Tbf:
    """Return the token bucket at the root of an interface."""
    (found,) = (one for one in qdiscs(machine, name) if one.get("root"))
    assert (found["kind"], found["handle"]) == ("tbf", "1:")
    options = found["options"]
    return Tbf(options["rate"], options["burst"], options["limit"])


def redirections(machine: Machine, name: str) -> list[str]:
    """Return where each filter of what an interface receives redirects to."""
    found = tc(machine, "filter", "show", "dev", name, "ingress")
    actions = [action for one in found for action in one.get("options", {}).get("actions", ())]
    return [action["to_dev"] for action in actions]


def left(machine: Machine) -> Json:
    """Return all that attachments have on the host."""
    names = [link["ifname"] for link in machine.ip(machine.host, "link")]
    made = [one for one in tc(machine, "qdisc", "show") if one["handle"] != "0:"]
    return {
        "ifbs": [name for name in names if name.startswith("bwp")],
        "qdiscs": [(name, one["kind"]) for name in names for one in made if one["dev"] == name],
        "records": sorted(files_below(machine.state_dir).values()),
    }
