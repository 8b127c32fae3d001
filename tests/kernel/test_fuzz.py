"""Random and damaged calls by the thousand: always one answer, never a trace.

Each case comes from a seed and its number alone, so that one that fails can be repeated.
PYCNI_FUZZ_SEED and PYCNI_FUZZ_CASES in the environment change seed and number of cases.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import pytest

from cni_common.kernel.netns import NetNS
from cni_common.serve.protocol import Reply, respond
from plugins import TYPES
from tests import scope
from tests.machine import CNI_BIN, Json, Machine, error_of
from tests.scope import ALL

pytestmark = pytest.mark.without_engine(reason="calls functions of this process")

SEED = os.environ.get("PYCNI_FUZZ_SEED", "1")  # noqa: TID251 - the developer's knob
CASES = int(os.environ.get("PYCNI_FUZZ_CASES", "20000"))  # noqa: TID251 - as above
CHUNKS = 8  # that two workers can share
PART = 1 if ALL else 20  # of so many cases one, another each day
DAY = crc32(scope.SEED.encode()) % PART
PROCESSES = 150 if ALL else 50
LOOK_EVERY, LOOK_CLOSELY_EVERY = 20, 500  # cases

_ATTACHED = "veth[0-9a-f]{8}|eth0|net1|x+"  # names of interfaces that ADD makes
DATA_DIR, NETWORK = "/of/the/machine", "of-the-machine"  # stand for names of a machine
COMMANDS = ("ADD",) * 9 + ("DEL",) * 5 + ("CHECK",) * 3 + ("GC", "STATUS") * 2
PLUGINS = (
    *(("bridge",) * 5 + ("host-local",) * 4 + ("ptp",) * 3 + ("loopback",) * 2),
    *(plugin for plugin in TYPES if plugin not in ("bridge", "host-local", "ptp", "loopback")),
)
# Whose ADD may come twice.
REPEATABLE = ("bandwidth", "firewall", "loopback", "sbr", "static", "tuning", "vrf")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

# --- what runtimes send ---

RANGES = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]
IPAM: Json = {"type": "host-local", "ranges": RANGES, "routes": [{"dst": "0.0.0.0/0"}]}
ROUTE: Json = {"dst": "10.0.0.0/8", "mtu": 1400, "priority": 100, "table": 100, "scope": 0}
SINGLE: Json = {"type": "host-local", "subnet": "10.78.0.0/16", "routes": [ROUTE]}
BRIDGE: Json = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True}
NETWORKS: tuple[Json, ...] = (
    # containerd, by ctr and by the kubelet
    {**BRIDGE, "hairpinMode": True, "ipam": IPAM},
    {
        **BRIDGE,
        "bridge": "cbr0",
        "promiscMode": True,
        "capabilities": {"ipRanges": True, "portMappings": True, "dns": True, "mac": True},
        "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
        "runtimeConfig": {
            "ipRanges": [[{"Subnet": "10.79.0.0/24"}]],
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"}],
            "dns": {"Servers": ["10.0.0.1"], "Searches": ["a"], "Options": None},
        },
    },
    # podman
    {
        **BRIDGE,
        "bridge": "cni-podman0",
        "hairpinMode": True,
        "capabilities": {"ips": True},
        "ipam": {
            **SINGLE,
            "subnet": "",
            "ranges": [[{"subnet": "10.80.0.0/16", "gateway": "10.80.0.1"}]],
        },
        "runtimeConfig": {"ips": ["10.80.0.77"], "mac": "02:00:00:00:00:77"},
    },
    # written by hand, for cnitool
    {**BRIDGE, "isDefaultGateway": True, "ipMasq": False, "ipam": SINGLE, "mtu": 1400},
    {"type": "bridge", "bridge": "l2", "portIsolation": True, "macspoofchk": True},
    {"type": "bridge", "bridge": "l2", "disableContainerInterface": True, "ipam": {}},
    {**BRIDGE, "bridge": "mac0", "macspoofchk": True, "ipam": SINGLE, "args": {"cni": {"ips": []}}},
    {**BRIDGE, "bridge": "vlan0", "vlan": 100, "ipam": SINGLE},
    {**BRIDGE, "bridge": "vlan0", "vlanTrunk": [{"minID": 2, "maxID": 9}, {"id": 40}], "ipam": {}},
    {"type": "bridge", "bridge": "plain0", "ipam": SINGLE, "dns": {"nameservers": ["10.0.0.1"]}},
)
LOOPBACK: Json = {"type": "loopback"}
STATIC: Json = {
    "type": "static",
    "addresses": [
        {"address": "10.81.0.5/24", "gateway": "10.81.0.1"},
        {"address": "fd00:81::5/64"},
    ],
    "routes": [ROUTE],
    "dns": {"nameservers": ["10.0.0.1"]},
}
TUNING: Json = {
    "type": "tuning",
    "sysctl": {"net.core.somaxconn": "99", "net/ipv4/conf/lo/arp_notify": "1"},
    "args": {"cni": {"sysctl": {"net.ipv4.tcp_fin_timeout": "33"}}},
    "dataDir": DATA_DIR,
}
BANDWIDTH: Json = {
    "type": "bandwidth",
    "ingressRate": 10**7,
    "ingressBurst": 10**6,
    "unshapedSubnets": ["10.0.0.0/8", "fd00::/8"],
    "runtimeConfig": {"bandwidth": {"EgressRate": 10**7, "EgressBurst": 2**32 - 1}},
}
DHCP: Json = {
    "type": "dhcp",
    "ipam": {
        "type": "dhcp",
        "daemonSocketPath": "/run/no/daemon.sock",
        "family": "both",
        "provide": [{"option": "host-name", "value": "x", "fromArg": "K8S_POD_NAME"}],
        "request": [{"option": "44", "skipDefault": True}],
        "priority": 100,
    },
}
FIREWALL: Json = {"type": "firewall", "backend": "nftables", "ingressPolicy": "open"}
MACVLAN: Json = {
    "type": "macvlan",
    "master": "below0",
    "mode": "bridge",
    "mtu": 1400,
    "bcqueuelen": 2000,
    "linkInContainer": False,
    "ipam": {**SINGLE, "subnet": "10.82.0.0/16"},
    "runtimeConfig": {"mac": "02:00:00:00:00:82"},
}
IPVLAN: Json = {
    "type": "ipvlan",
    "master": "below0",
    "mode": "l3",
    "mtu": 1400,
    "linkInContainer": False,
    "ipam": {**SINGLE, "subnet": "10.83.0.0/16"},
}
VLAN: Json = {
    "type": "vlan",
    "master": "below0",
    "vlanId": 5,
    "mtu": 1400,
    "linkInContainer": False,
    "ipam": {**SINGLE, "subnet": "10.84.0.0/16"},
}
PORTMAP: Json = {
    "type": "portmap",
    "backend": "nftables",
    "snat": True,
    "conditionsV4": ["ip", "saddr", "!=", "10.9.0.0/16"],
    "runtimeConfig": {
        "portMappings": [
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"},
        ]
    },
}
SBR: Json = {
    "type": "sbr",
    "table": 300,
    "gateways": ["10.77.0.1", "fd00:77::1"],
    "addSourceHints": True,
}
HOST_DEVICE: Json = {
    "type": "host-device",
    "device": "lent0",
    "hwaddr": "02:00:00:00:00:83",
    "kernelpath": "/sys/devices/none",
    "pciBusID": "",
    "DPDKMode": False,
    "ipam": {**SINGLE, "subnet": "10.83.0.0/16"},
    "runtimeConfig": {"deviceID": ""},
}
VRF: Json = {"type": "vrf", "vrfname": "blue", "table": 400}
TAP: Json = {
    "type": "tap",
    "multiQueue": True,
    "mtu": 1400,
    "mac": "02:00:00:00:00:84",
    "owner": 5,
    "group": 6,
    "selinuxContext": "",
    "bridge": "",
    "ipam": {**SINGLE, "subnet": "10.84.0.0/16"},
}
BY_ITSELF = {
    "dhcp": DHCP,
    "loopback": LOOPBACK,
    "macvlan": MACVLAN,
    "ipvlan": IPVLAN,
    "vlan": VLAN,
    "host-device": HOST_DEVICE,
    "tap": TAP,
    "tuning": TUNING,
    "bandwidth": BANDWIDTH,
    "firewall": FIREWALL,
    "portmap": PORTMAP,
    "sbr": SBR,
    "vrf": VRF,
}
CHAINED = ("bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf")
PREVIOUS: tuple[Json, ...] = (
    {
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/n"}],
        "ips": [{"interface": 0, "address": "10.77.0.9/24", "gateway": "10.77.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.77.0.1", "mtu": 1400}],
        "dns": {"nameservers": ["10.0.0.1"]},
    },
    {"ip4": {"ip": "10.78.0.9/16", "routes": [{"dst": "0.0.0.0/0"}]}, "dns": {}},
    {"cniVersion": "1.0.0", "ips": [{"address": "127.0.0.1/8"}]},
)
GOOD_ARGS = (
    *("", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_UID=9"),
    *("K8S_POD_NAME=c2;MAC=02:00:00:00:00:42;IgnoreUnknown=true", "MAC=02:00:00:00:00:43"),
)
BAD_ARGS = (
    *("IP=10.77.0.42", "IP=10.78.0.5", "IgnoreUnknown=1;IP=10.80.0.77", "mac=x", "IP=x", "MAC=x"),
    *("A", ";", "IP=a=b", "\udcff=1", "IgnoreUnknown=x", "IP=;MAC=;GATEWAY=", "x" * 9999),
)

# --- what is wrong with it ---

TEXTS = (
    *(
        "",
        "a",
        "bridge",
        "x" * 300,
        "ä",
        "\u2028<&>",
        "\0",
        "a b",
        "-",
        "..",
        "/",
        "\ud800",
        "%d",
        "cni0",
        "lo",
    ),
    *("10.77.0.5", "10.77.0.0/24", "10.77.0.0/31", "::/0", "fd00:77::5", "::ffff:10.0.0.1/120"),
    *("fe80::1%eth0", "010.0.0.1", "0.0.0.0/0", "02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "true"),
    *("host-local", "loopback", "none", "nftables", "1.0.0", "9.9.9", "1400"),
    *("/etc/resolv.conf", "/no/such", "/dev/null"),
)
NUMBERS = (0, 1, -1, 2, 68, 1280, 4094, 4095, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**63, 10**99)
DEEP: Any = "bottom"
for _ in range(400):
    DEEP = {"x": DEEP}
JUNK: tuple[Any, ...] = (
    *(None, True, False, 1.5, 1400.0, [], [[]], [None], {}, {"a": None}, [{}], [[{}]], [1, "a"]),
    *(DEEP, [None] * 5000, "x\n" * 9999),
    *TEXTS,
    *NUMBERS,
)
KEYS = (
    *("cniVersion", "name", "type", "bridge", "isGateway", "isDefaultGateway", "forceAddress"),
    *("ipMasq", "mtu", "hairpinMode", "promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan"),
    *("macspoofchk", "disableContainerInterface", "portIsolation", "ipam", "args", "runtimeConfig"),
    *("capabilities", "dns", "prevResult", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges"),
    *("ingressRate", "egressRate", "egressBurst", "bandwidth", "shapedSubnets"),
    *("sysctl", "promisc", "allmulti", "txQLen", "addresses", "dataDir"),
    *("portMappings", "hostPort", "containerPort", "protocol", "hostIP", "snat", "masqAll"),
    *("master", "mode", "bcqueuelen", "linkInContainer", "vlanId", "gateways"),
    *("addSourceHints", "vrfname"),
    *("backend", "conditionsV4", "conditionsV6", "ingressPolicy", "firewalldZone"),
    *("routes", "resolvConf", "dst", "gw", "priority", "table", "scope", "advmss", "ips", "mac"),
    *("interfaces", "address", "interface", "nameservers", "search", "id", "minID", "x", "sandbox"),
    *("cni.dev/valid-attachments", "cni.dev/attachments", "containerID", "ifname", "ipRanges"),
)
BAD_NAMES = (
    *("", " ", "a b", "-a", "..", "a/b", "a\n", "ä" * 8, "\udcff", "\u00a0", "lo", "all", "%d"),
    *("a" * 5000, "x" * 15),
)


@dataclass(frozen=True)
class Case:
    """One call."""

    plugin: str
    environ: Mapping[str, str]
    stdin: bytes

    @property
    def command(self) -> str:
        """The call, and the configuration that it gets."""
        return self.environ.get("CNI_COMMAND", "")


@dataclass(frozen=True)
class World:
    """The objects of the machine that cases name."""

    data_dir: str
    containers: tuple[str, ...]
    other_paths: tuple[str, ...]  # that are no namespaces of containers
    keeper: str
    network: str


class Generator:
    """Makes cases."""

    def __init__(self, world: World, *seed: object) -> None:
        self._world = world
        self._random = Random(" ".join(map(str, (SEED, *seed))))

    def case(self) -> Case:
        """Return any case."""
        plugin = self._random.choice(PLUGINS)
        command = self._random.choice(COMMANDS)
        config = self._config(plugin, command)
        for _ in range(9):  # until it names no directory of others
            stdin = self._placed(self._damaged(config))
            if self._is_safe(stdin):
                break
        else:
            stdin = b"{}"
        # To make and delete a veth pair is what takes the time: not too many of them.
        reach = 0.3 if plugin in ("bridge", "macvlan", "ptp") and command == "ADD" else 0.85
        return Case(plugin, self._environ(command, reach), stdin)

    def _config(self, plugin: str, command: str) -> Json:
        network = self._random.choice(NETWORKS)
        network = BY_ITSELF.get(plugin, network)
        version = self._random.choice(VERSIONS)
        config = {"cniVersion": version, "name": NETWORK, **network}
        ipam = config.get("ipam")
        if plugin in ("host-local", "ptp") and not (ipam and ipam.get("type")):
            ipam = IPAM
        if plugin == "static":
            ipam = STATIC
        if ipam:
            config["ipam"] = {**ipam, "dataDir": DATA_DIR}
        if command in ("CHECK", "DEL") or plugin in CHAINED or self._likely(0.1):
            config["prevResult"] = self._random.choice(PREVIOUS)
        if command == "GC":
            config["cniVersion"] = "1.1.0"
            config["cni.dev/valid-attachments"] = [
                {"containerID": f"c{number}", "ifname": "eth0"} for number in range(3)
            ]
        if command == "STATUS":
            config["cniVersion"] = "1.1.0"
        return config

    def _environ(self, command: str, reach: float) -> dict[str, str]:
        world, choice = self._world, self._random.choice
        containers = world.containers
        if command == "ADD":  # where an attachment lives already
            containers = (*containers, world.keeper)
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": choice(("c0", "c1", "c2")),
            "CNI_NETNS": choice(containers if self._likely(reach) else world.other_paths),
            "CNI_IFNAME": choice(("eth0", "eth0", "net1")),
            "CNI_ARGS": choice(GOOD_ARGS if self._likely(0.85) else BAD_ARGS),
            "CNI_PATH": str(CNI_BIN) if self._likely(0.95) else "/no/such/directory:.:",
        }
        if self._likely(0.2):
            name = choice(("CNI_CONTAINERID", "CNI_IFNAME", "CNI_IFNAME", "CNI_NETNS_OVERRIDE"))
            environ[name] = choice((*BAD_NAMES, "1", "true", *TEXTS[:4]))
        if self._likely(0.05):
            del environ[choice(sorted(environ))]
        if self._likely(0.03):
            environ["CNI_COMMAND"] = choice(("VERSION", "FOO", "add", "\udcff"))
        return environ

    def _damaged(self, config: Json) -> bytes:
        kind = self._random.random()
        if kind < 0.06:
            return self._random.randbytes(self._random.randrange(200))
        if kind < 0.36:
            return json.dumps(config, ensure_ascii=self._likely(0.5)).encode()
        value: Any = config
        for _ in range(self._random.choice((1, 1, 1, 2, 4))):
            value = self._changed(value)
        data = json.dumps(value, ensure_ascii=self._likely(0.5)).encode("utf-8", "surrogatepass")
        return data if kind < 0.88 else self._scrambled(data)

    def _changed(self, value: Any) -> Any:
        """Return `value` with one place changed, each as likely as any other."""
        return self._changed_at(value, self._random.choice(list(_places(value))))

    def _changed_at(self, value: Any, place: tuple[Any, ...]) -> Any:
        if not place:
            return self._replaced(value)
        key, rest = place[0], place[1:]
        if isinstance(value, list):
            more = [value[key]] if self._likely(0.1) else []
            changed = self._changed_at(value[key], rest)
            return [*value[:key], changed, *more, *value[key + 1 :]]
        if rest or self._likely(0.6):
            return {**value, key: self._changed_at(value[key], rest)}
        others = {name: item for name, item in value.items() if name != key}
        other_key = self._random.choice((*self._respelled(key), self._random.choice(KEYS)))
        return self._random.choice(
            (
                others,
                {**others, other_key: value[key]},
                {**value, other_key: value[key]},
                {**value, other_key: self._replaced(value[key])},
                {other_key: self._replaced(value[key]), **value},
            )
        )

    def _replaced(self, value: Any) -> Any:
        match value:
            case bool() if self._likely(0.7):
                return not value
            case int() if self._likely(0.7):
                return self._random.choice((str(value), float(value), -value, value + 1, *NUMBERS))
            case str() if self._likely(0.6):
                return self._random.choice(
                    (value.upper(), value[:-1], value + "0", [value], *TEXTS)
                )
        junk = self._random.choice(JUNK)
        return [[junk] * 3] * 60 if self._likely(0.01) else junk

    def _respelled(self, key: str) -> tuple[str, ...]:
        return (key.upper(), key.lower(), key.title(), key[:1].upper() + key[1:])

    def _scrambled(self, data: bytes) -> bytes:
        """Return `data` with some bytes changed, taken out or put in."""
        for _ in range(self._random.choice((1, 1, 2, 8))):
            at = self._random.randrange(len(data) + 1)
            byte = self._random.choice((self._random.randrange(256), *b'{}[]",:0\\'))
            new = self._random.choice((bytes([byte]), b"", data[at : at + 20] * 2))
            data = data[:at] + new + data[at + 1 :]
        return data if self._likely(0.8) else data[: self._random.randrange(len(data) + 1)]

    def _placed(self, data: bytes) -> bytes:
        """Return `data` with the names of this machine, which chance must not depend on."""
        names = ((NETWORK, self._world.network), (DATA_DIR, self._world.data_dir))
        for word, name in names:
            data = data.replace(word.encode(), name.encode())
        return data

    def _is_safe(self, data: bytes) -> bool:
        """Tell whether no file could be written outside of the machine's directories."""
        foreign: list[str] = []

        def look(pairs: list[tuple[str, Any]]) -> Json:
            for key, value in pairs:
                if "dir" in key.casefold() and str(value).startswith("/"):
                    foreign.extend([value] if value != self._world.data_dir else [])
            return dict(pairs)

        try:
            json.loads(data.decode("utf-8", "replace"), object_pairs_hook=look)
        except (ValueError, RecursionError):
            return True
        return not foreign

    def _likely(self, chance: float) -> bool:
        return self._random.random() < chance


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside `value`, and to itself when it has none."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:9])
    if not items or place:
        yield place
    for key, item in items:
        yield from _places(item, (*place, key))


