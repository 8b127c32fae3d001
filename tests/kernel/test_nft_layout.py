"""Our objects in nftables: each is removed with its last user, and none before."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cni_common.kernel.netns import NetNS
from cni_common.kernel.nft_layout import Layout
from cni_common.node import masquerade
from plugins.bridge import macfilter
from plugins.firewall import isolation
from plugins.portmap import layout as ports_layout
from plugins.portmap import route_localnet
from tests.kernel.ports import port
from tests.machine import Json, Machine

# Our tables as they were before the layouts were declared, for one attachment that uses them all.
RELEASED = Path(__file__).parent / "released_tables.nft"
MAC = "02:aa:00:00:00:01"
SECOND = {"containerid": "c2", "mac": "02:aa:00:00:00:02"}
CONDITIONS = ["ip", "saddr", "!=", "192.0.2.128/25"]


class User(NamedTuple):
    """A plugin's call that uses one of our layouts."""

    plugin: str
    keys: Json
    layouts: tuple[Layout, ...]  # all that it makes, of their own tables
    others: int = 0  # chains and maps that it makes for single networks


PORTS = {
    "capabilities": {"portMappings": True},
    "runtimeConfig": {"portMappings": [port(8080), port(53, 53, "udp", hostIP="192.0.2.1")]},
}
USERS: Mapping[str, User] = {
    "masquerade": User("bridge", {"ipMasq": True}, (masquerade.LAYOUT,), 1),
    "MAC filter": User("bridge", {"macspoofchk": True}, (macfilter.LAYOUT,)),
    "ports": User("portmap", {**PORTS, "snat": False}, (ports_layout.LAYOUT,)),
    "hairpin": User("portmap", PORTS, (ports_layout.LAYOUT, route_localnet.LAYOUT), 2),
    "guard": User("portmap", {**PORTS, "backend": "iptables"}, (route_localnet.LAYOUT,)),
    "conditions": User(
        "portmap", {**PORTS, "snat": False, "conditionsV4": CONDITIONS}, (ports_layout.LAYOUT,), 5
    ),
    "isolation": User(
        "firewall",
        {"ingressPolicy": "isolated"},
        (isolation.LAYOUT, isolation.PORTS_LAYOUT),
    ),
}


EVERYTHING = ("masquerade", "MAC filter", "hairpin", "isolation")
ORDERS = list(itertools.permutations(("bridge", "hairpin", "isolation")))
# An element that is not ours in a set of ours.
ELEMENTS = {
    "masquerade": "inet pycni masquerade4 { 192.0.2.9 : accept }",
    "MAC filter": "bridge pycni guarded_ports { foreign0 }",
    "ports": "inet pycni hostports4 { tcp . 9 : 10.0.0.1 . 9 }",
    "hairpin": "inet pycni hairpin6 { 2001:db8::9 : accept }",
    "isolation": "inet pycni isolated_bridges { foreign0 }",
}
# A rule that is not ours, in a chain that is not ours, and needs one of our sets or chains.
RULES = {
    "masquerade": ("inet pycni", "ip6 saddr vmap @masquerade6"),
    "MAC filter": ("bridge pycni", "iifname @guarded_ports drop"),
    "ports": ("inet pycni", "jump hostports"),
    "hairpin": ("inet pycni", "iifname @localnet drop"),
    "guard": ("inet pycni", "iifname @localnet drop"),
    "isolation": ("inet pycni", "iifname @isolated_bridges drop"),
}


