"""Large input takes time in proportion to its size, in every plugin, command and key."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from cni_common.serve.protocol import respond
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.result import ADDRESSES_MAX
from plugins import TYPES, load
from tests.machine import Json, Machine

pytestmark = [
    pytest.mark.without_engine("measures this process"),
    pytest.mark.timeout(120),
]
# A megabyte is to be answered within a second of CPU time. A sixteenth of that tells as well: with
# thousands of members anything quadratic takes longer. Four times the share, for a busy machine.
BYTES = 1 << 16
SECONDS = 4 / 16
COMMANDS = ("ADD", "CHECK", "DEL")
OF_GC = ("cni.dev/valid-attachments", "cni.dev/attachments")


def _v4(number: int) -> str:
    return str(ip_address("20.0.0.0") + number)


# Valid values of keys, by number; all others are texts or numbers that are distinct.
VALUES: dict[str, Callable[[int], Any]] = {
    "subnet": lambda number: f"{_v4(256 * number)}/24",
    "address": lambda number: f"{_v4(number)}/8",
    "ips": lambda number: f"{_v4(number)}/8",
    "dst": lambda number: f"{_v4(256 * number)}/24",
    "gateway": lambda _number: "20.0.0.1",
    "gw": lambda _number: "10.9.0.1",
    "unshapedSubnets": lambda number: f"{_v4(256 * number)}/24",
    "shapedSubnets": lambda number: f"{_v4(256 * number)}/24",
    "hostPort": lambda number: 1 + number,
    "containerPort": lambda number: 1 + number,
    "protocol": lambda number: ("tcp", "udp", "sctp")[number % 3],
    "minID": lambda _number: 1,
    "maxID": lambda _number: 4094,
    "sysctl": lambda _number: "1",
}
LEFT_OUT = {"rangeStart", "rangeEnd", "hostIP", "id", "table", "scope", "mtu", "advmss", "priority"}
RESULT: Json = {
    "interfaces": {
        "type": "array",
        "items": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
    "ips": {
        "type": "array",
        "items": {"type": "object", "properties": {"address": {"type": "string"}}},
    },
    "routes": {
        "type": "array",
        "items": {"type": "object", "properties": {"dst": {"type": "string"}}},
    },
    "dns": {
        "type": "object",
        "properties": {"search": {"type": "array", "items": {"type": "string"}}},
    },
}


def member(schema: Json, key: str, number: int) -> Any:
    """Return a value for a key, distinct by its number as far as the key allows."""
    match schema.get("type"):
        case "object":
            known = schema.get("properties", {}).items()
            return {name: member(one, name, number) for name, one in known if name not in LEFT_OUT}
        case "array":
            return [member(schema["items"], key, number)]
        case "boolean":
            return True
        case "integer":
            return VALUES[key](number) if key in VALUES else number
    return VALUES[key](number) if key in VALUES else f"text{number}"


def many(make: Callable[[int], Any]) -> list[Any]:
    """Return as many members as BYTES can have."""
    count = BYTES // (len(json.dumps(make(1000))) + 2)
    return [make(number) for number in range(count)]


def fillings(schema: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each place of a SCHEMA that can have many members, and many of them: good and bad."""
    key = path[-1] if path else ""
    if schema.get("type") == "array":
        yield path, many(lambda number: member(schema["items"], key, number))
        yield path, many(lambda _number: None)
        if schema["items"].get("type") == "array":  # ranges of one set
            yield path, [many(lambda number: member(schema["items"]["items"], key, number))]
    if "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        keys = many(lambda number: f"net.ipv4.conf.eth{number}.arp_notify")
        yield path, {name: member(inner, key, 0) for name in keys}
        yield path, dict.fromkeys(keys, 0.5)
    for name, inner in schema.get("properties", {}).items():
        yield from fillings(inner, (*path, name))


def schema_of(plugin: str) -> Json:
    """Return the SCHEMA of a plugin, with the keys of a result."""
    module = load(plugin)
    assert module
    properties = dict(module.SCHEMA["properties"])
    if plugin != "bridge":  # one is enough for keys that are read in one place
        properties = {key: one for key, one in properties.items() if key not in PROTOCOL_PROPERTIES}
    properties["prevResult"] = {"type": "object", "properties": RESULT}
    return {"type": "object", "properties": properties}


