"""The firewall plugin's configuration: SCHEMA, and its parsed form Conf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code
from cni_common.spec.request import PROTOCOL_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from cni_common.spec.names import Address
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.wire import Json

NFTABLES, IPTABLES, FIREWALLD = BACKENDS = ("nftables", "iptables", "firewalld")
OPEN, SAME_BRIDGE, ISOLATED = POLICIES = ("open", "same-bridge", "isolated")
PLUGIN = "firewall"  # its name in records
ADMIN_CHAIN, ZONE = "CNI-ADMIN", "trusted"
_CHAIN_MAX = 28  # characters of a chain's name in iptables
_NOT_A_CHAIN = {"ACCEPT", "DROP", "RETURN", "QUEUE", "INPUT", "OUTPUT", "FORWARD", "CNI-FORWARD"}

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "backend": {
            "type": "string",
            "enum": ["", *BACKENDS],
            "description": "Firewall backend; empty: firewalld if it runs, else nftables.",
        },
        "ingressPolicy": {
            "type": "string",
            "enum": ["", *POLICIES],
            "description": "Containers that may reach it: all, those of its bridge, or none.",
        },
        "iptablesAdminChainName": {
            "type": "string",
            "description": "Chain of table filter that decides before the plugin's rules.",
        },
        "firewalldZone": {
            "type": "string",
            "description": "Zone of firewalld for the container's addresses.",
        },
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    backend: str  # "" = automatic
    policy: str
    admin_chain: str
    zone: str

    @classmethod
    def of(cls, req: Request) -> Self:
        """Return the configuration in `req`. Raises CNIError 7."""
        config = req.config
        chain = config.get("iptablesAdminChainName") or ADMIN_CHAIN
        if (
            len(chain) > _CHAIN_MAX
            or chain[0] in "-!"
            or chain in _NOT_A_CHAIN
            or not all(char.isascii() and char.isprintable() for char in chain)
            or set(chain) & set(" \"'\\")
        ):
            raise CNIError(
                Code.INVALID_CONFIG,
                f'"iptablesAdminChainName" is {chain!r}: a name of at most {_CHAIN_MAX} characters,'
                " none of them a space or quote, and none that iptables uses itself",
            )
        return cls(
            config.get("backend", ""),
            config.get("ingressPolicy") or OPEN,
            chain,
            config.get("firewalldZone") or ZONE,
        )


def addresses_of(result: Result | None) -> Sequence[Address]:
    """Return the addresses in a result, each once, of any interface, as in the reference."""
    return list(dict.fromkeys(ip.address.ip for ip in result.ips)) if result else []
