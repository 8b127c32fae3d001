"""A container's interfaces net1, net2, …, each with a plugin chained behind that which made it."""

from __future__ import annotations

from typing import Any

from tests.machine import Json, Machine


def network(machine: Machine, number: int, *subnets: str, **keys: Any) -> Json:
    """Return a bridge with a default route; IPv4 10.7.N.0/24 unless told otherwise."""
    used = subnets or (f"10.7.{number}.0/24",)
    addresses = [_address(subnet) for subnet in used]
    defaults = dict.fromkeys("::/0" if ":" in subnet else "0.0.0.0/0" for subnet in used)
    routes = [{"dst": dst} for dst in defaults]
    usual = {
        "name": f"{machine.name}-{number}",
        "bridge": f"br{number}",
        "ipam": {"type": "static", "addresses": addresses, "routes": routes},
    }
    return machine.network(**{**usual, **keys})


def _address(subnet: str) -> Json:
    base, _, bits = subnet.partition("/")
    stem = base if ":" in base else base.rpartition(".")[0] + "."
    return {"address": f"{stem}2/{bits}", "gateway": f"{stem}1"}


class Net:
    """An interface of a container, made by one plugin, and another one behind it."""

    def __init__(
        self, machine: Machine, container: str, number: int = 1, *subnets: str, **keys: Any
    ) -> None:
        """`keys` are those of the chained plugin, with its type; `before`: of the one before."""
        self.machine, self.container, self.ifname = machine, container, f"net{number}"
        self.before: Json = keys.pop("before", None) or network(machine, number, *subnets)
        common = {key: self.before[key] for key in ("cniVersion", "name")}
        self.config: Json = {**common, **keys}
        self.result = self.call("ADD", self.before)

    def call(self, command: str, config: Json, **keys: Any) -> Json:
        """Run a command of a plugin for this interface, which must succeed."""
        netns = keys.pop("netns", self.container)
        plugin = config["type"]
        return self.machine.ok(plugin, command, config, netns, ifname=self.ifname, **keys)

    @property
    def chained(self) -> Json:
        """The configuration of the chained plugin with prevResult."""
        return {**self.config, "prevResult": self.result}

    def add(self, **keys: Any) -> Json:
        """Have the chained plugin do its ADD; return the result."""
        return self.call("ADD", self.chained, **keys)

    def delete(self, **keys: Any) -> None:
        """Have the chained plugin do its DEL, as libcni calls it."""
        self.call("DEL", self.chained, **keys)

    def check(self) -> None:
        """Have both plugins do their CHECK."""
        self.call("CHECK", {**self.before, "prevResult": self.result})
        self.call("CHECK", self.chained)

    def drift(self) -> str:
        """Return what CHECK of the chained plugin complains about."""
        plugin = self.config["type"]
        error = self.machine.refused(
            plugin, "CHECK", self.chained, self.container, ifname=self.ifname
        )
        return str(error["msg"])


def rules(machine: Machine, container: str) -> list[str]:
    """Return the rules for one source, as source and table."""
    found = [*machine.ip(container, "rule"), *machine.ip(container, "-6", "rule")]
    return [f"{one['src']}:{one['table']}" for one in found if one["src"] != "all"]


def routes(machine: Machine, container: str, table: str = "main") -> list[str]:
    """Return the routes of a table in words, those of links alone left out."""
    words = ("route", "show", "table", table)
    lines = [
        line
        for version in ("-4", "-6")  # without a route in it there may be no such table
        for line in machine.try_command(container, "ip", version, *words).stdout.splitlines()
    ]
    return sorted(line.strip() for line in lines if "fe80::" not in line and line[:2] != "ff")
