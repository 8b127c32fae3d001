"""PROFILE of static, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.names import parse_address, parse_cidr
from cni_common.spec.profile import IPAM, Advice, Profile
from plugins.static import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    config = req.config
    addresses = config.get("ipam", {}).get("addresses", ())
    by_args = config.get("args", {}).get("cni", {}).get("ips", ())
    if addresses and by_args:
        yield Advice(
            "L505",
            ("ipam", "addresses"),
            '"args.cni.ips" replaces these addresses, and their gateways go with them',
        )
    if not addresses and not by_args and not config.get("capabilities", {}).get("ips"):
        yield Advice(
            "L404",
            ("ipam",),
            'there is no address but what a caller gives in CNI_ARGS: set "addresses", or have the'
            ' runtime give them by "capabilities": {"ips": true}',
        )
    for number, entry in enumerate(addresses):
        try:
            cidr = parse_cidr(entry.get("address", ""))
            gateway = parse_address(entry.get("gateway") or str(cidr.ip))
        except ValueError:
            continue  # refused by `parse`
        if gateway not in cidr.network and not gateway.is_link_local:
            yield Advice(
                "L501",
                ("ipam", "addresses", number, "gateway"),
                f"gateway {gateway} is outside of {cidr.network}, the subnet of {cidr}: the"
                " container has no route to it",
            )


PROFILE = Profile(IPAM, Conf.of, _facts)
