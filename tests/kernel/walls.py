"""A pretend host with an outside world and two bridges whose containers get firewall rules."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.machine import Json, Machine
from tests.sockets import asks, serving

OUTSIDE = {4: "192.0.2.2", 6: "2001:db8::2"}
COMMANDS = {4: "iptables", 6: "ip6tables"}


class Walls:
    """A machine that forwards, with an outside world and dual-stack bridges br0, br1, …"""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.host = machine.host
        self.outside = machine.outside()
        self.netns: dict[str, str] = {}
        self.results: dict[str, Json] = {}
        for family, key in (("ipv4", "ip_forward"), ("ipv6", "conf/all/forwarding")):
            self.shell(f"echo 1 > /proc/sys/net/{family}/{key}")
        for family, to in (("-4", "192.0.2.1"), ("-6", "2001:db8::1")):
            machine.do(self.outside, f"ip {family} route add default via {to}")

    def shell(self, script: str) -> str:
        """Run a script on the host."""
        return self.machine.command(self.host, "sh", "-ec", script)

    def attach(self, containerid: str = "c1", bridge: int = 0, **attachment: Any) -> str:
        """Return a container on a bridge; ifname and netns by keyword."""
        netns = attachment.pop("netns", "") or self.machine.container()
        ifname = attachment.get("ifname", "eth0")
        second = ifname != "eth0"
        ipam = {
            "type": "host-local",
            "dataDir": self.machine.data_dir,
            "ranges": [
                [{"subnet": f"10.{9 + bridge}.0.0/24"}],
                [{"subnet": f"fd00:{9 + bridge}::/64"}],
            ],
            "routes": [] if second else [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        config = self.machine.network(
            name=self.network(bridge), bridge=f"br{bridge}", ipam=ipam, isGateway=True
        )
        result = self.machine.ok(
            "bridge", "ADD", config, netns, containerid=containerid, **attachment
        )
        self.netns[containerid] = netns
        self.results[f"{containerid} {ifname}"] = result
        return netns

    def network(self, bridge: int = 0) -> str:
        """Return the name of a bridge's network."""
        return f"{self.machine.name}-{bridge}"

    def config(
        self, containerid: str = "c1", *, bridge: int = 0, ifname: str = "eth0", **keys: Any
    ) -> Json:
        """Return firewall's configuration behind the bridge's."""
        config: Json = {
            "cniVersion": "1.1.0",
            "name": self.network(bridge),
            "type": "firewall",
            "prevResult": self.results[f"{containerid} {ifname}"],
            **keys,
        }
        return {key: value for key, value in config.items() if value is not None}

    def ok(self, command: str, containerid: str = "c1", **keys: Any) -> Json:
        """Run firewall for a container that was attached."""
        config = self.config(containerid, **keys)
        return self.call(command, config, containerid, ifname=keys.get("ifname", "eth0"))

    def call(self, command: str, config: Json, containerid: str = "c1", **attachment: Any) -> Json:
        """Run firewall, which must succeed."""
        netns = "" if command in ("GC", "STATUS") else self.netns.get(containerid, "")
        attachment = {"netns": netns, **attachment}
        return self.machine.ok(
            "firewall",
            command,
            config,
            attachment.pop("netns"),
            containerid=containerid,
            **attachment,
        )

    def admitted(self, *containerids: str, bridge: int = 0, **keys: Any) -> None:
        """Attach containers and let them through."""
        for containerid in containerids:
            self.attach(containerid, bridge)
            self.ok("ADD", containerid, bridge=bridge, **keys)

    def address(self, version: int, containerid: str = "c1", ifname: str = "eth0") -> str:
        """Return a container's address."""
        texts = [ip["address"] for ip in self.results[f"{containerid} {ifname}"]["ips"]]
        (found,) = (text for text in texts if (":" in text) == (version == 6))
        return str(found.partition("/")[0])

    def reaches(self, source: str, target: str, version: int = 4) -> bool:
        """Tell whether a container, or "outside", can talk by TCP to another."""
        return self.reach((source, target, version)) == [True]

    def reach(self, *calls: tuple[str, str, int]) -> list[bool]:
        """Tell the same of several at once: source, target, IP version."""
        ports = range(80, 80 + len(calls))
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(self._reaches, calls, ports))

    def _reaches(self, call: tuple[str, str, int], port: int) -> bool:
        source, target, version = call
        where = {**self.netns, "outside": self.outside}
        address = OUTSIDE[version] if target == "outside" else self.address(version, target)
        everywhere = "0.0.0.0" if version == 4 else "::"
        with serving(where[target], "tcp", port, [everywhere]) as (server,):
            return bool(asks(where[source], server, address, port))

    def saved(self, version: int = 4, flavour: str = "") -> list[str]:
        """Return table filter as iptables-save shows it, counters left out."""
        command = COMMANDS[version] + (f"-{flavour}" if flavour else "")
        text = self.machine.command(self.host, f"{command}-save", "-t", "filter")
        lines = re.sub(r" \[\d+:\d+\]", "", text).splitlines()
        return [line for line in lines if line[0] in ":-"]

    def rules(self, version: int = 4, flavour: str = "", chain: str = "CNI-FORWARD") -> list[str]:
        """Return the rules of a chain."""
        prefix = f"-A {chain} "
        return [
            line[len(prefix) :] for line in self.saved(version, flavour) if line.startswith(prefix)
        ]

    def records(self) -> list[Path]:
        """Return firewall's records."""
        return list(Path(self.machine.state_dir, "attachments").glob("firewall-*"))

    def own(self) -> list[Json]:
        """Return what is in nftables tables of ours."""
        return [entry for entry in self.machine.nft() if "pycni" in str(entry)]
