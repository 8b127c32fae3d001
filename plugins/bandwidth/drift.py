"""CHECK: whether the limits are as ADD made them."""

from cni_common.interface import drift
from plugins.bandwidth import attachment, ifb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.errors import CNIError
    from cni_common.host import Host
    from cni_common.link import Link
    from cni_common.request import Request
    from plugins.bandwidth.conf import Conf


def check(req: "Request", host: "Host", conf: "Conf") -> None:
    """Raise CNIError naming the first thing that differs."""
    ours = attachment.host_veth(req, host)
    channel = host.netns.netlink.channel
    inward, outward = attachment.shapers(conf, ours.mtu)
    difference = inward.difference(channel, ours) if inward else ""
    if outward and not difference:
        difference = outward.difference(channel, _ifb(req, host, ours))
    if difference:
        raise drift(difference)


def _ifb(req: "Request", host: "Host", ours: "Link") -> "Link":
    """Return the ifb that what the container sends goes through. Raises CNIError."""
    targets = ifb.redirections(host.netns, ours)
    if len(targets) != 1:
        raise _lost(ours)
    (index,) = targets
    block = host.netns.netlink.link_at(index) if index > 0 else None
    if block is None or block.kind != ifb.KIND or block.name not in ifb.names_of(req):
        raise _lost(ours)
    if not block.up:
        raise drift(f"interface '{block.name}' is down")
    return block


def _lost(ours: "Link") -> "CNIError":
    return drift(f"what '{ours.name}' receives is not redirected to the attachment's ifb")
