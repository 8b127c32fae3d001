"""The same DHCP server asked by the Go plugin and by ours, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dhcp import Daemon, Process, daemon_on, dnsmasq, leases_of, running
from tests.golden import Golden
from tests.machine import REFERENCE_BIN, Json, Machine, machine_at
from tests.waits import wait_until

MAC = "02:00:00:00:00:01"
RANGE = "--dhcp-range=192.0.2.50,192.0.2.50,255.255.255.0,1h"
ROUTER = "--dhcp-option=3,192.0.2.2"
CASES: dict[str, tuple[Json, tuple[str, ...], tuple[str, ...]]] = {
    # The IPAM section, the server's options, and what of the result only ours has.
    "router": ({}, (ROUTER,), ()),
    "no router": ({}, ("--dhcp-option=3",), ()),
    "priority": ({"priority": 50}, (ROUTER,), ()),
    "static routes": (
        {"request": [{"option": "33"}]},
        (ROUTER, "--dhcp-option=33,10.0.0.0,192.0.2.3,172.16.0.0,192.0.2.4"),
        (),
    ),
    "classless routes": (
        {"request": [{"option": "121"}]},
        (ROUTER, "--dhcp-option=121,10.1.0.0/16,192.0.2.3,192.0.2.9/32,0.0.0.0"),
        (),
    ),
    "client identifier": (
        {"provide": [{"option": "dhcp-client-identifier", "value": "mine"}]},
        (ROUTER,),
        (),
    ),
    "name": (
        {"provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}]},
        (ROUTER,),
        (),
    ),
    "DNS and MTU": (
        {},
        (ROUTER, "--dhcp-option=6,192.0.2.5", "--dhcp-option=15,a.b", "--dhcp-option=26,1400"),
        ("dns", "mtu"),
    ),
}


def with_interface(machine: Machine) -> str:
    """Return a container with an `eth0` of the MAC."""
    container = machine.container()
    words = f"ip link add link uplink name eth0 netns {container} address {MAC} type macvlan"
    machine.command(machine.host, *words.split(), "mode", "bridge")
    return container


def asked(machine: Machine, tmp: Path, options: tuple[str, ...], call: Callable[..., Json]) -> Json:
    """Return the result of an ADD, and what the server knows of the client."""
    with running(dnsmasq(machine.outside(), tmp, RANGE, *options)):
        container = with_interface(machine)
        result = call("ADD", container)
        known = leases_of(tmp)
        call("CHECK", container, prevResult=result)
        call("DEL", container)
    return {"result": result, "leases": known}


@pytest.mark.parametrize("name", CASES)
def test_same_result(machine: Machine, golden: Golden, tmp_path: Path, name: str) -> None:
    """Address, gateway, routes and client identifier are those of the Go plugin."""
    ipam, options, ours_alone = CASES[name]
    args = "IgnoreUnknown=1;K8S_POD_NAME=pod"

    def config(machine: Machine, path: str, **keys: Any) -> Json:
        section = {"type": "dhcp", "daemonSocketPath": path, **ipam}
        return machine.network(name="net", type="macvlan", ipam=section, **keys)

    def theirs() -> Json:
        directory = tmp_path / "theirs"
        directory.mkdir()
        with machine_at(directory, "net") as other:
            path = f"{directory}/dhcp.sock"
            words = (str(REFERENCE_BIN / "dhcp"), "daemon", "-socketpath", path)
            with running(Process(other.host, *words)):
                wait_until(lambda: Path(path).exists(), "the reference's daemon does not start")

                def call(command: str, container: str, **keys: Any) -> Json:
                    told = config(other, path, **keys)
                    return other.reference("dhcp", command, told, container, args=args)

                return asked(other, directory, options, call)

    expected = golden.answer(name, theirs)
    with daemon_on(machine, tmp_path) as daemon:

        def call(command: str, container: str, **keys: Any) -> Json:
            told = config(machine, daemon.socket, **keys)
            return machine.ok("dhcp", command, told, container, args=args)

        found = asked(machine, tmp_path, options, call)

    result = found["result"]
    if "dns" in ours_alone:
        assert result.pop("dns") == {"nameservers": ["192.0.2.5"], "domain": "a.b"}
    if "mtu" in ours_alone:
        assert [route.pop("mtu") for route in result["routes"]] == [1400]
    assert found == {**expected, "result": without_empty(expected["result"])}


def without_empty(result: Json) -> Json:
    """Return a result without keys that Go prints for nothing."""
    return {key: value for key, value in result.items() if value}


def test_a_daemon_of_the_reference(machine: Machine, tmp_path: Path) -> None:
    """Neither plugin gets on with the other's daemon, and ours says why."""
    path = f"{tmp_path}/dhcp.sock"
    words = (str(REFERENCE_BIN / "dhcp"), "daemon", "-socketpath", path)
    config = machine.network(ipam={"type": "dhcp", "daemonSocketPath": path})
    with running(Process(machine.host, *words)):
        wait_until(lambda: Path(path).exists(), "the reference's daemon does not start")
        error = machine.refused("dhcp", "STATUS", config)
    Path(path).unlink()
    daemon = Daemon(machine, tmp_path)
    with running(daemon.start()):
        container = machine.container()
        done = machine.execute(REFERENCE_BIN / "dhcp", "ADD", config, container)
        daemon.process.await_line("a plugin that is not ours calls")

    assert "another program is there, maybe the reference's daemon" in error["msg"]
    assert done.returncode == 1
    assert "error dialing DHCP daemon" in done.stdout
