"""A pretend host with an outside world and a network whose containers have ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.machine import Json, Machine

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8::2"
GATEWAY4, GATEWAY6 = "10.9.0.1", "fd00:9::1"


def port(host: int, container: int = 80, protocol: str = "tcp", **keys: str) -> Json:
    """Return a port mapping."""
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **keys}


class Node:
    """A machine with an outside world and one dual-stack network."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.host = machine.host
        self.outside = machine.outside()
        self.results: dict[str, Json] = {}
        for family, key in (("ipv4", "ip_forward"), ("ipv6", "conf/all/forwarding")):
            machine.command(self.host, "sh", "-c", f"echo 1 > /proc/sys/net/{family}/{key}")

    def network(self, **keys: Any) -> Json:
        """Return the network's bridge."""
        ipam = {
            "type": "host-local",
            "dataDir": self.machine.data_dir,
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        return self.machine.network(**{"ipam": ipam, "hairpinMode": True, **keys})

    def attach(
        self, containerid: str = "c1", *, ifname: str = "eth0", netns: str = "", **keys: Any
    ) -> str:
        """Return a container on the network."""
        netns = netns or self.machine.container()
        result = self.machine.ok(
            "bridge", "ADD", self.network(**keys), netns, containerid=containerid, ifname=ifname
        )
        self.results[f"{containerid} {ifname}"] = result
        return netns

    def config(
        self, *ports: Json, containerid: str = "c1", ifname: str = "eth0", **keys: Any
    ) -> Json:
        """Return portmap's configuration behind the bridge's."""
        return {
            "cniVersion": "1.1.0",
            "name": self.machine.name,
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": list(ports)},
            "prevResult": self.results[f"{containerid} {ifname}"],
            **keys,
        }

    def ok(self, command: str, config: Json, netns: str = "", **attachment: Any) -> Json:
        """Run portmap, which must succeed."""
        return self.machine.ok("portmap", command, config, netns, **attachment)

    def address(self, version: int, containerid: str = "c1", ifname: str = "eth0") -> str:
        """Return a container's address."""
        texts = [ip["address"] for ip in self.results[f"{containerid} {ifname}"]["ips"]]
        (found,) = (text for text in texts if (":" in text) == (version == 6))
        return str(found.partition("/")[0])

    def records(self) -> list[Path]:
        """Return portmap's records."""
        return list(Path(self.machine.state_dir, "attachments").glob("portmap-*"))

    def mapped(self) -> dict[str, list[str]]:
        """Return the keys of all elements of our maps by their comments."""
        found: dict[str, list[str]] = {}
        for entry in self.machine.nft():
            for key, _value in entry.get("map", {}).get("elem", ()):
                element = key["elem"]
                found.setdefault(element["comment"], []).append(str(element["val"]))
        return found

    def route_localnet(self, interface: str = "br0") -> str:
        """Return an interface's sysctl."""
        path = f"/proc/sys/net/ipv4/conf/{interface}/route_localnet"
        return self.machine.command(self.host, "cat", path).strip()