def placed(config: Json, path: tuple[str, ...], value: Any) -> Json:
    """Return a configuration with a value at `path`."""
    first, *rest = path
    if not rest:
        return {**config, first: value}
    inner = config.get(first)
    return {**config, first: placed(inner if isinstance(inner, dict) else {}, tuple(rest), value)}


def base(machine: Machine, plugin: str, netns: str) -> Json:
    """Return a small configuration that the plugin accepts."""
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": netns}],
        "ips": [{"address": "10.9.0.2/24", "interface": 0}],
    }
    config = machine.network(type=plugin, prevResult=previous, vlan=None)
    if plugin == "static":
        config["ipam"] = {"type": "static", "addresses": [{"address": "10.9.0.2/24"}]}
    return config


def seconds_of(machine: Machine, plugin: str, command: str, stdin: bytes, netns: str) -> float:
    """Return the CPU time of a call, which ends with success or a short CNI error."""
    environ = machine.environ(command, netns, args="IgnoreUnknown=1")
    gc.freeze()  # what hundreds of tests before have left would be looked through meanwhile
    before = time.process_time()
    try:
        with machine.make_host() as host:
            reply = respond(plugin, environ, stdin, host)
        spent = time.process_time() - before
    finally:
        gc.unfreeze()
    if reply.exit_code:
        error = json.loads(reply.stdout)
        assert error["code"]
        assert "internal error" not in error["msg"], error
        assert len(reply.stdout) < 20_000
    return spent


def slow(
    machine: Machine, plugin: str, stdin: bytes, netns: str, commands: Iterable[str] = COMMANDS
) -> list[str]:
    """Return the commands that take too long with an input."""
    spent = {one: seconds_of(machine, plugin, one, stdin, netns) for one in commands}
    return [f"{command}: {time:.2f} s" for command, time in spent.items() if time > SECONDS]


@pytest.mark.rotating(3)  # each reads a megabyte for each of its lists
@pytest.mark.parametrize("plugin", TYPES)
def test_many_members(machine: Machine, plugin: str) -> None:
    """Thousands of members of any list or object, valid or not, are taken or refused at once."""
    netns = machine.container()
    config = base(machine, plugin, netns)
    found = {}
    for number, (path, value) in enumerate(fillings(schema_of(plugin))):
        stdin = json.dumps(placed(config, path, value)).encode()
        assert len(stdin) > BYTES / 2
        commands = ("GC",) if path[0] in OF_GC else COMMANDS
        found[f"{number}: {'.'.join(path)}"] = slow(machine, plugin, stdin, netns, commands)

    assert len(found) > 5
    assert {where: late for where, late in found.items() if late} == {}


ODD: dict[str, Callable[[], bytes]] = {
    "repeated keys": lambda: b'"x":{"k":1},' * (BYTES // 12),
    "repeated objects": lambda: b'"ipam":{"k":1},' * (BYTES // 15),
    "empty objects": lambda: b'"x":[' + b"{}," * (BYTES // 3) + b"{}],",
    "unknown keys": lambda: b"".join(b'"k%d":1,' % number for number in range(BYTES // 9)),
}


@pytest.mark.parametrize("plugin", ["bridge", "host-local", "tuning"])
def test_odd_objects(machine: Machine, plugin: str) -> None:
    """Keys that are repeated or unknown cost no more than their bytes."""
    netns = machine.container()
    config = base(machine, plugin, netns)

    rest = json.dumps(config).encode()[1:]
    found = {kind: slow(machine, plugin, b"{" + odd() + rest, netns) for kind, odd in ODD.items()}

    assert {kind: late for kind, late in found.items() if late} == {}


def test_more_addresses_than_an_attachment_can_have(machine: Machine) -> None:
    """A result with thousands of addresses is refused with a number; DEL goes on without it."""
    ips = [{"address": f"{_v4(number)}/8"} for number in range(ADDRESSES_MAX + 1)]
    result = {"cniVersion": "1.1.0", "ips": ips}
    config = machine.network(type="firewall", prevResult=result)

    error = machine.refused("firewall", "ADD", config, machine.container())

    assert '1001 entries in "ips", of which 1000 are possible' in error["msg"]
    machine.ok("firewall", "DEL", config)
