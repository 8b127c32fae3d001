"""The reason for which an ADD fails persists: DEL succeeds, or something of the container is there.

Otherwise a runtime could never remove the container. Operations on records are left to the tests of
these.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.faults.inprocess import Fault, faulty
from tests.kernel import limits, points
from tests.kernel.ports import Node, port
from tests.kernel.sweeps import rehearsal
from tests.kernel.walls import Walls
from tests.machine import Json, Machine, error_of, files_below
from tests.scope import ALL, one_of_each
from tests.snapshot import is_going

pytestmark = [
    pytest.mark.without_engine(reason="fails in this process"),
    pytest.mark.timeout(900 if ALL else 300),
]

ERRORS = (errno.EPERM, errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EOPNOTSUPP)
ALL_OF_BRIDGE = {"ipMasq": True, "macspoofchk": True}
STATIC = {"type": "static", "addresses": [{"address": "10.9.0.5/24"}]}


class Call(NamedTuple):
    """An ADD that can be made again and again, each time with its DEL."""

    plugin: str
    config: Json
    netns: str


def bridge(machine: Machine, **keys: Any) -> Call:
    """Return an ADD of bridge."""
    return Call("bridge", machine.network(**keys), machine.container())


def ptp(machine: Machine, **keys: Any) -> Call:
    """Return an ADD of ptp."""
    return Call("ptp", points.network(machine, **keys), machine.container())


def on_uplink(machine: Machine, plugin: str, **keys: Any) -> Call:
    """Return an ADD of a plugin whose interface is on the uplink, so that its DEL needs none."""
    machine.outside()
    return in_container(machine, plugin, master="uplink", **keys)


def in_container(machine: Machine, plugin: str, **keys: Any) -> Call:
    """Return an ADD of a plugin whose interface is in the container alone."""
    usual: Json = {"type": plugin, "bridge": None, "isGateway": None}
    return Call(plugin, machine.network(**usual, **keys), machine.container())


def portmap(machine: Machine, **keys: Any) -> Call:
    """Return an ADD of portmap."""
    node = Node(machine)
    netns = node.attach()
    return Call("portmap", node.config(port(80), port(81, protocol="udp"), **keys), netns)


def firewall(machine: Machine, **keys: Any) -> Call:
    """Return an ADD of firewall."""
    walls = Walls(machine)
    netns = walls.attach()
    return Call("firewall", walls.config(**keys), netns)


def bandwidth(machine: Machine) -> Call:
    """Return an ADD of bandwidth."""
    netns = limits.container(machine)
    return Call("bandwidth", limits.config(machine, **limits.BOTH), netns)


def behind(machine: Machine, plugin: str, **keys: Any) -> Call:
    """Return an ADD of a plugin for an interface that another one has made."""
    netns = limits.container(machine)
    return Call(plugin, limits.config(machine, type=plugin, **keys), netns)


def tuning(machine: Machine) -> Call:
    """Return an ADD of tuning."""
    netns = limits.container(machine)
    keys: Json = {
        "type": "tuning",
        "dataDir": f"{machine.data_dir}-2",
        "mtu": 1400,
        "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"},
    }
    return Call("tuning", limits.config(machine, **keys), netns)


def host_device(machine: Machine) -> Call:
    """Return an ADD of host-device."""
    machine.do(machine.host, "ip link add nic0 type veth peer name nic9", "ip link set nic0 up")
    keys: Json = {"type": "host-device", "device": "nic0", "ipam": STATIC}
    return Call("host-device", machine.network(**keys), machine.container())


CASES: Mapping[str, Callable[[Machine], Call]] = {
    "bridge": lambda machine: bridge(machine, **ALL_OF_BRIDGE),
    "bridge-iptables": lambda machine: bridge(machine, ipMasq=True, ipMasqBackend="iptables"),
    "bridge-static": lambda machine: bridge(machine, ipam=STATIC),
    "ptp": lambda machine: ptp(machine, ipMasq=True),
    "macvlan": lambda machine: on_uplink(machine, "macvlan"),
    "ipvlan": lambda machine: on_uplink(machine, "ipvlan"),
    "portmap": portmap,
    "portmap-iptables": lambda machine: portmap(machine, backend="iptables"),
    "firewall": firewall,
    "firewall-isolated": lambda machine: firewall(
        machine, backend="nftables", ingressPolicy="isolated"
    ),
    "firewall-iptables": lambda machine: firewall(
        machine, backend="iptables", ingressPolicy="isolated"
    ),
    "bandwidth": bandwidth,
    "sbr": lambda machine: behind(machine, "sbr"),
    "vrf": lambda machine: behind(machine, "vrf", vrfname="blue"),
    "tuning": tuning,
    "host-device": host_device,
    "tap": lambda machine: in_container(machine, "tap", ipam=STATIC, mtu=1400),
    "vlan": lambda machine: on_uplink(machine, "vlan", vlanId=5),
    "dummy": lambda machine: in_container(machine, "dummy", ipam=STATIC),
    "loopback": lambda machine: in_container(machine, "loopback", ipam=None),
}
FULL_KERNEL = ("ipvlan", "vlan", "dummy", "vrf")  # kinds of interfaces that not each kernel has


def objects(machine: Machine, netns: str) -> Json:
    """Return everything that an attachment can have, its records not."""
    routes = machine.ip(netns, "-4", "route", "show", "table", "all")
    links = [link["ifname"] for link in machine.ip(netns, "link")]
    return {
        "rules": machine.ip(netns, "rule"),
        "routes": [one for one in routes if not is_going(one, links)],
        "links": links,
        **{key: value for key, value in limits.left(machine).items() if key != "records"},
        "ports": machine.ports(),
        "nft": [entry for entry in machine.nft() if "pycni" in str(entry) or "CNI-" in str(entry)],
        "leases": machine.leases(),
    }


def recorded(machine: Machine) -> Json:
    """Return the attachment records; shared files beside them may stay."""
    return files_below(f"{machine.state_dir}/attachments")


def is_no_record(what: str) -> bool:
    """Tell whether an operation is about another thing than an attachment record."""
    return not what.endswith(" record")


def operations(machine: Machine, call: Call) -> list[str]:
    """Return the kinds of operations of an ADD, each once; it is made, and taken back."""
    fault = Fault(looks=True, only=is_no_record)
    rehearsal(machine, call.plugin, "ADD", call.config, call.netns)(fault)
    return list(dict.fromkeys(map(kind_of, fault.done)))


def kind_of(what: str) -> str:
    """Return what fails together with an operation: all looks at nftables, or all its changes.

    Rights on nftables, or a kernel without, are no matter of one chain. Any other operation is a
    kind of its own.
    """
    if not what.startswith("nftables: "):
        return what
    return "look" if what.startswith(("nftables: list", "nftables: look up")) else "change"


def cases() -> Iterator[Any]:
    """Yield each case with each error; for a sample with one, another one each day."""
    for name in CASES:
        # A kernel without nftables has no iptables-nft, which would really be called here.
        codes = [code for code in ERRORS if code != errno.EOPNOTSUPP or "iptables" not in name]
        for code in codes if ALL else [codes[at] for at in one_of_each([name] * len(codes))]:
            if name in FULL_KERNEL and not ALL:
                continue  # an emulated machine takes most of a minute for each
            marks = [pytest.mark.full_kernel] if name in FULL_KERNEL else []
            yield pytest.param(name, code, id=f"{name}-{errno.errorcode[code]}", marks=marks)


@pytest.mark.rotating(3)
@pytest.mark.parametrize(("name", "code"), list(cases()))
def test_del_is_not_kept_by_what_an_add_failed_for(machine: Machine, name: str, code: int) -> None:
    """Each operation of an ADD fails, and still in the DEL: it succeeds, or has work to do."""
    call = CASES[name](machine)
    machine.ok(call.plugin, "ADD", call.config, call.netns)
    machine.ok(call.plugin, "DEL", call.config, call.netns)  # what all share is there from now on
    before, records = objects(machine, call.netns), recorded(machine)
    deletion = {key: value for key, value in call.config.items() if key != "prevResult"}

    for what in operations(machine, call):
        replies = []
        for command, config in (("ADD", call.config), ("DEL", deletion)):
            fault = Fault(1, lasting=True, code=code, looks=True, only=partial(is_of, what))
            with faulty(machine, fault) as host:
                reply = machine.invoke(call.plugin, command, config, call.netns, host=host)
            replies.append(reply)
        if replies[-1].exit_code:
            error = error_of(replies[-1].stdout)
            assert objects(machine, call.netns) != before or names_a_file(machine, error), (
                what,
                error,
            )
            machine.ok(call.plugin, "DEL", deletion, call.netns)
        assert objects(machine, call.netns) == before, what
        assert recorded(machine) == records, what


def is_of(kind: str, what: str) -> bool:
    """Tell whether an operation is of a kind."""
    return kind_of(what) == kind


def names_a_file(machine: Machine, error: Json) -> bool:
    """Tell whether an error names a file or directory of leases that is there."""
    paths = re.findall(r"'(/[^']*)'", error["msg"])
    return any(one.startswith(machine.data_dir) and os.path.exists(one) for one in paths)
