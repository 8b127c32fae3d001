"""PROFILE of bandwidth, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.profile import CHAINED, Advice, Need, Profile
from plugins.bandwidth.conf import Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.profile import Fact
    from cni_common.spec.request import Request


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    conf = Conf.of(req)
    by_runtime = req.config.get("capabilities", {}).get("bandwidth")
    if not conf and not by_runtime:
        yield Advice(
            "L404",
            (),
            "there is no limit, and the runtime does not tell this plugin one: set rates, or add"
            ' "capabilities": {"bandwidth": true}',
        )
    kind = "htb" if conf.subnets else "tbf"
    yield Need("queue", kind, module=f"sch_{kind}")
    if conf.egress or by_runtime:
        yield Need("link", "ifb")


PROFILE = Profile(CHAINED, Conf.of, _facts)
