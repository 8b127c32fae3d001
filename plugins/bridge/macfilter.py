"""macspoofchk: frames from a container must carry its own MAC.

`table bridge pycni` has a set of guarded ports and a set of their (port, MAC) pairs; a frame
that comes in by a guarded port and is in no pair is dropped. An attachment is one element each.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_table
from cni_common.kernel.netlink import NetlinkError
from cni_common.node.veth import drift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.spec.request import Attachment

TABLE = nft_table.Table(nft_table.BRIDGE, "pycni")
_REFERENCE, _REFERENCE_CHAIN = nft_table.Table(nft_table.BRIDGE, "nat"), "PREROUTING"
_GUARDED, _ALLOWED, _CHAIN = "guarded_ports", "allowed_macs", "prerouting"
_DSTNAT = -300  # NF_BR_PRI_NAT_DST_BRIDGED of linux/netfilter_bridge.h


def add(host: NetNS, port: str, mac: str) -> None:
    """Let only frames from `mac` in by `port`."""
    elements = [
        TABLE.add_element(_ALLOWED, _pair(port, mac)),
        TABLE.add_element(_GUARDED, _name(port)),
    ]
    try:
        nft_table.apply(host, elements)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        nft_table.apply(host, [*_base(), *elements])


def remove(host: NetNS, port: str, mac: str) -> None:
    """Take back what `add` made."""
    _remove_elements(host, ((_ALLOWED, _pair(port, mac)), (_GUARDED, _name(port))))


def check(host: NetNS, port: str, mac: str) -> None:
    """Raise CNIError when frames with another MAC could pass."""
    if TABLE.element(host, _GUARDED, _name(port)) is None:
        raise drift(f"'{port}' is no longer in the MAC filter's set '{_GUARDED}'")
    if TABLE.element(host, _ALLOWED, _pair(port, mac)) is None:
        raise drift(f"MAC {mac} of '{port}' is no longer in the MAC filter's set '{_ALLOWED}'")
    if not TABLE.rules(host, _CHAIN):
        raise drift(f"chain '{_CHAIN}' of 'table bridge {TABLE.name}' has lost its rules")


def holds(host: NetNS, port: str, mac: str) -> bool:
    """Tell whether anything of what `add` makes is there."""
    elements = ((_ALLOWED, _pair(port, mac)), (_GUARDED, _name(port)))
    return any(TABLE.element(host, *element) is not None for element in elements)


def orphans(host: NetNS) -> list[str]:
    """Return the guarded ports that are gone."""
    names = [_text(element.key) for element in TABLE.elements(host, _GUARDED)]
    return [name for name in names if host.netlink.link(name) is None]


def orphans_of_reference(host: NetNS) -> list[tuple[str, str]]:
    """Return port, and container with interface, of the reference's filters of ports gone."""
    found = []
    for rule in _REFERENCE.rules(host, _REFERENCE_CHAIN):
        prefix, _, name = rule.comment.partition("-")
        port = _text(b"".join(rule.compared[:1]))
        if prefix == "macspoofchk" and port and host.netlink.link(port) is None:
            found.append((port, name))
    return found


def gc(host: NetNS) -> list[str]:
    """Remove what is left of ports that are gone, whoever made it; return what that was."""
    removed = []
    for port in orphans(host):
        remove_port(host, port)
        removed.append(f"MAC filter of port '{port}', which is gone")
    for port, whose in orphans_of_reference(host):
        remove_named_of_reference(host, whose)
        removed.append(f"MAC filter of {whose}, whose port '{port}' is gone")
    return removed


def remove_port(host: NetNS, port: str) -> None:
    """Remove everything that is about `port`."""
    name = _name(port)
    pairs = [e.key for e in TABLE.elements(host, _ALLOWED) if e.key.startswith(name)]
    _remove_elements(host, [(_GUARDED, name), *((_ALLOWED, pair) for pair in pairs)])


def remove_of_reference(host: NetNS, attachment: Attachment) -> None:
    """Remove what the reference's macspoofchk made for this attachment."""
    remove_named_of_reference(host, f"{attachment.containerid}-{attachment.ifname}")


def remove_named_of_reference(host: NetNS, name: str) -> None:
    """Remove what the reference's macspoofchk made for `name`: container and interface."""
    chains = (f"cni-br-iface-{name}", f"cni-br-iface-{name}-mac")
    doomed = [
        _REFERENCE.delete_rule(_REFERENCE_CHAIN, rule.handle)
        for rule in _REFERENCE.rules(host, _REFERENCE_CHAIN)
        if rule.comment == f"macspoofchk-{name}" or rule.target == chains[0]
    ]
    present = [chain for chain in chains if _REFERENCE.has_chain(host, chain)]
    doomed += [_REFERENCE.delete_rule(chain) for chain in present]
    doomed += [_REFERENCE.delete_chain(chain) for chain in present]
    if doomed:
        nft_table.apply(host, doomed)


def _base() -> list[Message]:
    return [
        TABLE.add(),
        TABLE.add_set(_GUARDED, nft_table.IIFNAME_KEY),
        TABLE.add_set(_ALLOWED, nft_table.IIFNAME_ETHER_KEY),
        TABLE.add_base_chain(_CHAIN, kind="filter", hook=nft_table.PREROUTING, priority=_DSTNAT),
        TABLE.delete_rule(_CHAIN),
        TABLE.add_rule(
            _CHAIN,
            nft_expressions.iifname(),
            nft_expressions.lookup(_GUARDED),
            nft_expressions.iifname(),
            nft_expressions.ether_saddr(),
            nft_expressions.lookup(_ALLOWED, invert=True),
            nft_expressions.verdict(nft_table.DROP),
        ),
    ]


def _remove_elements(host: NetNS, keys: Sequence[tuple[str, bytes]]) -> None:
    def deletions() -> list[Message]:
        present = [key for key in keys if TABLE.element(host, *key)]
        return [TABLE.delete_element(*key) for key in present]

    # Asked for, since a refused transaction takes some ten milliseconds. And where there was
    # nothing to delete: whoever deleted it may have been killed right after.
    if (nft_table.apply_deletions(host, deletions) or TABLE.holds(host)) and TABLE.is_empty(
        host, _GUARDED
    ):
        _remove_base_if_unused(host)


def _remove_base_if_unused(host: NetNS) -> None:
    try:
        nft_table.apply(
            host,
            [
                TABLE.delete_rule(_CHAIN),
                TABLE.delete_chain(_CHAIN),
                TABLE.delete_set(_GUARDED),
                TABLE.delete_set(_ALLOWED),
                TABLE.delete(),
            ],
        )
    except NetlinkError as error:
        if error.errno not in (errno.EBUSY, errno.ENOENT):
            raise


def _name(port: str) -> bytes:
    return port.encode("utf-8", "surrogateescape").ljust(nft_table.IIFNAME_BYTES, bytes(1))


def _text(name: bytes) -> str:
    return name.rstrip(bytes(1)).decode("utf-8", "surrogateescape")


def _pair(port: str, mac: str) -> bytes:
    return _name(port) + bytes.fromhex(mac.replace(":", "")) + bytes(2)
