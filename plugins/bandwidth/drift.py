"""CHECK: whether the limits are as ADD made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec.errors import drifted
from plugins.bandwidth import ifb, parts

if TYPE_CHECKING:
    from cni_common.kernel.link import Link
    from cni_common.node.host import Host
    from cni_common.spec.errors import CNIError
    from cni_common.spec.request import Request
    from plugins.bandwidth.conf import Conf


def check(req: Request, host: Host, conf: Conf) -> None:
    """Raise CNIError that names the first difference from ADD's result."""
    ours = parts.host_veth(req, host)
    channel = host.netns.netlink.channel
    inward, outward = parts.shapers(conf, ours.mtu)
    difference = inward.difference(channel, ours) if inward else ""
    if outward and not difference:
        difference = outward.difference(channel, _ifb(req, host, ours))
    if difference:
        raise drifted(difference)


def _ifb(req: Request, host: Host, ours: Link) -> Link:
    """Return the ifb of the container's egress. Raises CNIError."""
    targets = ifb.redirections(host.netns, ours)
    if len(targets) != 1:
        raise _lost(ours)
    (index,) = targets
    block = host.netns.netlink.link_at(index) if index > 0 else None
    if block is None or block.kind != ifb.KIND or block.name not in ifb.names_of(req):
        raise _lost(ours)
    if not block.up:
        raise drifted(f"interface '{block.name}' is down")
    return block


def _lost(ours: Link) -> CNIError:
    return drifted(f"what '{ours.name}' receives is not redirected to the attachment's ifb")
