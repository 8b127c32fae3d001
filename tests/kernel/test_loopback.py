"""loopback: lo up and down, its result in every version, alone and beside other plugins."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cni_common.spec.names import SUPPORTED_VERSIONS
from tests.machine import CNI_BIN, Json, Machine
from tests.waits import GENEROUS

PREVIOUS = {
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}],
    "dns": {"nameservers": ["10.1.2.53"]},
}


def config(machine: Machine, **keys: object) -> Json:
    """Return a loopback configuration."""
    return {"cniVersion": "1.1.0", "name": machine.name, "type": "loopback", **keys}


def is_up(machine: Machine, container: str) -> bool:
    """Tell whether lo is up."""
    link = machine.link(container, "lo")
    assert link is not None
    return "UP" in link["flags"]


def expected(version: str, container: str) -> Json:
    """Return the result for a plain lo."""
    if version < "0.3":
        ips: Json = {"ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}}
        return {"cniVersion": version, **ips, "dns": {}}
    old = version < "1"
    interface = {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": container}
    addresses = {"4": "127.0.0.1/8", "6": "::1/128"}
    return {
        "cniVersion": version,
        "interfaces": [interface | ({"mtu": 65536} if version == "1.1.0" else {})],
        "ips": [
            {"interface": 0, "address": address} | ({"version": family} if old else {})
            for family, address in addresses.items()
        ],
        **({"dns": {}} if old else {}),
    }


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_add_and_check(machine: Machine, version: str) -> None:
    """lo is up, the result has the layout of its version, and CHECK agrees with it."""
    container = machine.container()

    result = machine.ok("loopback", "ADD", config(machine, cniVersion=version), container)

    assert is_up(machine, container)
    assert result == expected(version, container)
    if version >= "0.4":
        previous = config(machine, cniVersion=version, prevResult=result)
        machine.ok("loopback", "CHECK", previous, container)


@pytest.mark.parametrize("version", ["", "1.0.0"])
def test_result_is_that_of_the_reference(machine: Machine, version: str) -> None:
    """For the versions that the Go plugin gets right, ours prints the same."""
    stdin = config(machine, cniVersion=version)
    container = machine.container()

    assert machine.ok("loopback", "ADD", stdin, container) == machine.reference(
        "loopback", "ADD", stdin, container
    )


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_prev_result_is_passed_through(machine: Machine, version: str) -> None:
    """A chained loopback prints the result that it was given."""
    container = machine.container()
    previous = json.loads(json.dumps(PREVIOUS)) | {"cniVersion": version}
    if version == "0.4.0":
        previous["ips"][0]["version"] = "4"

    result = machine.ok(
        "loopback", "ADD", config(machine, cniVersion=version, prevResult=previous), container
    )

    assert result == previous
    assert is_up(machine, container)


def test_interface_name_does_not_matter(machine: Machine) -> None:
    """CNI_IFNAME is ignored, even where there is an interface of that name."""
    container = machine.container()
    machine.do(container, "ip link add eth0 type veth peer name other")

    machine.ok("loopback", "ADD", config(machine), container, ifname="eth0")

    assert is_up(machine, container)
    link = machine.link(container, "eth0")
    assert link is not None
    assert "UP" not in link["flags"]


def test_add_twice(machine: Machine) -> None:
    """lo that is up already is as good."""
    container = machine.container()

    results = [machine.ok("loopback", "ADD", config(machine), container) for _ in range(2)]

    assert results[0] == results[1]


@pytest.mark.parametrize("up", [False, True])
def test_address_that_is_no_loopback_one(machine: Machine, up: bool) -> None:
    """An address of another kind on lo is refused, and lo is as it was."""
    container = machine.container()
    machine.do(container, "ip addr add 10.1.1.1/32 dev lo")
    if up:
        machine.do(container, "ip link set lo up")

    error = machine.refused("loopback", "ADD", config(machine), container)

    assert "10.1.1.1/32" in error["msg"]
    assert is_up(machine, container) == up


def test_ipv6_switched_off(machine: Machine) -> None:
    """Without IPv6 lo has its IPv4 address."""
    container = machine.container()
    machine.command(
        container, "sh", "-c", "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6 >/dev/null"
    )

    result = machine.ok("loopback", "ADD", config(machine), container)

    assert [ip["address"] for ip in result["ips"]] == ["127.0.0.1/8"]


@pytest.mark.both_edges
def test_del(machine: Machine) -> None:
    """DEL sets lo down; it may be repeated."""
    container = machine.container()
    machine.ok("loopback", "ADD", config(machine), container)

    for _ in range(2):
        machine.ok("loopback", "DEL", config(machine), container)
        assert not is_up(machine, container)


@pytest.mark.parametrize("netns", ["", "/nowhere", "plain"])
def test_del_without_namespace(machine: Machine, tmp_path: Path, netns: str) -> None:
    """DEL succeeds when the namespace is gone or its path is a plain file."""
    (tmp_path / "plain").touch()
    path = str(tmp_path / "plain") if netns == "plain" else netns

    machine.ok("loopback", "DEL", config(machine, prevResult={"ips": "broken"}), path)


def test_add_without_namespace(machine: Machine) -> None:
    """ADD needs a namespace."""
    assert machine.refused("loopback", "ADD", config(machine), "/nowhere")["code"] == 8


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("ip link set lo down", "is down"),
        ("ip addr del 127.0.0.1/8 dev lo", "address 127.0.0.1/8 of lo"),
        ("ip addr del ::1/128 dev lo", "address ::1/128 of lo"),
    ],
)
def test_drift(machine: Machine, line: str, named: str) -> None:
    """CHECK names what has changed."""
    container = machine.container()
    result = machine.ok("loopback", "ADD", config(machine), container)
    machine.do(container, line)

    error = machine.refused("loopback", "CHECK", config(machine, prevResult=result), container)

    assert named in error["msg"]


@pytest.mark.both_edges
def test_check_of_a_chained_loopback(machine: Machine) -> None:
    """Addresses of other interfaces in prevResult are not looked for on lo."""
    container = machine.container()
    previous = {"cniVersion": "1.1.0", **PREVIOUS}
    machine.ok("loopback", "ADD", config(machine, prevResult=previous), container)

    machine.ok("loopback", "CHECK", config(machine, prevResult=previous), container)


@pytest.mark.both_edges
def test_gc_and_status(machine: Machine) -> None:
    """There is nothing to collect, and nothing that could fail."""
    for command in ("GC", "STATUS"):
        reply = machine.invoke("loopback", command, config(machine))

        assert (reply.exit_code, reply.stdout) == (0, b"")


def test_beside_bridge(machine: Machine) -> None:
    """Runtimes start loopback and bridge for one namespace at the same time."""
    for number in range(3):
        container, containerid = machine.container(), f"c{number}"
        bridge = machine.network()
        processes = []
        for plugin, stdin, ifname in (
            ("loopback", config(machine), "lo"),
            ("bridge", bridge, "eth0"),
        ):
            process = subprocess.Popen(
                ["nsenter", f"--net={machine.host}", str(CNI_BIN / plugin)],
                env=machine.environ("ADD", container, containerid=containerid, ifname=ifname),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(stdin))
            process.stdin.close()
            processes.append(process)

        outputs = []
        for process in processes:
            assert process.stdout is not None
            outputs.append(json.loads(process.stdout.read()))
            process.stdout.close()
            assert process.wait(timeout=GENEROUS) == 0, outputs

        assert outputs[0]["ips"][0]["address"] == "127.0.0.1/8"
        assert is_up(machine, container)
        assert machine.addresses(container, "eth0") == [outputs[1]["ips"][0]["address"]]
        assert os.path.exists(container)
