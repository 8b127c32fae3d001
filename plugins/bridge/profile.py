"""PROFILE of bridge, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.ipam_config import ipam_type
from cni_common.spec.profile import (
    INTERFACE,
    Advice,
    HostLink,
    Need,
    Profile,
    Setting,
    without_effect,
)
from plugins.bridge.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    config, ipam = req.config, ipam_type(req.config)
    name = config.get("bridge", "cni0")
    gateway = bool(config.get("isGateway") or config.get("isDefaultGateway"))
    key = "isGateway" if config.get("isGateway") else "isDefaultGateway"
    # With a VLAN another interface gets them; with forceAddress they replace others.
    exclusive = gateway and not (config.get("vlan") or config.get("forceAddress"))
    yield HostLink(name, ("bridge",), "bridge", made=True, gateway=(key,) if exclusive else ())
    if mtu := config.get("mtu"):
        yield Setting(f"bridge '{name}'", "mtu", mtu, ("mtu",))
    if config.get("ipMasq") and ipam and not gateway:
        yield Advice(
            "L504",
            ("ipMasq",),
            '"ipMasq" masquerades what the node forwards, and without "isGateway" the node is no'
            ' gateway of this network: set "isGateway", or leave "ipMasq" out',
        )
    yield from without_effect(
        config,
        ("isGateway", '"ipam": the bridge gets the gateways of its addresses', bool(ipam)),
        ("isDefaultGateway", '"ipam": the route leads to the gateway of an address', bool(ipam)),
        ("ipMasq", '"ipam": addresses are masqueraded', bool(ipam)),
        ("ipMasqBackend", '"ipMasq"', bool(config.get("ipMasq"))),
        ("forceAddress", '"isGateway"', gateway),
        (
            "preserveDefaultVlan",
            '"vlan" or "vlanTrunk"',
            bool(config.get("vlan")) or "vlanTrunk" in config,
        ),
    )
    yield from _needs(req)


def _needs(req: Request) -> Iterator[Need]:
    config = req.config
    yield Need("link", "bridge")
    yield Need("link", "veth")
    if config.get("ipMasq"):
        yield Need(config.get("ipMasqBackend", "nftables"), "nat", ("ipMasq",))
        yield Need("forwarding", "", ("ipMasq",))
    elif config.get("isGateway") or config.get("isDefaultGateway"):
        yield Need("forwarding", "", ("isGateway",))
    if config.get("macspoofchk"):
        yield Need("nftables", "bridge", ("macspoofchk",))


PROFILE = Profile(INTERFACE, Conf.of, _facts)
