"""PROFILE of portmap, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import ADDRESSES, CHAINED, HOST_PATH, Advice, Need, Profile
from plugins.portmap.conf import NFTABLES, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    config, conf = req.config, Conf.of(req)
    by_runtime = config.get("capabilities", {}).get("portMappings")
    if not by_runtime and not config.get("runtimeConfig", {}).get("portMappings"):
        yield Advice(
            "L404",
            (),
            "the runtime does not tell this plugin the ports, and nothing is mapped: add"
            ' "capabilities": {"portMappings": true}',
        )
    if config.get("masqAll") and not conf.snat:
        yield Advice("L505", ("masqAll",), '"masqAll" does nothing while "snat" is false')
    yield Need(conf.backend, "nat")
    if conf.backend == NFTABLES and any(conf.conditions.values()):
        yield Need("program", "nft", ("conditionsV4",))


PROFILE = Profile(CHAINED, Conf.of, _facts, needs=(ADDRESSES, HOST_PATH))