class Fuzzer:
    """Puts cases to a machine, and looks at what they leave."""

    def __init__(self, machine: Machine, tmp_path: Path) -> None:
        self._machine = machine
        (tmp_path / "file").write_text("x")
        machine.do(machine.host, "ip link add below0 type veth peer name woleb0")
        machine.do(machine.host, "ip link add lent0 type ifb", "ip link set lent0 up")
        network = machine.network(
            name="kept",
            bridge="kept0",
            ipMasq=True,
            macspoofchk=True,
            ipam={**SINGLE, "subnet": "10.99.0.0/24", "dataDir": machine.data_dir},
        )
        self.keeper_netns = machine.container()
        result = machine.ok(
            "bridge", "ADD", network, self.keeper_netns, containerid="keeper", ifname="eth0"
        )
        self.kept = {**network, "prevResult": result}
        shared = {"cniVersion": "1.1.0", "name": "kept", **FIREWALL, "prevResult": result}
        for command in ("ADD", "DEL"):  # makes table filter, which stays
            machine.ok("firewall", command, shared, self.keeper_netns, containerid="keeper")
        self.world = World(
            data_dir=machine.data_dir,
            containers=(machine.container(), machine.container()),
            other_paths=(
                *("", "/no/such", "/dev/null", "/proc/self/ns/uts", "relative", "x" * 5000),
                *(str(tmp_path), str(tmp_path / "file"), "\udcff", machine.host),
                "/proc/thread-self/ns/net",
            ),
            keeper=self.keeper_netns,
            network=machine.name,
        )
        self.attached = 0
        self._first_files, self._first_interfaces = self._files(), self._interfaces()
        self._first_inspection = self._inspection()

    def put(self, case: Case) -> Reply:
        """Put one case and look at the answer; its attachment is detached again."""
        reply = self._call(case)
        if case.command == "ADD" and reply.exit_code == 0:
            self.attached += 1
            self._detach(case, json.loads(reply.stdout))
        return reply

    def look(self) -> None:
        """Demand that nothing is there that was not there at the beginning."""
        assert self._files() == self._first_files
        assert self._interfaces() == self._first_interfaces

    def look_closely(self) -> None:
        """Demand the same of what takes longer to see, and that the living are well."""
        assert self._inspection() == self._first_inspection
        self.of_keeper("CHECK")

    def of_keeper(self, command: str) -> None:
        """Call bridge for the attachment that lives all the time."""
        netns = self.keeper_netns
        self._machine.ok("bridge", command, self.kept, netns, containerid="keeper", ifname="eth0")

    def _call(self, case: Case) -> Reply:
        self._machine.log.clear()
        with self._machine.make_host() as host:
            reply = respond(case.plugin, case.environ, case.stdin, host)
        check_answer(case.command, reply.stdout, reply.exit_code)
        assert not any("Traceback" in line for line in self._machine.log), self._machine.log
        return reply

    def _detach(self, case: Case, result: Json) -> None:
        """DEL what an ADD made, after a CHECK and a second ADD."""
        config = json.loads(case.stdin.decode("utf-8", "replace"))
        checked = json.dumps({**config, "prevResult": result}).encode()
        again = self._call(case)
        if case.plugin != "portmap":  # has nothing to refuse where no port could be mapped
            assert again.exit_code == (case.plugin not in REPEATABLE), again.stdout
        self._call(_as(case, "CHECK", checked))

        done = self._call(_as(case, "DEL", case.stdin))

        assert done.exit_code == 0, done.stdout
        assert self._files() == self._first_files

    def _files(self) -> list[str]:
        """Return the leases and the records."""
        leases = Path(self._machine.data_dir).glob("*/*[0-9a-f]")
        records = Path(self._machine.state_dir).glob("attachments/*")
        paths = [
            *records,
            *(path for path in leases if not path.name.startswith("last_reserved_ip.")),
        ]
        return sorted(map(str, paths))

    def _interfaces(self) -> dict[str, list[str]]:
        """Return the names of all interfaces but bridges and those that lead into a VLAN."""
        return {
            netns: [name for name in _interfaces(netns) if re.fullmatch(_ATTACHED, name)]
            for netns in (self._machine.host, *self.world.containers, self.keeper_netns)
        }

    def _inspection(self) -> Json:
        """Return what `nft` and `ip` say of what belongs to attachments."""
        links = {
            netns: sorted(link["ifname"] for link in self._machine.ip(netns, "link"))
            for netns in (*self.world.containers, self.keeper_netns)
        }
        addresses = {netns: self._machine.addresses(netns, "eth0") for netns in links}
        veths = [
            link["ifname"]
            for link in self._machine.ip(self._machine.host, "link", "show", "type", "veth")
        ]
        own = sorted(name for name in veths if re.fullmatch(_ATTACHED, name))
        rules = self._machine.ip(self.keeper_netns, "rule")
        found = {"links": links, "addresses": addresses, "own": own, "rules": rules}
        return {"nft": self._machine.nft(), **found}


