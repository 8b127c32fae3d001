"""host-local's configuration: what is read from where, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from cni_common.spec import schema
from cni_common.spec.errors import Code
from plugins.host_local import SCHEMA
from tests.unit.host_local.node import Node

IPAM = {"subnet": "10.0.0.0/24"}


def leaves(node: Mapping[str, Any], path: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Return every key of a schema that is described, with its path."""
    found = [(path, node)] if path and not path.endswith("[]") else []
    for key, child in node.get("properties", {}).items():
        found += leaves(child, f"{path}.{key}" if path else key)
    if "items" in node:
        found += leaves(node["items"], f"{path}[]")
    return found


def test_every_key_is_described() -> None:
    """Editors show the description of each key of ours."""
    ours = [
        (path, key)
        for path, key in leaves(SCHEMA)
        if path.split(".")[0] in ("ipam", "runtimeConfig", "args")
    ]

    assert len(ours) > 20
    for path, key in ours:
        assert len(key.get("description", "")) > 10, path


@pytest.mark.parametrize(
    "config",
    [
        {"ipam": {"subnet": 5}},
        {"ipam": []},
        {"ipam": {"ranges": {}}},
        {"ipam": {"ranges": [{}]}},
        {"ipam": {"ranges": [None]}},
        {"ipam": {"ranges": [[None]]}},
        {"ipam": {"ranges": [[{"subnet": ["10.0.0.0/24"]}]]}},
        {"ipam": {**IPAM, "routes": [{"dst": "0.0.0.0/0", "mtu": 1.5}]}},
        {"ipam": {**IPAM, "routes": "0.0.0.0/0"}},
        {"ipam": {**IPAM, "dataDir": True}},
        {"ipam": IPAM, "runtimeConfig": []},
        {"ipam": IPAM, "runtimeConfig": {"ips": ["10.0.0.5", None]}},
        {"ipam": IPAM, "runtimeConfig": {"ipRanges": [{}]}},
        {"ipam": IPAM, "args": {"cni": {"ips": "10.0.0.5"}}},
    ],
    ids=json.dumps,
)
def test_wrong_types(node: Node, config: dict[str, Any]) -> None:
    """A value of the wrong type is refused before anything is written."""
    output = node.call("ADD", {**node.config(), **config})

    assert output["code"] == Code.INVALID_CONFIG
    assert not node.data_dir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ipam": None}, "IPAM config missing 'ipam' key"),
        ({"ipam": {}}, "no IP ranges specified"),
        ({"ipam": {"rangeStart": "10.0.0.5"}}, "no IP ranges specified"),
        ({"ipam": {**IPAM, "dataDir": "leases"}}, 'ipam.dataDir "leases" is not an absolute path'),
        ({"ipam": {**IPAM, "dataDir": "/a\0b"}}, "contains a NUL"),
        ({"ipam": {**IPAM, "resolvConf": "resolv.conf"}}, 'ipam.resolvConf "resolv.conf" is not'),
        (
            {"ipam": {**IPAM, "readinessIndicatorFile": "ready"}},
            'ipam.readinessIndicatorFile "ready" is not',
        ),
        ({"ipam": {**IPAM, "resolvConf": "/none"}}, 'cannot read "/none": No such file'),
        ({"ipam": {**IPAM, "routes": [{}]}}, 'ipam.routes[0]: "dst" is missing'),
        ({"ipam": {**IPAM, "routes": [{"dst": "default"}]}}, "ipam.routes[0]"),
        ({"ipam": {**IPAM, "ranges": [[{"subnet": "10.0.0.0/25"}]]}}, "range set 0 overlaps"),
        ({"args": {"cni": {"ips": [""]}}}, 'args.cni.ips: cannot understand ip ""'),
        ({"runtimeConfig": {"ips": ["10.0.0"]}}, "runtimeConfig.ips: cannot understand ip"),
        ({"runtimeConfig": {"ips": ["10.0.0.5/"]}}, "runtimeConfig.ips: cannot understand ip"),
        ({"cniVersion": "0.2.0", "ipam": {**IPAM, "ranges": [[{"subnet": "10.1.0.0/24"}]]}},
         "use cniVersion 0.3.0 or newer"),
    ],
)  # fmt: skip
def test_refused(node: Node, change: dict[str, Any], message: str) -> None:
    """A configuration that makes no sense is refused by one line, before anything is written."""
    config = {**node.config("10.0.0.0/24"), **change}

    for command in ("ADD", "CHECK"):
        output = node.call(command, {**config, "cniVersion": config["cniVersion"]})
        if command == "CHECK" and ("ips" in json.dumps(change) or "/none" in message):
            continue  # only ADD asks for addresses and reads files
        if command == "CHECK" and config["cniVersion"] < "0.4.0":
            continue
        assert output["code"] == Code.INVALID_CONFIG, output
        assert message in output["msg"]
    assert not node.store.exists()


