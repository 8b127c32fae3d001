"""The tap plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.veth import veth_mtu
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import (
    MAC_PROPERTIES,
    ipam_schema,
    ipam_type,
    own_dns,
    requested_mac,
)
from cni_common.spec.names import check_ifname, is_whole
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema

if TYPE_CHECKING:
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

_ID_MAX = 2**32 - 2  # 2**32 - 1 is no user and no group
_MTU_MAX = 65521  # bytes: 65535 less the Ethernet header (drivers/net/tun.c)

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "multiQueue": key_schema("boolean", "Several queues, each for a descriptor of its own."),
        "mtu": key_schema("integer", "MTU in bytes, 68 to 65521; 0: 1500."),
        "mac": key_schema("string", "MAC of the container's interface; random if absent."),
        "owner": key_schema(
            "integer", "User that may open the tap, by number.", minimum=0, maximum=_ID_MAX
        ),
        "group": key_schema(
            "integer", "Group that may open the tap, by number.", minimum=0, maximum=_ID_MAX
        ),
        "selinuxContext": key_schema("string", "SELinux context of the process that makes it."),
        "bridge": key_schema("string", "Bridge in the container of which it becomes a port."),
        "ipam": ipam_schema("Address management; absent or empty: the network is L2 only."),
        **MAC_PROPERTIES,
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    multi_queue: bool
    mtu: int  # bytes, 0 = the kernel's default
    mac: str  # "" = random
    owner: int | None  # user id, None: the group alone decides
    group: int | None  # group id, likewise; without both every user may
    context: str  # of SELinux, "" = that of the plugin
    bridge: str  # in the container, "" = none
    ipam: str  # type of the IPAM plugin, "" = L2 only
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7, or 4 for CNI_ARGS."""
        config = req.config
        bridge, context = config.get("bridge", ""), config.get("selinuxContext", "")
        if bridge:
            check_ifname(bridge, '"bridge"', Code.INVALID_CONFIG)
        if not is_whole(context):
            raise CNIError(Code.INVALID_CONFIG, '"selinuxContext" has a NUL')
        mtu = veth_mtu(config.get("mtu", 0))
        if mtu > _MTU_MAX:
            raise CNIError(
                Code.INVALID_CONFIG, f'"mtu" is {mtu}, and a tap has {_MTU_MAX} bytes at most'
            )
        return cls(
            multi_queue=config.get("multiQueue", False),
            mtu=mtu,
            mac=requested_mac(req, config.get("mac", "")),
            owner=config.get("owner"),
            group=config.get("group"),
            context=context,
            bridge=bridge,
            ipam=ipam_type(config),
            dns=own_dns(config),
        )
