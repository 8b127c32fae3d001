"""Devices of a pretend host that host-device lends to containers, and what they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.kernel.test_rollback import calm
from tests.machine import Json, Machine, files_below
from tests.waits import wait_until

IPV4: Json = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.99"}
IPV6: Json = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::10"}
# Everything that a device can have on the host: label, peer, metric and protocol of addresses and
# routes, several next hops, a table of its own, queue, alias, promiscuous mode.
RICH = (
    "ip link set uplink mtu 1400 txqueuelen 77 alias wan promisc on",
    "ip addr add 203.0.113.5/28 dev uplink label uplink:1 brd 203.0.113.14",
    "ip addr add 10.1.1.1 peer 10.1.1.2/32 dev uplink metric 5",
    "ip addr add 10.2.2.2/24 dev uplink noprefixroute",
    "ip route add 198.51.100.0/24 via 192.0.2.2 dev uplink metric 7 mtu 1300 proto static",
    "ip route add default via 192.0.2.2 dev uplink src 203.0.113.5",
    "ip route add 10.3.0.0/16 nexthop via 192.0.2.2 dev uplink weight 2 nexthop dev other0",
    "ip route add 10.4.0.0/16 dev uplink scope link table 99",
    "ip route add 10.5.0.0/16 via 10.99.0.1 dev uplink onlink",
    "ip -6 route add 2001:db8:5::/48 via 2001:db8::2 dev uplink metric 9",
    "ip -6 route add default via fe80::1 dev uplink",
)


def network(machine: Machine, *ranges: Json, **keys: Any) -> Json:
    """Return a host-device configuration for `uplink`; without ranges an L2 one."""
    ipam = {
        "type": "host-local",
        "dataDir": machine.data_dir,
        "ranges": [[one] for one in ranges],
        "routes": [{"dst": "203.0.113.0/24", "gw": "192.0.2.2"}] if IPV4 in ranges else [],
    }
    usual = {"type": "host-device", "bridge": None, "isGateway": None, "device": "uplink"}
    return machine.network(**{**usual, "ipam": ipam if ranges else None, **keys})


def still_device(machine: Machine, name: str = "uplink", mac: str = "02:00:00:00:01:77") -> None:
    """Give the host a device without a carrier that could change, with addresses and a route."""
    calm(machine, machine.host)
    machine.do(
        machine.host,
        f"ip link add {name} address {mac} type ifb",
        f"ip link set {name} up mtu 1400 alias still",
        f"ip addr add 192.0.2.1/24 dev {name}",
        f"ip addr add 2001:db8::1/64 dev {name}",
        f"ip route add 198.51.100.0/24 via 192.0.2.9 dev {name}",
    )
    machine.await_use(machine.host, name)


def rich_device(machine: Machine) -> str:
    """Give the host an uplink with RICH; return the namespace behind it."""
    outside = machine.outside()
    machine.do(machine.host, "ip link add other0 type ifb", "ip link set other0 up")
    for line in RICH:
        machine.do(machine.host, line)
    return outside


def at_home(machine: Machine, name: str = "uplink") -> bool:
    """Tell whether the host has the device under its name."""
    return machine.link(machine.host, name) is not None


def have(machine: Machine, name: str = "uplink") -> Json:
    """Return what the device has on the host, as `ip` sees it, without what its carrier changes."""
    link = machine.link(machine.host, name)
    assert link is not None, f"{name} is not at home"
    listed = [one for one in machine.ip(machine.host, "addr") if one["ifname"] == name]
    routes = []
    for family in ("-4", "-6"):
        found = machine.ip(machine.host, family, "route", "show", "table", "all")
        routes += [one for one in found if name in json.dumps(one)]
    keys = ("address", "mtu", "txqlen", "ifalias", "promiscuity", "allmulti", "master")
    return {
        **{key: link.get(key) for key in keys},
        "up": "UP" in link["flags"],
        "addresses": sorted(
            json.dumps({k: v for k, v in one.items() if "life" not in k}, sort_keys=True)
            for one in listed[0]["addr_info"]
        ),
        "routes": sorted(json.dumps(_lasting(one), sort_keys=True) for one in routes),
    }


def _lasting(route: Json) -> Json:
    hops = [_lasting(hop) for hop in route.get("nexthops", ())]
    rest = {key: value for key, value in route.items() if key not in ("flags", "nexthops")}
    flags = [flag for flag in route.get("flags", ()) if flag != "linkdown"]
    return {**rest, "flags": flags, "nexthops": hops}


def await_home(machine: Machine, before: Json, name: str = "uplink") -> None:
    """Demand that the device has what it had, once its carrier is up again."""
    seen: list[Json] = [{}]

    def is_as_before() -> bool:
        seen[0] = have(machine, name)
        return seen[0] == before

    try:
        wait_until(is_as_before, "")
    except AssertionError:
        assert seen[0] == before
        raise


def left(machine: Machine) -> Json:
    """Return the leases and records of attachments."""
    return {"leases": machine.leases(), "records": list(files_below(machine.state_dir))}


NOTHING: Json = {"leases": [], "records": []}


def forget_records(machine: Machine) -> None:
    """Remove the records of host-device, as a lost /run would."""
    for path in Path(machine.state_dir, "attachments").glob("host-device-*"):
        path.unlink()