def test_order_of_range_sets(node: Node) -> None:
    """The runtime's range sets come first, then `subnet`, then `ranges`."""
    config = node.config("10.3.0.0/24", subnet="10.2.0.0/24", rangeStart="10.2.0.7")
    config["runtimeConfig"] = {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}

    assert node.add(config) == ["10.1.0.2", "10.2.0.7", "10.3.0.2"]
    assert (node.store / "last_reserved_ip.2").read_text() == "10.3.0.2"


def test_keys_of_any_case(node: Node) -> None:
    """Keys are matched without regard to case, and null means absent, as in Go."""
    config = node.config()
    config["IPAM"] = {**config.pop("ipam"), "SUBNET": "10.0.0.0/24", "gateway": None}
    config["IPAM"]["RangeStart"] = "10.0.0.9"

    assert node.add(config) == ["10.0.0.9"]


@pytest.mark.parametrize("text", ["10.0.0.5", "10.0.0.5/16", "::ffff:10.0.0.5"])
@pytest.mark.parametrize("source", ["CNI_ARGS", "args", "runtimeConfig", "all"])
def test_requested_address(node: Node, source: str, text: str) -> None:
    """An address can be asked for in three ways; the same one counts once, its prefix never."""
    config = node.config("10.0.0.0/24", "fd00::/64")
    environ = {"CNI_ARGS": f"IP={text}"} if source in ("CNI_ARGS", "all") else {}
    if source in ("args", "all"):
        config["args"] = {"cni": {"ips": [text]}}
    if source in ("runtimeConfig", "all"):
        config["runtimeConfig"] = {"ips": [text, "fd00::77"]}

    output = node.call("ADD", config, **environ)

    other = "fd00::77/64" if source in ("runtimeConfig", "all") else "fd00::2/64"
    assert [ip["address"] for ip in output["ips"]] == ["10.0.0.5/24", other]


@pytest.mark.parametrize("args", ["MAC=02:00:00:00:00:01", "IP=", "GATEWAY=10.0.0.1;IP=;MAC=x",
                                  "IgnoreUnknown=1;K8S_POD_NAME=p"])  # fmt: skip
def test_harmless_cni_args(node: Node, args: str) -> None:
    """Keys meant for the other plugins of the suite are no reason to refuse an ADD."""
    assert node.add(node.config("10.0.0.0/24"), CNI_ARGS=args) == ["10.0.0.2"]


@pytest.mark.parametrize("args", ["FOO=1", "IP", "IP=10.0.0.300", "IP=1=2", "IP=10.0.0.5;"])
def test_bad_cni_args(node: Node, args: str) -> None:
    """ADD refuses what it does not understand; CHECK and DEL do not look at it."""
    config = node.config("10.0.0.0/24")
    node.add(config)

    assert node.call("ADD", config, "c2", CNI_ARGS=args)["code"] == Code.INVALID_ENVIRONMENT
    assert node.call("CHECK", config, CNI_ARGS=args) == {}
    assert node.call("DEL", config, CNI_ARGS=args) == {}
    assert node.leases() == {}


def test_result(node: Node) -> None:
    """Routes and resolv.conf are passed on, a gateway outside of its subnet only logged."""
    path = node.root / "resolv.conf"
    path.write_text("nameserver 10.0.0.3\nsearch example.org\n")
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.4", "table": 0, "mtu": 9}]
    config = node.config(
        subnet="10.0.0.0/24", gateway="10.1.0.1", routes=routes, resolvConf=str(path), ranges=[]
    )

    output = node.call("ADD", config)

    assert output == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.0.0.1/24", "gateway": "10.1.0.1"}],
        "routes": routes,
        "dns": {"nameservers": ["10.0.0.3"], "search": ["example.org"]},
    }
    assert "gateway 10.1.0.1 is outside of subnet 10.0.0.0/24" in node.log[0]


def test_schema_refuses_nothing_of_the_reference() -> None:
    """A configuration with every key passes."""
    entry = {"subnet": "a", "rangeStart": "b", "rangeEnd": "c", "gateway": "d"}
    route = {"dst": "a", "gw": "b", "mtu": 1, "advmss": 1, "priority": 1, "table": 1, "scope": 1}
    schema.validate(
        {
            "cniVersion": "1.1.0",
            "name": "n",
            "type": "bridge",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                **entry,
                "ranges": [[entry]],
                "routes": [route],
                "resolvConf": "/etc/resolv.conf",
                "dataDir": "/d",
                "other": [],
            },
            "runtimeConfig": {"ips": ["a"], "ipRanges": [[entry]], "mac": "x"},
            "args": {"cni": {"ips": ["a"], "labels": []}, "other": 1},
        },
        SCHEMA,
    )