def _as(case: Case, command: str, stdin: bytes) -> Case:
    return replace(case, environ={**case.environ, "CNI_COMMAND": command}, stdin=stdin)


def _interfaces(netns: str) -> list[str]:
    handle = NetNS(netns)
    try:
        text = handle.run(lambda: Path("/proc/thread-self/net/dev").read_text())
    finally:
        handle.close()
    return sorted(line.partition(":")[0].strip() for line in text.splitlines()[2:])


def check_answer(command: str, stdout: bytes, status: int) -> None:
    """Demand one valid document that goes with the exit status."""
    assert status in (0, 1)
    if status:
        error = error_of(stdout)
        assert error["cniVersion"] in VERSIONS
        assert len(error["msg"].splitlines()) == 1
        assert len(error.get("details", "x").splitlines()) == 1
    elif command in ("ADD", "VERSION"):
        answer = json.loads(stdout.decode(), parse_constant=pytest.fail)
        assert answer["cniVersion"] in VERSIONS
    else:
        assert stdout == b""


@pytest.fixture
def fuzzer(machine: Machine, tmp_path: Path) -> Iterator[Fuzzer]:
    """A machine with one living attachment, which must outlive every test."""
    made = Fuzzer(machine, tmp_path)
    yield made
    made.look()
    made.look_closely()
    made.of_keeper("DEL")
    assert machine.masqueraded() == {}