class Attachment:
    """A container on a bridge, with the calls of some users."""

    def __init__(
        self, machine: Machine, *users: str, containerid: str = "c1", mac: str = MAC
    ) -> None:
        self._machine = machine
        self._containerid = containerid
        self._netns = machine.container()
        ipam = {
            "type": "host-local",
            "dataDir": machine.data_dir,
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
        }
        keys: Json = {"name": "released", "ipam": ipam, "runtimeConfig": {"mac": mac}}
        for user in (USERS[name] for name in users if USERS[name].plugin == "bridge"):
            keys.update(user.keys)
        self._calls = {"bridge": ("bridge", machine.network(**keys, hairpinMode=True))}
        self.result = self._call("ADD", *self._calls["bridge"])
        for name in users:
            user = USERS[name]
            if user.plugin != "bridge":
                config: Json = {"name": "released", "cniVersion": "1.1.0", "type": user.plugin}
                config |= {**user.keys, "prevResult": self.result}
                self._calls[name] = user.plugin, config
                self._call("ADD", user.plugin, config)

    @property
    def port(self) -> str:
        """The interface of the host that leads to the container."""
        names = [one["name"] for one in self.result["interfaces"] if "sandbox" not in one]
        return str(next(name for name in names if name != "br0"))

    def check(self) -> None:
        """Check all that was made."""
        for plugin, config in self._calls.values():
            self._call("CHECK", plugin, {**config, "prevResult": self.result})

    def delete(self, *calls: str) -> None:
        """Run some DELs in this order, or all as a runtime does."""
        for name in calls or [*self._calls][::-1]:
            self._call("DEL", *self._calls.pop(name))

    def _call(self, command: str, plugin: str, config: Json) -> Json:
        netns, containerid = self._netns, self._containerid
        return self._machine.ok(plugin, command, config, netns, containerid=containerid)


def objects(machine: Machine) -> list[str]:
    """Return the chains, sets and maps of our tables, as `nft list ruleset` has them."""
    found = []
    for entry in machine.nft():
        for kind in ("chain", "set", "map"):
            one: dict[str, Any] = entry.get(kind, {})
            if one.get("table", "").startswith("pycni"):
                found.append(f"table {one['family']} {one['table']} {kind} {one['name']}")
    return sorted(found)


def declared(layouts: Sequence[Layout]) -> list[str]:
    """Return what layouts declare, as `objects` has it."""
    found = []
    for one in layouts:
        found += [f"{one.table} chain {chain.name}" for chain in one.chains]
        found += [f"{one.table} {'map' if s.data else 'set'} {s.name}" for s in one.sets]
    return sorted(found)


def listing(machine: Machine) -> str:
    """Return our tables as `nft` lists them."""
    names = [entry["table"] for entry in machine.nft() if "table" in entry]
    return "".join(
        machine.command(machine.host, "nft", "list", "table", one["family"], one["name"])
        for one in names
        if one["name"].startswith("pycni")
    )


def drift(machine: Machine, layout: Layout) -> list[str]:
    """Return the chains of a layout that have lost their rules, in words."""
    host = NetNS(machine.host)
    try:
        return layout.drift(host)
    finally:
        host.close()


def without_elements(text: str) -> list[str]:
    """Return the lines of a listing that two attachments share."""
    lines = re.sub(r"elements = \{.*?\}", "", text, flags=re.S).splitlines()
    return [line for line in lines if line.strip()]


# --- the tables of the release before ---


def test_same_tables_as_before(machine: Machine) -> None:
    """All objects and their order are those that a node already has; but elements count."""
    attachment = Attachment(machine, *EVERYTHING)

    shown = listing(machine)
    assert shown.count("\t\tcounter\n") == 6  # masquerading and host ports, of each IP version
    shown = re.sub(r" counter packets \d+ bytes \d+", "", shown.replace("\t\tcounter\n", ""))
    assert shown.replace(attachment.port, "PORT") == RELEASED.read_text()


def test_upgrade_in_place(machine: Machine) -> None:
    """Tables of the release before are checked, used and in the end removed."""
    first = Attachment(machine, *EVERYTHING)
    text = RELEASED.read_text().replace("PORT", first.port)
    tables = ("inet pycni", "bridge pycni", "bridge pycni_isolation")
    script = "".join(f"delete table {name}\n" for name in tables)
    machine.command(machine.host, "nft", "-f", "-", stdin=script + text)
    before = without_elements(listing(machine))

    first.check()
    second = Attachment(machine, "masquerade", "MAC filter", "isolation", **SECOND)
    second.check()
    assert without_elements(listing(machine)) == before
    first.check()
    first.delete()
    second.check()
    second.delete()

    assert objects(machine) == []
    assert listing(machine) == ""


