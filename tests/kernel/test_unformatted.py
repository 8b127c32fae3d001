"""Attachments of release 0.1, and of a newer one: what is done by their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import DONE, FAILED, FOUND
from tests.kernel.points import network as ptp_network
from tests.kernel.ports import port
from tests.kernel.test_commands import age, asked, config, end, pycni, records
from tests.machine import Json, Machine, files_below

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(120),
]
_HEADER = ("plugin", "network", "containerid", "ifname", "netns", "netns_id", "pid_ns")
_CALL = ("stdin", "cni_args", "cni_path")
CHAIN = ("bridge", "tuning", "portmap", "bandwidth", "firewall")
# Facts that release 0.1 did not note.
NOT_NOTED = (
    *("mac", "mtu", "address", "route", "gateway", "forwarding", "bridge"),
    *("promisc", "allmulti", "txqlen"),
)


def old_lines(new: Json) -> list[Json]:
    """Return the lines that release 0.1 would have written for a record of format 1."""
    header = {key: new[key] for key in _HEADER if key in new}
    call = {key: new.get(key, "") for key in _CALL}
    parts: dict[str, Json] = {key: value for key, value in new.items() if isinstance(value, dict)}
    veth, masquerade = parts.get("veth", {}), parts.get("masquerade", {})
    match new["plugin"]:
        case "bridge" | "ptp":
            lines = [
                {**header, **call, "ipam": parts["ipam"]["type"], "masquerade": ""},
                {
                    "veth": veth["host_end"],
                    "veth_mac": veth["host_end_mac"],
                    "mac": veth["container_mac"],
                },
                {"masquerade": masquerade["backend"], "addresses": masquerade["addresses"]},
            ]
            if "mac-filter" in parts:
                lines.append({"mac_filter": parts["mac-filter"]["mac"]})
            if "gateway" in parts:
                gateway = parts["gateway"]
                lines.append(
                    {
                        "gateway_interface": gateway["interface"],
                        "gateways": gateway["addresses"],
                    }
                )
            return lines
        case "tuning":
            return [
                {**header, **call, "backup": parts["backup"]["path"]},
                {"sysctls": parts["sysctls"]["before"]},
                {"sysctls_after": parts["sysctls"]["after"]},
                {"device": parts["interface"]["before"]},
            ]
        case "portmap":
            ports = {k: v for k, v in parts["host-ports"].items() if k != "waiting"}
            localnet = parts.get("route-localnet", {"interface": "", "private": False})
            names = {
                "localnet": localnet["interface"],
                "localnet_private": localnet["private"],
                "udp": parts["connections"]["udp"],
            }
            return [{**header, **ports, **names}]
        case "bandwidth":
            limits, ifb = parts["limits"], parts["ifb"]
            return [
                {
                    **header,
                    **call,
                    "host_veth": limits["host_end"],
                    "host_veth_mac": limits["host_end_mac"],
                    "host_veth_index": limits["host_end_index"],
                },
                {"ingress": limits["ingress"], "egress": limits["egress"]},
                {"ifb": ifb["device"], "ifb_mac": ifb["mac"]},
            ]
        case "firewall":
            isolation = parts["isolation"]
            found = {"found": True} if isolation.pop("found") else {}
            return [
                {**header, **call, **parts["firewall"], **isolation},
                *([found] if found else []),
            ]
        case _:
            return [{**header, **parts["lease"], "gone_since": None}]


def rewritten(machine: Machine) -> list[str]:
    """Rewrite all records as release 0.1 wrote them; return their plugins."""
    plugins = []
    for path in records(machine):
        facts: Json = {}
        for line in path.read_text().splitlines():
            facts |= json.loads(line)
        assert facts["format"] == 1
        path.write_text("".join(f"{json.dumps(line)}\n" for line in old_lines(facts)))
        plugins.append(facts["plugin"])
    return sorted(plugins)


class Chain:
    """A container that has everything that the plugins can make."""

    def __init__(self, machine: Machine, backend: str) -> None:
        self.machine, self.netns = machine, machine.container()
        own: dict[str, Json] = {
            "bridge": {},
            "tuning": {"sysctl": {"net.core.somaxconn": "77"}, "mtu": 1400},
            "portmap": {
                "backend": backend,
                "capabilities": {"portMappings": True},
                "runtimeConfig": {"portMappings": [port(8080), port(8081, 53, "udp")]},
            },
            "bandwidth": {"ingressRate": 8_000_000, "egressRate": 8_000_000},
            "firewall": {"backend": backend, "ingressPolicy": "same-bridge"},
        }
        first = config(machine, isGateway=True, ipMasqBackend=backend)
        common = {"cniVersion": "1.1.0", "name": machine.name}
        tuning = {"dataDir": f"{machine.data_dir}/tuning"}
        self.configs = {
            plugin: {**common, "type": plugin, **tuning, **keys} for plugin, keys in own.items()
        }
        self.configs["bridge"] = first
        self.result: Json = {}

    def add(self) -> None:
        """Attach the container."""
        for plugin in CHAIN:
            previous = {"prevResult": self.result} if self.result else {}
            conf = {**self.configs[plugin], **previous}
            self.result = self.machine.ok(plugin, "ADD", conf, self.netns)

    def delete(self) -> None:
        """Detach it, with neither namespace nor prevResult, and other settings."""
        for plugin in reversed(CHAIN):
            conf = self.configs[plugin]
            self.machine.ok(plugin, "DEL", {k: conf[k] for k in ("cniVersion", "name", "type")})


def left(machine: Machine) -> Json:
    """Return what attachments own on the host."""
    links = machine.ip(machine.host, "link")
    rules = machine.command(machine.host, "iptables-save") if machine.nft() else ""
    return {
        "links": [one["ifname"] for one in links if one["ifname"].startswith(("veth", "bwp"))],
        "leases": machine.leases(),
        "records": records(machine),
        "mappings": [line for line in rules.splitlines() if "dnat" in line or "10." in line],
        "elements": [one for one in machine.nft() if "element" in one],
    }


def explained(machine: Machine) -> Json:
    """Return what is known of the container, without the times of records and without new parts."""
    (found,) = asked(machine, "explain", "c1")["attachments"]
    for one in found["records"]:
        del one["changed"]
    for key in ("objects", "shared"):
        found[key] = [one for one in found[key] if one["kind"] not in NOT_NOTED]
    return dict(found)


def lasting(machine: Machine) -> Json:
    """Return what a call could take away."""
    files = files_below(machine.data_dir) | files_below(machine.state_dir)
    return {"nft": machine.nft(), "files": files, "leases": machine.leases()}


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_chain(machine: Machine, backend: str) -> None:
    """DEL, audit and explain do by records of release 0.1 as they do by new ones."""
    chain = Chain(machine, backend)
    chain.add()
    before = explained(machine)

    assert rewritten(machine) == sorted((*CHAIN, "host-local"))

    assert explained(machine) == before
    assert {one["kind"] for one in before["objects"]} >= {"veth", "mac-filter", "limit", "firewall"}
    assert all(one["present"] for one in before["objects"])
    assert asked(machine, "audit", status=DONE)["findings"] == []
    chain.delete()
    assert not any(left(machine).values())


def test_ptp(machine: Machine) -> None:
    """So it is with ptp, whose container has died."""
    netns, conf = machine.container(), ptp_network(machine, ipMasq=True)
    machine.ok("ptp", "ADD", conf, netns)
    before = explained(machine)

    assert rewritten(machine) == ["host-local", "ptp"]

    assert explained(machine) == before
    machine.forget(netns)
    age(machine)
    found = asked(machine, "audit", status=FOUND)["findings"]
    assert {"masquerade", "record"} <= {one["kind"] for one in found}
    asked(machine, "reclaim", status=FOUND)
    age(machine)
    asked(machine, "reclaim", status=DONE)
    assert (records(machine), machine.leases(), machine.masqueraded()) == ([], [], {})


def test_newer(machine: Machine) -> None:
    """A record of a newer release is refused by every call, and nothing is lost or changed."""
    netns, conf = machine.container(), config(machine, isGateway=True)
    machine.ok("bridge", "ADD", conf, netns)
    for path in records(machine):
        path.write_text(
            f"{json.dumps({'format': 2})}\n{path.read_text()}".replace('"format":1', '"format":2')
        )
    age(machine)
    end(machine, netns, [])
    before = lasting(machine)

    (mine,) = (path for path in records(machine) if path.name.startswith("bridge-"))
    calls: list[tuple[str, Json]] = [
        ("DEL", conf),
        ("GC", {**conf, "cni.dev/valid-attachments": []}),
    ]
    for command, settings in calls:
        error: Any = machine.refused("bridge", command, settings)
        assert (error["code"], str(mine) in error["msg"]) == (6, True), error
    for words in (["audit"], ["reclaim"], ["leases"], ["explain", "c1"]):
        done = pycni(machine, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
        assert "has format 2, and this release reads formats up to 1; use the" in done.stderr

    assert lasting(machine) == before
    for path in map(Path, records(machine)):
        path.write_text(path.read_text().replace('"format":2', '"format":1').partition("\n")[2])
    machine.ok("bridge", "DEL", conf)
    assert records(machine) == []