@contextmanager
def told(what: str, number: int, case: Case) -> Iterator[None]:
    """Name the case when something is wrong with it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"PYCNI_FUZZ_SEED={SEED}, {what} {number}: {case}")
        raise


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_in_process(fuzzer: Fuzzer, chunk: int) -> None:
    """Each call gets one answer, without a traceback; a failed call has changed nothing."""
    numbers = range(chunk + CHUNKS * DAY, CASES, CHUNKS * PART)
    for count, number in enumerate(numbers):
        case = Generator(fuzzer.world, number).case()
        with told("case", number, case):
            fuzzer.put(case)
        if count % LOOK_EVERY == 0:
            with told(f"one of the last {LOOK_EVERY} of its chunk up to", number, case):
                fuzzer.look()
        if count % LOOK_CLOSELY_EVERY == 0:
            with told(f"one of the last {LOOK_CLOSELY_EVERY} of its chunk up to", number, case):
                fuzzer.look_closely()

    assert fuzzer.attached > len(numbers) / 40, "too few cases get as far as to attach"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk", range(2))
def test_executable(machine: Machine, chunk: int) -> None:
    """The executables give one document on stdout, and no traceback on stderr."""
    world = World(machine.data_dir, (machine.container(),), ("", "/no/such"), "", machine.name)

    for number in range(chunk, PROCESSES, 2):
        case = Generator(world, "process", number).case()
        with told("process", number, case):
            done = subprocess.run(
                ["nsenter", f"--net={machine.host}", CNI_BIN / case.plugin],
                input=case.stdin,
                env={os.fsencode(key): os.fsencode(value) for key, value in case.environ.items()},
                capture_output=True,
                check=False,
            )
            if case.command:
                check_answer(case.command, done.stdout, done.returncode)
            assert b"Traceback" not in done.stderr, done.stderr.decode()
