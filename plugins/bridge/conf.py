"""The bridge plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.masquerade import BACKENDS
from cni_common.node.veth import veth_mtu
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.ipam_config import (
    MAC_PROPERTIES,
    ipam_schema,
    ipam_type,
    own_dns,
    requested_mac,
)
from cni_common.spec.names import check_ifname
from cni_common.spec.request import PROTOCOL_PROPERTIES
from cni_common.spec.schema import key_schema
from plugins.bridge.vlan import Vlan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

VLAN_MAX = 4094

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "bridge": key_schema("string", 'Name of the bridge on the host; "cni0" if absent.'),
        "isGateway": key_schema(
            "boolean", "Give the bridge the gateway addresses and forward packets."
        ),
        "isDefaultGateway": key_schema(
            "boolean", "As isGateway, and add a default route over the bridge."
        ),
        "forceAddress": key_schema("boolean", "Replace a conflicting address on the bridge."),
        "ipMasq": key_schema("boolean", "Masquerade traffic that leaves the network."),
        "ipMasqBackend": {
            "type": "string",
            "enum": list(BACKENDS),
            "description": 'Masquerade backend; "nftables" if absent.',
        },
        "mtu": key_schema(
            "integer", "MTU of the veth pair and of a new bridge in bytes; 0: the default."
        ),
        "hairpinMode": key_schema("boolean", "Let a container reach itself through the bridge."),
        "promiscMode": key_schema("boolean", "Set the bridge promiscuous."),
        "vlan": key_schema("integer", "VLAN of the port, untagged, 1 to 4094; 0: none."),
        "vlanTrunk": {
            "type": "array",
            "description": "Tagged VLANs of the port.",
            "items": {
                "type": "object",
                "properties": {
                    "minID": key_schema("integer", "First VLAN of a range, 1 to 4094."),
                    "maxID": key_schema("integer", "Last VLAN of a range, 1 to 4094."),
                    "id": key_schema("integer", "A single VLAN, 1 to 4094."),
                },
            },
        },
        "preserveDefaultVlan": key_schema(
            "boolean", "Keep the VLAN that the bridge gives to each new port."
        ),
        "macspoofchk": key_schema(
            "boolean", "Drop frames from the container with another source MAC."
        ),
        "enabledad": key_schema(
            "boolean", "Run IPv6 duplicate address detection in the container."
        ),
        "disableContainerInterface": key_schema(
            "boolean", "Leave the container's interface down (L2 only)."
        ),
        "portIsolation": key_schema("boolean", "Isolate the port from other isolated ports."),
        "ipam": ipam_schema("Address management; absent or empty: the network is L2 only."),
        **MAC_PROPERTIES,
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    masquerade: str  # the backend, "" = none
    mtu: int  # bytes, 0 = the kernel's default
    hairpin: bool
    promiscuous: bool
    vlan: int  # 0 = none
    trunk: Sequence[int]
    vlan_filtering: bool
    preserve_default_vlan: bool
    mac_filter: bool
    dad: bool
    container_down: bool
    isolated: bool
    ipam: str  # type of the IPAM plugin, "" = L2 only
    mac: str  # of the container's interface, "" = random
    dns: Json | None  # replaces the DNS settings of IPAM; None = keeps them

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7, or 4 for CNI_ARGS."""
        config = req.config
        bridge = config.get("bridge", "cni0")
        check_ifname(bridge, '"bridge"', Code.INVALID_CONFIG)
        trunk = config.get("vlanTrunk")
        default_gateway = config.get("isDefaultGateway", False)
        conf = cls(
            bridge=bridge,
            is_gateway=config.get("isGateway", False) or default_gateway,
            is_default_gateway=default_gateway,
            force_address=config.get("forceAddress", False),
            masquerade=config.get("ipMasqBackend", BACKENDS[0]) if config.get("ipMasq") else "",
            mtu=veth_mtu(config.get("mtu", 0)),
            hairpin=config.get("hairpinMode", False),
            promiscuous=config.get("promiscMode", False),
            vlan=_vlan(config.get("vlan", 0)),
            trunk=_trunk(trunk or ()),
            vlan_filtering=bool(config.get("vlan")) or trunk is not None,
            preserve_default_vlan=config.get("preserveDefaultVlan", False),
            mac_filter=config.get("macspoofchk", False),
            dad=config.get("enabledad", False),
            container_down=config.get("disableContainerInterface", False),
            isolated=config.get("portIsolation", False),
            ipam=ipam_type(config),
            mac=requested_mac(req),
            dns=own_dns(config),
        )
        conf._check_combinations()
        return conf

    @property
    def vlans(self) -> list[Vlan]:
        """The VLANs of the port, the untagged one first; empty without `vlan` and `vlanTrunk`."""
        tagged = [Vlan(vid) for vid in self.trunk]
        if self.vlan:
            own = Vlan(self.vlan, pvid=True, untagged=True)
            return [own, *(vlan for vlan in tagged if vlan.vid != self.vlan)]
        if not tagged:
            return []
        # A trunk without a VLAN of its own gets VLAN 1 for untagged frames.
        native = Vlan(1, pvid=True, untagged=True)
        return [native, *(vlan for vlan in tagged if vlan.vid != 1)]

    @property
    def gateway_interface(self) -> str:
        """The interface that carries the gateway addresses."""
        return f"{self.bridge}.{self.vlan}" if self.vlan else self.bridge

    def _check_combinations(self) -> None:
        if self.hairpin and self.promiscuous:
            raise _refuse(
                "cannot set hairpin mode and promiscuous mode at the same time: choose one of"
                ' "hairpinMode" and "promiscMode"'
            )
        if self.ipam and self.container_down:
            raise _refuse(
                "cannot use IPAM when DisableContainerInterface flag is set: remove"
                ' "ipam" or "disableContainerInterface"'
            )
        if self.vlan and self.is_gateway and self.ipam:
            check_ifname(
                self.gateway_interface, "the VLAN's gateway interface", Code.INVALID_CONFIG
            )


def _vlan(vlan: int) -> int:
    if not 0 <= vlan <= VLAN_MAX:
        raise _refuse(f"invalid VLAN ID {vlan} (must be between 0 and {VLAN_MAX})")
    return vlan


def _trunk(entries: Sequence[Json]) -> list[int]:
    vids = 0  # a bit for each: thousands of overlapping ranges cost no more than one
    for number, entry in enumerate(entries):
        least, most = entry.get("minID"), entry.get("maxID")
        where = f"vlanTrunk[{number}]"
        if (least is None) != (most is None):
            missing = "minID" if least is None else "maxID"
            raise _refuse(f"{where}: {missing} is missing, a range needs both minID and maxID")
        for key in ("minID", "maxID", "id"):
            if key in entry and not 1 <= entry[key] <= VLAN_MAX:
                raise _refuse(
                    f"incorrect trunk {key} parameter: {where} has {entry[key]}, it must be"
                    f" 1 to {VLAN_MAX}"
                )
        if least is not None and most is not None:
            if least > most:
                raise _refuse(f"{where}: minID {least} is greater than maxID {most}")
            vids |= (2 << most) - (1 << least)
        if "id" in entry:
            vids |= 1 << entry["id"]
    return [vid for vid in range(1, vids.bit_length()) if vids >> vid & 1]


def _refuse(text: str) -> CNIError:
    return CNIError(Code.INVALID_CONFIG, text)
