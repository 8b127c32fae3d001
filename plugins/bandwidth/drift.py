"""CHECK: whether the limits are as ADD made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import drifted
from plugins.bandwidth import ifb, parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.spec.errors import CNIError
    from cni_common.spec.request import Request
    from plugins.bandwidth.conf import Conf


def check(req: Request, host: Host, conf: Conf) -> Iterator[CNIError]:
    """Yield a finding for each difference from ADD's result."""
    ours = parts.host_veth(req, host)
    channel = host.netns.netlink.channel
    inward, outward = parts.shapers(conf, ours.mtu)
    if inward:
        yield from map(drifted, inward.differences(channel, ours))
    block = _ifb(req, host, ours) if outward else None
    if outward and block is None:
        yield drifted(f"what '{ours.name}' receives is not redirected to the attachment's ifb")
    if outward and block:
        if not block.up:
            yield drifted(f"interface '{block.name}' is down", f"run 'ip link set {block.name} up'")
        yield from map(drifted, outward.differences(channel, block))


def _ifb(req: Request, host: Host, ours: Link) -> Link | None:
    """Return the ifb of the container's egress, None if nothing is redirected to it."""
    targets = ifb.redirections(host.netns, ours)
    index = max(targets, default=0)
    block = host.netns.netlink.link_at(index) if index > 0 and len(targets) == 1 else None
    is_ours = block and block.kind == ifb.KIND and block.name in ifb.names_of(req)
    return block if is_ours else None
