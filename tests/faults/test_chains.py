"""Chains of the other plugins: killed, on a full disk, after a reboot. A sample of all calls."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import dhcp
from tests.e2e.node import Done
from tests.faults.inject import Injection
from tests.faults.power import reboot
from tests.faults.rig import Rig, attachments, configuration, sweep
from tests.faults.test_errors import assert_told
from tests.machine import Json
from tests.scope import ALL

MOST = 4  # calls of each sweep, in make test
NAMES = ("c1", "new", "living", "dead")  # each has a port and a fixed address of its own
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
TUNING: Json = {
    "type": "tuning",
    "dataDir": "/var/lib/cni/tuning",
    "mtu": 1400,
    "sysctl": {"net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_notify": "1"},
}
BANDWIDTH: Json = {"type": "bandwidth", "ingressRate": 10**7, "egressRate": 10**7}
FIREWALL: Json = {"type": "firewall", "backend": "nftables", "ingressPolicy": "isolated"}
SBR: Json = {"type": "sbr", "addSourceHints": True}
BRIDGE = configuration("ipv4")
PTP: Json = {key: BRIDGE[key] for key in ("ipMasq", "ipam")} | {"type": "ptp"}
MACVLAN: Json = {"type": "macvlan", "master": "up0", "ipam": BRIDGE["ipam"]}
HOST_DEVICE: Json = {"type": "host-device", "device": "", "ipam": BRIDGE["ipam"]}
TAP: Json = {"type": "tap", "owner": 5, "mtu": 1400, "ipam": BRIDGE["ipam"]}
DHCP: Json = {"type": "macvlan", "master": "up0", "ipam": {"type": "dhcp"}}
STATIC: Json = BRIDGE | {"isGateway": False, "ipam": {"type": "static"}}

# What the chain consists of, and which of them is hit.
CHAINS: dict[str, tuple[Sequence[Json], int]] = {
    "bridge-PORTMAP": ((BRIDGE, PORTMAP), 1),
    "PTP-portmap": ((PTP, PORTMAP), 0),
    "ptp-PORTMAP": ((PTP, PORTMAP), 1),
    "bridge-portmap-TUNING": ((BRIDGE, PORTMAP, TUNING), 2),
    "MACVLAN": ((MACVLAN,), 0),
    "MACVLAN-DHCP": ((DHCP,), 0),
    "HOST-DEVICE": ((HOST_DEVICE,), 0),
    "TAP": ((TAP,), 0),
    "BRIDGE-static": ((STATIC,), 0),
    "bridge-BANDWIDTH": ((BRIDGE, BANDWIDTH), 1),
    "bridge-FIREWALL": ((BRIDGE, FIREWALL), 1),
    "bridge-SBR": ((BRIDGE, SBR), 1),
}
# Likewise, on kernels that have these kinds of interfaces: see tests/vm.
FULL_KERNEL_CHAINS: dict[str, tuple[Sequence[Json], int]] = {
    "DUMMY": (({"type": "dummy", "ipam": BRIDGE["ipam"]},), 0),
    "IPVLAN": ((MACVLAN | {"type": "ipvlan"},), 0),
    "VLAN": ((MACVLAN | {"type": "vlan", "vlanId": 5},), 0),
}


class Chain:
    """A network of several plugins, one of which is hit."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig = rig
        plugins, self._hit = (CHAINS | FULL_KERNEL_CHAINS)[name]
        common = {"cniVersion": "1.1.0", "name": "net1"}
        self._plugins = [{**common, **plugin} for plugin in plugins]
        if "device" in plugins[0]:
            rig.kept = tuple(map(_device, NAMES))
        if "master" in plugins[0] and not self.uses_dhcp:
            master = plugins[0]["master"]
            rig.node.command("ip", "link", "add", master, "type", "bridge")
            rig.node.command("ip", "link", "set", master, "up")

    @property
    def uses_dhcp(self) -> bool:
        """Tell whether the network has a DHCP server."""
        return bool(self._plugins[0].get("ipam", {}).get("type") == "dhcp")

    def call(self, command: str, name: str, injection: Injection | None = None) -> Done:
        """Run a command of each plugin, as far as all goes well; return what the last one said."""
        order = range(len(self._plugins))
        if command == "ADD" and "device" in self._plugins[0]:
            self._make_device(name)
        keys: Json = {} if name else attachments(*(one for one in NAMES if self._exists(one)))
        for number in reversed(order) if command == "DEL" else order:
            config = self._plugins[number]
            self.rig.config = {**config, **self._runtime(name)}
            is_hit = injection is not None and number == self._hit
            run = self.rig.run if not is_hit else self._injected(injection)
            done = run(command, name, plugin=config["type"], **keys)
            if done.returncode or (is_hit and self.rig.struck and command != "ADD"):
                return done
            if command == "ADD":
                keys = {"prevResult": json.loads(done.stdout)}
        return done

    def ok(self, command: str, name: str = "") -> None:
        """Run a command that must succeed."""
        done = self.call(command, name)
        assert done.returncode == 0, f"{command} {name}: {done.stdout}{done.stderr}"

    def add(self, name: str) -> None:
        """Attach a container, which must succeed."""
        self.rig.container(name)
        self.ok("ADD", name)

    def check(self, name: str) -> None:
        """Demand that a container has an address, and its port where there is a portmap."""
        assert len(self.rig.addresses(name)) == 1
        if any(plugin["type"] == "sbr" for plugin in self._plugins):
            assert "lookup 100" in self._rules(name)
        if any(plugin["type"] == "portmap" for plugin in self._plugins):
            listing = self.rig.node.command("nft", "list", "ruleset")
            assert f"portmap net1 {name} eth0" in listing

    def assert_clean(self) -> None:
        """Demand that nothing is left of any attachment, also in the containers."""
        self.rig.assert_clean()
        for name in self.rig.containers():
            assert "lookup 1" not in self._rules(name)

    def _rules(self, name: str) -> str:
        return self.rig.node.command("ip", "rule", netns=self.rig.container(name))

    def _exists(self, name: str) -> bool:
        return name in self.rig.containers()

    def _injected(self, injection: Injection | None) -> Any:
        assert injection is not None

        def run(command: str, name: str, **keys: Any) -> Done:
            return self.rig.inject(injection, command, name, **keys)

        return run

    def _make_device(self, name: str) -> None:
        """Give the node a device for a container, if the last one went with its namespace."""
        node, device = self.rig.node, _device(name)
        if device not in node.links("") and "eth0" not in node.links(self.rig.container(name)):
            node.command("ip", "link", "add", device, "type", "ifb")
            node.command("ip", "link", "set", device, "up", "mtu", "1400")

    def _runtime(self, name: str) -> Json:
        if not name:
            return {}
        number = NAMES.index(name)
        ports = [
            {"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 9000 + number, "containerPort": 53, "protocol": "udp"},
        ]
        addresses = {"ips": [f"10.9.0.{number + 2}/28"]} if self._plugins[0] == _STATIC else {}
        device = {"device": _device(name)} if "device" in self._plugins[0] else {}
        return {"runtimeConfig": {"portMappings": ports, **addresses}, **device}

    def assert_home(self, name: str) -> None:
        """Demand that the node's device is at home, up, with its MTU, if the chain lends any."""
        if "device" in self._plugins[0]:
            link = self.rig.node.link("", _device(name))
            assert link is not None
            assert (link["mtu"], "UP" in link["flags"]) == (1400, True)


def _device(name: str) -> str:
    return f"nic-{name}"


_STATIC = {"cniVersion": "1.1.0", "name": "net1", **STATIC}


@pytest.fixture(params=list(CHAINS))
def chain(request: pytest.FixtureRequest, rig: Rig, tmp_path: Path) -> Iterator[Chain]:
    """A network."""
    chain = Chain(rig, request.param)
    if not chain.uses_dhcp:
        yield chain
        return
    rig.node.outside()
    with dhcp.served(rig.node, tmp_path):
        yield chain


def put_in_order(chain: Chain, injection: Injection) -> None:
    """Bring a node in order on which a call for c1 was hit: by DEL, or by GC without it."""
    if injection.at % 2:
        chain.rig.end("c1")
        chain.rig.age()
        chain.ok("GC")
    else:
        chain.ok("DEL", "c1")
        chain.assert_home("c1")
    chain.assert_clean()
    chain.add("new")
    chain.check("new")
    chain.ok("DEL", "new")
    chain.assert_clean()


@pytest.mark.rotating(2)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_killed(request: pytest.FixtureRequest, chain: Chain, command: str) -> None:
    """Wherever ADD or DEL is killed, DEL or GC removes what is there, and ADDs work."""
    kill(request, chain, command, most=MOST)


if ALL:  # an emulated machine takes a minute for each call that is hit

    @pytest.mark.full_kernel
    @pytest.mark.parametrize("command", ["ADD", "DEL"])
    @pytest.mark.parametrize("name", FULL_KERNEL_CHAINS)
    def test_killed_in_a_full_kernel(
        request: pytest.FixtureRequest, rig: Rig, name: str, command: str
    ) -> None:
        """Likewise, at one call; for each day tests/kernel/test_devices.py has such a test."""
        kill(request, Chain(rig, name), command, most=1, everything=False)


def kill(
    request: pytest.FixtureRequest, chain: Chain, command: str, *, most: int, everything: bool = ALL
) -> None:
    """Have ADD or DEL killed at some calls; DEL or GC removes what is there, and ADDs work."""

    def scenario(injection: Injection) -> None:
        if command == "ADD":
            chain.rig.container("c1")
        else:
            chain.add("c1")
        chain.call(command, "c1", injection)
        put_in_order(chain, injection)

    sweep(chain.rig, request, scenario, most=most, everything=everything)


@pytest.mark.rotating(3)
def test_killed_gc(request: pytest.FixtureRequest, chain: Chain) -> None:
    """Wherever a GC is killed, the next one goes on with it, and valid attachments stay."""
    rig = chain.rig
    chain.add("living")
    links = rig.node.traces("br0").get("links")  # none of macvlan

    def scenario(injection: Injection) -> None:
        chain.add("dead")
        rig.end("dead")
        rig.age()
        chain.call("GC", "", injection)
        chain.ok("GC")
        chain.check("living")
        listing = rig.node.command("nft", "list", "ruleset")
        assert " dead eth0" not in listing
        assert not [name for name in rig.files("/run/pycni/attachments") if "dead" in name]
        assert rig.node.traces("br0").get("links") == links

    sweep(rig, request, scenario, most=MOST)
    chain.ok("DEL", "living")
    chain.assert_clean()


@pytest.mark.rotating(2)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_no_space(request: pytest.FixtureRequest, chain: Chain, command: str) -> None:
    """With ENOSPC a call does without, or fails and says so; the runtime's DEL cleans up."""
    rig = chain.rig

    def scenario(injection: Injection) -> None:
        rig.container("c1")
        if command == "DEL":
            chain.add("c1")
        done = chain.call(command, "c1", injection)
        if done.returncode:
            assert_told(done, rig.struck)
        elif command == "ADD":
            chain.check("c1")
        chain.ok("DEL", "c1")
        chain.assert_clean()

    sweep(rig, request, scenario, error=errno.ENOSPC, most=MOST)


def test_reboot(chain: Chain) -> None:
    """After a reboot nothing is in the way of new containers, and GC removes the rest."""
    for name in ("c1", "dead"):
        chain.add(name)
    reboot(chain.rig)
    chain.rig.node.command("rm", "-rf", TUNING["dataDir"])  # in /run, by default

    chain.add("new")
    chain.check("new")
    chain.rig.age()
    chain.ok("GC")
    chain.check("new")
    chain.ok("DEL", "new")

    chain.assert_clean()
