"""netavark, podman's program for networks, as a peer: the same attachment by setup and teardown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench.columns import ROOT, BenchError, Call, Column
from bench.networks import IFNAME, PATH
from bench.samples import NETAVARK

if TYPE_CHECKING:
    from bench.networks import Attachment

PORTS = (0, 4)
_DEBIANS = ROOT / ".tools" / "netavark" / "usr" / "lib" / "podman" / "netavark"
_STATE = "/run/pycni/netavark"  # in the column's own mount
_VERBS = {"ADD": "setup", "DEL": "teardown"}


def program() -> Path:
    """Return the path of netavark: the variable NETAVARK, else Debian's."""
    return Path(os.environ.get("NETAVARK") or _DEBIANS)


def column(driver: Path) -> Column:
    """Return netavark's column. Raises BenchError where the program is not there."""
    if not program().exists():
        raise BenchError("the program is not there; set NETAVARK, or use Debian's package")
    return Column(NETAVARK, program().parent, driver)


def call(command: str, attachment: Attachment) -> Call:
    """Return the ADD or DEL of an attachment, as podman has it done."""
    options = json.dumps(_options(attachment))
    arguments = ("--config", _STATE, _VERBS[command], attachment.netns)
    return Call(program(), {"PATH": PATH}, options, arguments)


def _options(attachment: Attachment) -> dict[str, object]:
    """Return netavark's NetworkOptions. podman chooses the address; masquerading is always on."""
    network = attachment.network
    host = 256 + int(attachment.containerid, 16) % 60_000
    return {
        "container_id": attachment.containerid,
        "container_name": attachment.containerid[-12:],
        "port_mappings": [
            {
                "host_ip": "",
                "host_port": one["hostPort"],
                "container_port": one["containerPort"],
                "protocol": one["protocol"],
                "range": 1,
            }
            for one in attachment.mappings()
        ],
        "networks": {
            network.name: {
                "static_ips": [f"{network.prefix4}.{host // 256}.{host % 256}"],
                "interface_name": IFNAME,
            }
        },
        "network_info": {
            network.name: {
                "name": network.name,
                "id": network.name.encode().hex().ljust(64, "0"),
                "driver": "bridge",
                "network_interface": network.bridge,
                "subnets": [
                    {"subnet": network.subnets[0], "gateway": f"{network.prefix4}.0.1"},
                ],
                "ipv6_enabled": False,
                "internal": False,
                "dns_enabled": False,
                "ipam_options": {"driver": "host-local"},
            }
        },
    }