# --- counts ---


@pytest.mark.parametrize("name", USERS)
def test_last_user_removes_what_the_layouts_declare(machine: Machine, name: str) -> None:
    """A layout declares each object that its user makes: one that it forgot would stay."""
    user = USERS[name]
    attachment = Attachment(machine, name)

    made = objects(machine)
    assert [one for one in declared(user.layouts) if one not in made] == []
    assert len(made) == sum(one.size for one in user.layouts) + user.others
    attachment.check()
    attachment.delete()

    assert listing(machine) == ""


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_users_of_one_table(machine: Machine, order: tuple[str, ...]) -> None:
    """In each order the last user of a layout removes that one, and no other."""
    calls = {"bridge": ("masquerade", "MAC filter")}
    attachment = Attachment(machine, *EVERYTHING)
    for number, name in enumerate(order, 1):
        attachment.delete(name)

        left = [USERS[user] for call in order[number:] for user in calls.get(call, (call,))]
        made = objects(machine)
        layouts = [one for user in left for one in user.layouts]
        assert [one for one in declared(layouts) if one not in made] == []
        assert len(made) == sum(one.size for one in layouts) + sum(user.others for user in left)

    assert listing(machine) == ""


def test_base_that_is_made_again_keeps_the_rules_of_an_open_chain(machine: Machine) -> None:
    """Networks with conditions have a jump in a chain of the base, which no other ADD flushes."""
    first = Attachment(machine, "conditions")
    second = Attachment(machine, "hairpin", **SECOND)

    assert "jump hostports-" in listing(machine)
    second.delete()
    assert "jump hostports-" in listing(machine)
    first.delete()

    assert listing(machine) == ""


# --- objects of others in our tables ---


@pytest.mark.parametrize("name", ELEMENTS)
def test_element_of_others_keeps_the_base(machine: Machine, name: str) -> None:
    """As long as a set has an element that is not ours, it stays with all that belongs to it."""
    foreign = ELEMENTS[name]
    table, _, _ = foreign.rpartition("{")[0].strip().rpartition(" ")
    attachment = Attachment(machine, name)
    machine.command(machine.host, "nft", f"add element {foreign}")
    base = [one for one in declared(USERS[name].layouts) if one.startswith(f"table {table} ")]

    attachment.delete()
    assert objects(machine) == base
    machine.command(machine.host, "nft", f"delete element {foreign}")
    Attachment(machine, name).delete()

    assert listing(machine) == ""


@pytest.mark.parametrize("name", RULES)
def test_rule_of_others_keeps_the_base(machine: Machine, name: str) -> None:
    """As long as a rule that is not ours uses a set or chain of ours, the base stays whole."""
    table, rule = RULES[name]
    attachment = Attachment(machine, name)
    for command in (f"add chain {table} foreign", f"add rule {table} foreign {rule}"):
        machine.command(machine.host, "nft", command)
    base = [one for one in declared(USERS[name].layouts) if one.startswith(f"table {table} ")]

    attachment.delete()
    assert objects(machine) == sorted([*base, f"table {table} chain foreign"])
    for layout in USERS[name].layouts:
        if str(layout.table) == f"table {table}":
            assert not drift(machine, layout)
    for command in (f"flush chain {table} foreign", f"delete chain {table} foreign"):
        machine.command(machine.host, "nft", command)
    Attachment(machine, name).delete()

    assert listing(machine) == ""


@pytest.mark.parametrize("name", RULES)
def test_chain_of_others_keeps_the_table(machine: Machine, name: str) -> None:
    """Where the table has a chain that is not ours, the base goes and the chain stays."""
    table, _ = RULES[name]
    attachment = Attachment(machine, name)
    machine.command(machine.host, "nft", f"add chain {table} foreign")
    machine.command(machine.host, "nft", f"add rule {table} foreign counter accept")

    attachment.delete()

    assert objects(machine) == [f"table {table} chain foreign"]
    assert "counter packets 0 bytes 0 accept" in listing(machine)
