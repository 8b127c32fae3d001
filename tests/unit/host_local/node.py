"""A pretended node: host-local in this process, with its leases and records in a directory."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni_common.node.host import Host
from cni_common.serve.protocol import execute, respond
from plugins import load

NETWORK = "testnet"


@dataclass
class Node:
    """Calls host-local and shows what it left; `log` holds what it logged."""

    root: Path
    log: list[str] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        """The dataDir of `config`."""
        return self.root / "networks"

    @property
    def store(self) -> Path:
        """The directory of the network's leases."""
        return self.data_dir / NETWORK

    def config(self, *subnets: str, **ipam: object) -> dict[str, Any]:
        """Return a configuration with one range set for each of `subnets`."""
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        ipam = {"type": "host-local", "dataDir": str(self.data_dir), "ranges": ranges, **ipam}
        return {"cniVersion": "1.1.0", "name": NETWORK, "type": "bridge", "ipam": ipam}

    def environ(self, command: str, containerid: str, **more: str) -> dict[str, str]:
        """Return the environment of a call."""
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": containerid,
            "CNI_NETNS": "/no/such/netns",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            **more,
        }

    def call(
        self, command: str, config: dict[str, Any], containerid: str = "c1", **environ: str
    ) -> dict[str, Any]:
        """Return what the plugin printed, an empty object for nothing."""
        stdin = json.dumps(config).encode()
        with Host(
            load, "", self.log.append, execute=execute, state_dir=str(self.root / "run")
        ) as host:
            reply = respond(
                "host-local", self.environ(command, containerid, **environ), stdin, host
            )
        output: dict[str, Any] = json.loads(reply.stdout or b"{}")
        assert (reply.exit_code != 0) == ("code" in output)
        return output

    def add(self, config: dict[str, Any], containerid: str = "c1", **environ: str) -> list[str]:
        """Return the addresses that an ADD gave, without their prefix lengths."""
        output = self.call("ADD", config, containerid, **environ)
        assert "code" not in output, output["msg"]
        return [ip["address"].partition("/")[0] for ip in output["ips"]]

    def refusal(
        self, command: str, config: dict[str, Any], containerid: str = "c1", **environ: str
    ) -> str:
        """Return the message of a call that must fail."""
        output = self.call(command, config, containerid, **environ)
        assert "code" in output, output
        return str(output["msg"])

    def lease(self, address: str, text: str, *, age: float = 0) -> None:
        """Write a lease file as the Go plugin does, `age` seconds ago."""
        self.store.mkdir(parents=True, exist_ok=True)
        path = self.store / address
        path.write_bytes(text.encode())
        moment = time.time() - age
        os.utime(path, (moment, moment))

    def leases(self) -> dict[str, str]:
        """Return all files of the store but the lock and the cursors, with their content."""
        found = {}
        for path in sorted(self.store.iterdir()) if self.store.exists() else ():
            if path.name != "lock" and not path.name.startswith("last_reserved"):
                with suppress(FileNotFoundError, IsADirectoryError):  # gone by now, or none
                    found[path.name] = path.read_bytes().decode()
        return found

    def records(self) -> list[str]:
        """Return the names of the attachment records."""
        directory = self.root / "run" / "attachments"
        return sorted(os.listdir(directory)) if directory.exists() else []

    def age_records(self, seconds: float) -> None:
        """Make all attachment records that old."""
        moment = time.time() - seconds
        for name in self.records():
            os.utime(self.root / "run" / "attachments" / name, (moment, moment))
