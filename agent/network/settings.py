"""The operator's choices for the network between nodes, and the constants of its objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.leases import DIRECTORY

if TYPE_CHECKING:
    from agent.cluster import Network

DIRECT, VXLAN, WIREGUARD, AUTO = "direct", "vxlan", "wireguard", "auto"
MODES = (AUTO, DIRECT, VXLAN, WIREGUARD)

# The rtm_protocol of our routes (linux/rtnetlink.h: 4 and more are free for routing daemons). None
# of the names that iproute2 has in rt_protos has this number.
PROTOCOL = 112
# The IFLA_GROUP of our devices: a device is made in it, so a kill leaves none without the mark.
GROUP = 112
VXLAN_DEVICE, WIREGUARD_DEVICE = "pycni-vxlan", "pycni-wg"
BRIDGE_DEVICE = "pycni0"  # of pods; the plugin makes it
# Bytes that an overlay adds to a packet of a pod, by the IP version between the nodes: vxlan has
# Ethernet 14, VXLAN 8, UDP 8 (RFC 7348), WireGuard has header 16, tag 16, UDP 8; IP has 20 or 40.
OVERHEAD = {
    DIRECT: {4: 0, 6: 0},
    VXLAN: {4: 50, 6: 70},
    WIREGUARD: {4: 60, 6: 80},
}
OVERHEAD[AUTO] = OVERHEAD[VXLAN]  # a pod's MTU must not depend on where the next node will be


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices for the network between nodes; all nodes need the same mode, VNI and ports."""

    mode: str = AUTO
    uplink: str = ""  # name of the device to other nodes; "": the one with the node's address
    vni: int = 4242  # 1 to 16777215 (24 bits)
    vxlan_port: int = 4789  # UDP, RFC 7348
    wireguard_port: int = 51820  # UDP
    state_dir: str = "/var/lib/cni/pycni-agent"  # has the WireGuard key, mode 0700
    masquerade: bool = True
    masquerade_config: str = (
        ""  # path of a file in the format of ip-masq-agent, which may be absent
    )
    pods_state_dir: str = "/run/pycni"  # has the attachment records; "": pods are not repaired
    host_root: str = "/proc/1/root"  # of the host, as the agent sees it
    unmasqueraded: tuple[Network, ...] = ()  # beside the ranges of all nodes' pods
    leases: Path = Path(DIRECTORY, "pycni")  # host-local's directory of the pods' network
