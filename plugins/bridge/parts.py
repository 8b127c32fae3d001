"""What the attachments of a bridge have beside a veth pair, masquerading and addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.node import lifecycle
from cni_common.node.liveness import Liveness, State, describe, owner_of
from plugins.bridge import macfilter

if TYPE_CHECKING:
    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.spec.names import Cidr
    from cni_common.spec.request import Request
    from cni_common.spec.undo import BestEffort
    from cni_common.spec.wire import Json
    from plugins.bridge.conf import Conf


def user_of_gateway(req: Request, host: Host, conf: Conf, gateway: Cidr) -> str:
    """Describe another network that has containers behind `gateway` that are not GONE, or ""."""
    liveness = Liveness(host)
    for facts in host.records.survey(KIND.plugin):
        if (
            facts.get("network") != req.network
            and facts.get("gateway_interface") == conf.gateway_interface
            and str(gateway) in facts.get("gateways", ())
        ):
            state, reason = liveness.assess(facts)
            if state is not State.GONE:
                owner = describe(owner_of(KIND.plugin, facts), state, reason)
                return f"network '{facts['network']}', for {owner}"
    return ""


def _is_in_bridge(req: Request, host: Host, end: Link) -> bool:
    bridge = host.netns.netlink.link(req.config.get("bridge", "cni0"))
    return end.master == (bridge.index if bridge else 0)


def _dissolve(host: Host, facts: Json, steps: BestEffort) -> None:
    if facts.get("mac_filter"):
        steps.attempt(
            "MAC filter", lambda: macfilter.remove(host.netns, facts["veth"], facts["mac_filter"])
        )


def _dissolve_unrecorded(req: Request, host: Host, steps: BestEffort) -> None:
    steps.attempt("MAC filter", lambda: macfilter.remove_of_reference(host.netns, req.attachment))


def _collect(host: Host, steps: BestEffort) -> None:
    steps.attempt(
        "MAC filters",
        lambda: [host.log(f"GC removes {what}") for what in macfilter.gc(host.netns)],
    )


KIND = lifecycle.Kind(
    "bridge",
    _is_in_bridge,
    dissolve=_dissolve,
    dissolve_unrecorded=_dissolve_unrecorded,
    collect=_collect,
)
