"""The measured networks, and calls on them as containerd makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.columns import Call, Column
from bench.samples import COLUMNS, NETAVARK, REFERENCE

if TYPE_CHECKING:
    from cni_common.spec.wire import JsonObject

VERSION = "1.0.0"
IFNAME = "eth0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Variant:
    """The properties of a network, the same for every column."""

    dual: bool = False
    masquerade: str = ""  # the reference's backend; ours always takes its own default
    ports: int | None = None  # None: no portmap in the chain
    in_row: bool = False  # whether these are a range of UDP, each port keeping its number
    routes: int = 0  # beside the default route
    type: str = "bridge"
    master: str = ""  # of a macvlan, ipvlan or vlan
    device: str = ""  # of a host-device

    @property
    def is_large(self) -> bool:
        """Whether a call takes the reference seconds."""
        return (self.ports or 0) > 10 or self.routes > 0

    @property
    def with_reference(self) -> bool:
        """Whether the reference is measured: with thousands of ports a call takes it minutes."""
        return (self.ports or 0) <= 100


@dataclass(frozen=True)
class Network:
    """One column's network, with its own bridge, subnets and data."""

    name: str
    column: str
    bin_dir: Path
    variant: Variant = Variant()

    @property
    def bridge(self) -> str:
        """The name of the bridge."""
        return f"bench{self._number}"

    @property
    def subnets(self) -> list[str]:
        """The subnets, IPv4 first."""
        return [f"{self.prefix4}.0.0/16", *([f"{self.prefix6}::/64"] if self.variant.dual else [])]

    @property
    def prefix4(self) -> str:
        """The first half of each IPv4 address."""
        return f"10.{20 + self._number}"

    @property
    def prefix6(self) -> str:
        """The first half of each IPv6 address."""
        return f"fd00:{20 + self._number}"

    def plugins(self) -> list[JsonObject]:
        """Return the list's plugins, in the order of ADD."""
        routes = [{"dst": "0.0.0.0/0"}, *([{"dst": "::/0"}] if self.variant.dual else [])]
        many = range(self.variant.routes)
        routes += [{"dst": f"20.{number // 256}.{number % 256}.0/24"} for number in many]
        bridge: JsonObject = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}] for subnet in self.subnets],
                "routes": routes,
            },
        }
        if self.variant.master:
            keys = {"type": self.variant.type, "master": self.variant.master}
            vlan = {"vlanId": 5} if self.variant.type == "vlan" else {}
            return [{**keys, **vlan, "ipam": bridge["ipam"]}]
        if self.variant.device:
            keys = {"type": "host-device", "device": self.variant.device}
            return [{**keys, "ipam": bridge["ipam"]}]
        if self.variant.masquerade:
            bridge["ipMasq"] = True
            if self.column == REFERENCE:
                bridge["ipMasqBackend"] = self.variant.masquerade
        chain = [bridge]
        if self.variant.ports is not None:
            chain.append({"type": "portmap", "capabilities": {"portMappings": True}})
        return chain

    def list(self) -> JsonObject:
        """Return the content of the network's configuration file."""
        return {"cniVersion": VERSION, "name": self.name, "plugins": self.plugins()}

    @property
    def _number(self) -> int:
        return (*COLUMNS, NETAVARK).index(self.column)


@dataclass
class Attachment:
    """One container on a network, and the result of its last ADD."""

    network: Network
    netns: str
    containerid: str
    first_port: int = 20000
    result: JsonObject = field(default_factory=dict)

    def add_calls(self) -> list[PluginCall]:
        """Return the ADDs of the chain."""
        return [PluginCall(self, conf, "ADD") for conf in self.network.plugins()]

    def delete_calls(self) -> list[PluginCall]:
        """Return the DELs of the chain."""
        return [PluginCall(self, conf, "DEL") for conf in reversed(self.network.plugins())]

    def mappings(self) -> list[JsonObject]:
        """Return the host ports, as runtimeConfig has them."""
        variant = self.network.variant
        many = range(self.first_port, self.first_port + (variant.ports or 0))
        if variant.in_row:
            return [{"hostPort": p, "containerPort": p, "protocol": "udp"} for p in many]
        if len(many) > 100:  # none beside another
            many = range(self.first_port, self.first_port + 5 * len(many), 5)
        return [
            {"hostPort": port, "containerPort": 80 + number, "protocol": "tcp"}
            for number, port in enumerate(many)
        ]


@dataclass(frozen=True)
class PluginCall:
    """One plugin's call in an ADD or DEL; its configuration is complete when it starts."""

    attachment: Attachment
    conf: Mapping[str, Any]
    command: str

    def call(self) -> Call:
        """Return the call, with the result so far as prevResult."""
        network = self.attachment.network
        stdin: JsonObject = {"cniVersion": VERSION, "name": network.name, **self.conf}
        if "capabilities" in stdin:
            del stdin["capabilities"]
            stdin["runtimeConfig"] = {"portMappings": self.attachment.mappings()}
        if self.attachment.result:
            stdin["prevResult"] = self.attachment.result
        environ = environment(self.command, self.attachment, network.bin_dir)
        return Call(network.bin_dir / str(self.conf["type"]), environ, json.dumps(stdin))


def environment(command: str, attachment: Attachment, bin_dir: Path) -> dict[str, str]:
    """Return a plugin's environment as from containerd."""
    pod = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "default",
        "K8S_POD_NAME": attachment.containerid[-20:],
        "K8S_POD_INFRA_CONTAINER_ID": attachment.containerid,
        "K8S_POD_UID": attachment.containerid[-36:],
    }
    return {
        "PATH": PATH,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.containerid,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": IFNAME,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.items()),
        "CNI_PATH": str(bin_dir),
    }


def cnitool_call(cnitool: Path, command: str, attachment: Attachment, directory: Path) -> Call:
    """Return cnitool's `add` or `del`; `directory` holds the network's file."""
    bin_dir = attachment.network.bin_dir
    environ = {"PATH": PATH, "CNI_PATH": str(bin_dir), "NETCONFPATH": str(directory)}
    return Call(cnitool, environ, "", (command, attachment.network.name, attachment.netns))


def lease_call(
    column: Column, command: str, network: str, *, subnet: str, result: JsonObject
) -> Call:
    """Return a call of host-local alone; `result` is that of ADD, {} before."""
    conf = {
        "cniVersion": VERSION,
        "name": network,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
        **({"prevResult": result} if result else {}),
    }
    bin_dir = column.bin_dir
    attachment = Attachment(Network(network, column.name, bin_dir), "/run/netns/c0", "b" * 64)
    return Call(bin_dir / "host-local", environment(command, attachment, bin_dir), json.dumps(conf))
