"""The ifb that shapes a container's egress.

Ingress of an interface cannot be queued. So the host's end of the veth redirects its ingress to an
intermediate functional block device (ifb), whose egress qdisc shapes it.
"""

from __future__ import annotations

import errno
from hashlib import sha512
from typing import TYPE_CHECKING

from cni_common.kernel.link import (
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_TXQLEN,
    decode_link,
    encode_link,
    mac_bytes,
)
from cni_common.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    attribute,
    string,
    u32,
)
from cni_common.kernel.rtnetlink import RTM_NEWLINK
from plugins.bandwidth import tc

if TYPE_CHECKING:
    from cni_common.kernel.link import Link
    from cni_common.kernel.netns import NetNS
    from cni_common.node.host import Host
    from cni_common.spec.request import Request

PREFIX, KIND = "bwp", "ifb"
_QUEUE = 1000  # packets, the kernel's default for real devices


def names_of(req: Request) -> tuple[str, str]:
    """Return the reference's name of the ifb, and the alternative if another interface has that.

    The reference's name does not include the interface; a container may have several on a network.
    """
    text = f"{req.network}{req.containerid}"
    return _name(text), _name(f"{text}{req.ifname}")


def create(host: NetNS, name: str, mac: str, mtu: int) -> Link | None:
    """Create an ifb, up; return None if the name exists. Raises NetlinkError."""
    body = encode_link(
        string(IFLA_IFNAME, name),
        attribute(IFLA_ADDRESS, mac_bytes(mac)),
        u32(IFLA_MTU, mtu),
        u32(IFLA_TXQLEN, _QUEUE),
        attribute(IFLA_LINKINFO, string(IFLA_INFO_KIND, KIND)),
        flags=IFF_UP,
        change=IFF_UP,
    )
    flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK | NLM_F_ECHO
    what = f"create ifb '{name}'"
    try:
        message = Message(what, RTM_NEWLINK, flags, body, decode_link)
        found: list[Link | None] = host.netlink.channel.exchange([message])[0]
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            return None
        raise
    # Linux 6.2 and newer echo the new link.
    link = found[0] if found else host.netlink.link(name)
    if link is None:
        raise NetlinkError(errno.ENODEV, f"{what}: it vanished as soon as it was made")
    return link


def users(host: NetNS, ifb: Link) -> list[Link]:
    """Return the interfaces that redirect their ingress to `ifb`. Slow: queries each veth."""
    links = host.netlink.links()
    return [one for one in links if one.kind == "veth" and ifb.index in redirections(host, one)]


def redirections(host: NetNS, link: Link) -> set[int]:
    """Return the interfaces to which `link` redirects its ingress.

    0 stands for an interface that is gone, tc.NOWHERE for a filter with another action.
    """
    channel = host.netlink.channel
    found = tc.ingress(channel, link.index)
    if found is None or found.kind != "ingress":
        return set()
    return {one.redirect for one in tc.filters(channel, link.index, tc.INGRESS_HANDLE)}


def redirect(ours: Link, ifb: Link) -> list[Message]:
    """Return the messages that redirect all ingress of `ours` to `ifb`."""
    entry = tc.new_qdisc(
        f"take hold of what '{ours.name}' receives",
        ours.index,
        tc.INGRESS,
        tc.INGRESS_HANDLE,
        "ingress",
        b"",
    )
    what = f"redirect what '{ours.name}' receives to '{ifb.name}'"
    return [entry, tc.redirection(what, ours.index, ifb.index)]


def is_ours(link: Link) -> bool:
    """Tell whether `link` is an ifb of this plugin or the reference."""
    return link.kind == KIND and link.name.startswith(PREFIX)


def orphans(host: NetNS) -> list[Link]:
    """Return the ifbs of this plugin or the reference to which nothing is redirected."""
    links = host.netlink.links()
    ours = [link for link in links if is_ours(link)]
    if not ours:
        return []
    used = {index for one in links if one.kind == "veth" for index in redirections(host, one)}
    return [link for link in ours if link.index not in used]


def delete_idle(host: Host, name: str, mac: str) -> bool:
    """Delete an ifb unless an interface redirects to it by now; return whether it was deleted."""
    found = {(one.name, one.mac) for one in orphans(host.netns)}
    return (name, mac) in found and host.delete_link(host.netns, name, mac)


def _name(text: str) -> str:
    return PREFIX + sha512(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
