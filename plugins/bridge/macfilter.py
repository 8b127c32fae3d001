"""macspoofchk: frames from a container must have its own MAC as their source.

`table bridge pycni` has a set of guarded ports and a set of their (port, MAC) pairs; a frame that
arrives on a guarded port and matches no pair is dropped. An attachment has one element in each set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel import nft_expressions, nft_layout, nft_table
from cni_common.kernel.nft_layout import Chain, Layout, Set
from cni_common.kernel.nft_table import interface_key, interface_name
from cni_common.spec.errors import CNIError, Code, drifted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_layout import Key, Rule
    from cni_common.spec.request import Attachment

TABLE = nft_table.Table(nft_table.BRIDGE, "pycni")
_REFERENCE, _REFERENCE_CHAIN = nft_table.Table(nft_table.BRIDGE, "nat"), "PREROUTING"
_CHAIN, _GUARDED, _ALLOWED = "prerouting", "guarded_ports", "allowed_macs"


def _drop() -> Iterator[Rule]:
    yield [
        nft_expressions.iifname(),
        nft_expressions.lookup(_GUARDED),
        nft_expressions.iifname(),
        nft_expressions.ether_saddr(),
        nft_expressions.lookup(_ALLOWED, invert=True),
        nft_expressions.verdict(nft_table.DROP),
    ]


LAYOUT = Layout(
    TABLE,
    (Set(_GUARDED, nft_table.IIFNAME_KEY), Set(_ALLOWED, nft_table.IIFNAME_ETHER_KEY)),
    (
        Chain(
            _CHAIN,
            _drop,
            ("filter", nft_table.PREROUTING, nft_layout.BRIDGE_DSTNAT),
        ),
    ),
)


def probe(host: NetNS) -> None:
    """Raise CNIError 50 if nftables cannot be used, as `masquerade.probe` does."""
    try:
        TABLE.has_chain(host, _CHAIN)
    except OSError as error:
        raise CNIError(
            Code.PLUGIN_NOT_AVAILABLE,
            f"nftables cannot be used: {error.strerror}; load nf_tables or leave out macspoofchk",
        ) from None


def add(host: NetNS, port: str, mac: str) -> None:
    """Accept only frames from `mac` on `port`. Raises NetlinkError."""
    LAYOUT.add(host, [TABLE.add_element(*key) for key in _keys(port, mac)])


def put_back(host: NetNS, port: str, mac: str) -> None:
    """Make what `add` made and is missing. Raises NetlinkError."""
    keys = _keys(port, mac)
    found = TABLE.present(host, keys)
    lost = [key for key, element in zip(keys, found, strict=True) if element is None]
    nft_table.apply(host, [*LAYOUT.base(), *(TABLE.add_element(*key) for key in lost)])


def remove(host: NetNS, port: str, mac: str) -> None:
    """Remove the elements of `add`. Raises NetlinkError."""
    _remove_elements(host, _keys(port, mac))


def check(host: NetNS, port: str, mac: str) -> Iterator[CNIError]:
    """Yield a finding for each thing without which frames with another MAC could pass."""
    if TABLE.element(host, _GUARDED, interface_key(port)) is None:
        yield drifted(f"'{port}' is no longer in the MAC filter's set '{_GUARDED}'")
    if TABLE.element(host, _ALLOWED, _pair(port, mac)) is None:
        yield drifted(f"MAC {mac} of '{port}' is no longer in the MAC filter's set '{_ALLOWED}'")
    yield from map(drifted, LAYOUT.drift(host))


def holds(host: NetNS, port: str, mac: str) -> list[bool]:
    """Tell of each element of `add` whether it exists."""
    return [found is not None for found in TABLE.present(host, _keys(port, mac))]


def orphans(host: NetNS) -> list[str]:
    """Return the guarded ports whose interface is gone."""
    names = [interface_name(element.key) for element in TABLE.elements(host, _GUARDED)]
    return [name for name in names if host.netlink.link(name) is None]


def orphans_of_reference(host: NetNS) -> list[tuple[str, str]]:
    """Return port, and container with interface, of the reference's filters of gone ports."""
    found = []
    for rule in _REFERENCE.rules(host, _REFERENCE_CHAIN):
        prefix, _, name = rule.comment.partition("-")
        port = interface_name(b"".join(rule.compared[:1]))
        if prefix == "macspoofchk" and port and host.netlink.link(port) is None:
            found.append((port, name))
    return found


def gc(host: NetNS) -> list[str]:
    """Remove the filters of gone ports, ours and the reference's; describe each."""
    removed = []
    for port in orphans(host):
        remove_port(host, port)
        removed.append(f"MAC filter of port '{port}', which is gone")
    for port, owner in orphans_of_reference(host):
        remove_named_of_reference(host, owner)
        removed.append(f"MAC filter of {owner}, whose port '{port}' is gone")
    return removed


def remove_port(host: NetNS, port: str) -> None:
    """Remove all elements of `port`."""
    name = interface_key(port)
    pairs = [e.key for e in TABLE.elements(host, _ALLOWED) if e.key.startswith(name)]
    _remove_elements(host, [(_GUARDED, name), *((_ALLOWED, pair) for pair in pairs)])


def remove_of_reference(host: NetNS, attachment: Attachment) -> None:
    """Remove the chains of the reference's macspoofchk for this attachment."""
    remove_named_of_reference(host, f"{attachment.containerid}-{attachment.ifname}")


def remove_named_of_reference(host: NetNS, name: str) -> None:
    """Remove the chains of the reference's macspoofchk for `name`: container and interface."""
    chains = (f"cni-br-iface-{name}", f"cni-br-iface-{name}-mac")
    deletions = [
        _REFERENCE.delete_rule(_REFERENCE_CHAIN, rule.handle)
        for rule in _REFERENCE.rules(host, _REFERENCE_CHAIN)
        if rule.comment == f"macspoofchk-{name}" or rule.target == chains[0]
    ]
    present = [chain for chain in chains if _REFERENCE.has_chain(host, chain)]
    deletions += [_REFERENCE.delete_rule(chain) for chain in present]
    deletions += [_REFERENCE.delete_chain(chain) for chain in present]
    if deletions:
        nft_table.apply(host, deletions)


def _remove_elements(host: NetNS, keys: Sequence[Key]) -> None:
    LAYOUT.remove(host, keys)
    # Also if nothing was removed: a DEL may have been killed right after it removed these.
    LAYOUT.remove_if_unused(host)


def _keys(port: str, mac: str) -> list[Key]:
    return [(_ALLOWED, _pair(port, mac)), (_GUARDED, interface_key(port))]


def _pair(port: str, mac: str) -> bytes:
    return interface_key(port) + bytes.fromhex(mac.replace(":", "")) + bytes(2)
