"""static: which source of addresses counts, what is refused, and what CHECK looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_common.node.host import Host
from cni_common.serve.protocol import execute, respond
from plugins import load
from tests.machine import Json

TWO = [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}, {"address": "fd05::5/64"}]


def call(tmp_path: Path, command: str, ipam: Any, cni_args: str = "", **keys: Any) -> Json:
    """Return what the plugin prints, {} where that is nothing."""
    config = {"cniVersion": "1.1.0", "name": "net", "type": "static", "ipam": ipam, **keys}
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/no/such/netns",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/no/such/directory",
        "CNI_ARGS": cni_args,
    }
    with Host(
        load, "/no/such/file", lambda _: None, execute=execute, state_dir=str(tmp_path)
    ) as host:
        reply = respond("static", environ, json.dumps(config).encode(), host)
    assert reply.exit_code == int(b'"code"' in reply.stdout)
    printed: Json = json.loads(reply.stdout or b"{}")
    return printed


def pairs(result: Json) -> list[tuple[str, str]]:
    """Return each address and its gateway."""
    return [(ip["address"], ip.get("gateway", "")) for ip in result.get("ips", ())]


def test_sources(tmp_path: Path) -> None:
    """CNI_ARGS adds to the configuration, args.cni.ips replaces both, runtimeConfig.ips all."""
    ipam = {"type": "static", "addresses": TWO}
    args = "IP=10.6.0.6/24;IgnoreUnknown=1;K8S_POD_NAME=a"
    by_args = {"args": {"cni": {"ips": ["10.7.0.7/24"]}}}
    by_runtime = {"runtimeConfig": {"ips": ["10.8.0.8/24", "fd08::8/64"]}}
    own = [("10.5.0.5/24", "10.5.0.1"), ("fd05::5/64", "")]

    assert pairs(call(tmp_path, "ADD", ipam)) == own
    assert pairs(call(tmp_path, "ADD", ipam, args)) == [*own, ("10.6.0.6/24", "")]
    assert pairs(call(tmp_path, "ADD", ipam, args, **by_args)) == [("10.7.0.7/24", "")]
    assert pairs(call(tmp_path, "ADD", ipam, args, **by_args, **by_runtime)) == [
        ("10.8.0.8/24", ""),
        ("fd08::8/64", ""),
    ]
    assert call(tmp_path, "ADD", {}) == {"cniVersion": "1.1.0"}


def test_gateway_of_cni_args(tmp_path: Path) -> None:
    """GATEWAY goes to every address in whose subnet it lies and that has none of its own."""
    ipam = {"type": "static", "addresses": TWO}
    args = "GATEWAY=10.5.0.9,fd05::9,10.6.0.9,192.0.2.9;IP=10.6.0.6/24"

    added = call(tmp_path, "ADD", ipam, args)

    assert pairs(added) == [
        ("10.5.0.5/24", "10.5.0.1"),
        ("fd05::5/64", "fd05::9"),
        ("10.6.0.6/24", "10.6.0.9"),
    ]


@pytest.mark.parametrize(
    ("ipam", "args", "code", "says"),
    [
        ({"addresses": [{"address": "10.5.0.5"}]}, "", 7, "ipam.addresses[0].address"),
        ({"addresses": [{}]}, "", 7, "ipam.addresses[0].address"),
        ({"addresses": [{"address": "10.5.0.5/33"}]}, "", 7, "ipam.addresses[0].address"),
        ({"addresses": [{"address": "10.5.0.5/24", "gateway": "x"}]}, "", 7, "[0].gateway"),
        ({"addresses": [{"address": "10.5.0.5/24", "gateway": "fd05::1"}]}, "", 7, "fd05::1"),
        ({"addresses": TWO}, "IP=10.5.0.5/24", 7, "more than once"),
        ({"addresses": "10.5.0.5/24"}, "", 7, "ipam.addresses"),
        ({}, "IP=10.5.0.5", 4, "CNI_ARGS: IP"),
        ({}, "IP=10.5.0.5/24,", 4, "CNI_ARGS: IP"),
        ({}, "GATEWAY=10.5", 4, "CNI_ARGS: GATEWAY"),
        ({}, "FOO=1", 4, "FOO"),
        ({"routes": [{}]}, "", 7, "ipam.routes[0]"),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "fd05::1"}]}, "", 7, "ipam.routes"),
        (None, "", 7, "'ipam'"),
    ],
)
def test_refused(tmp_path: Path, ipam: Any, args: str, code: int, says: str) -> None:
    """An impossible address is named, and DEL and GC succeed with it."""
    error = call(tmp_path, "ADD", ipam, args)

    assert error["code"] == code
    assert says in error["msg"]
    assert call(tmp_path, "DEL", ipam, args) == {}
    assert call(tmp_path, "GC", ipam) == {}


def test_check(tmp_path: Path) -> None:
    """Each address must be in prevResult, with its gateway where one is named."""
    ipam = {"type": "static", "addresses": TWO}
    result = call(tmp_path, "ADD", ipam)
    filled = json.loads(json.dumps(result))
    filled["ips"][1]["gateway"] = "fd05::1"  # as an interface plugin does
    other = json.loads(json.dumps(result))
    other["ips"][0]["gateway"] = "10.5.0.2"
    fewer = {**result, "ips": result["ips"][1:]}

    assert call(tmp_path, "CHECK", ipam, prevResult=result) == {}
    assert call(tmp_path, "CHECK", ipam, prevResult=filled) == {}
    assert "10.5.0.5/24" in call(tmp_path, "CHECK", ipam, prevResult=fewer)["msg"]
    assert "10.5.0.2" in call(tmp_path, "CHECK", ipam, prevResult=other)["msg"]
    assert call(tmp_path, "CHECK", ipam)["code"] == 7


def test_status(tmp_path: Path) -> None:
    """STATUS judges the configuration; that the runtime names the addresses later is healthy."""
    assert call(tmp_path, "STATUS", {"type": "static"}) == {}
    assert call(tmp_path, "STATUS", {"addresses": [{"address": "x"}]})["code"] == 7


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions(tmp_path: Path, version: str) -> None:
    """Their results hold one address of each family, and a second one is refused."""
    ipam = {"type": "static", "addresses": TWO}

    added = call(tmp_path, "ADD", ipam, cniVersion=version)
    refused = call(tmp_path, "ADD", ipam, "IP=10.6.0.6/24", cniVersion=version)

    assert (added["ip4"]["ip"], added["ip6"]["ip"]) == ("10.5.0.5/24", "fd05::5/64")
    assert "does not support more than 1 address per family" in refused["msg"]
