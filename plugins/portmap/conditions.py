"""Networks with conditions: maps of their own, behind rules that `nft` makes of the text.

The text is in nft's language, so `nft` reads it; it runs once for a network, not for an attachment.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_common.kernel import iptables
from cni_common.kernel.netlink import NetlinkError
from cni_common.kernel.nft_layout import TABLE
from cni_common.spec.errors import CNIError, Code
from plugins.portmap import layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cni_common.kernel.netns import NetNS

_WORDS = {4: ("ipv4", "ip"), 6: ("ipv6", "ip6")}


def ensure(netns: NetNS, suffix: str, conditions: Mapping[int, Sequence[str]]) -> None:
    """Make the chain and the maps of these conditions unless they are there.

    Raises CNIError 7; NetlinkError ENOENT if the base was removed meanwhile.
    """
    chain = layout.PORTS + suffix
    if TABLE.has_chain(netns, chain):
        return
    binary = iptables.find("nft", why="conditions for nftables need it; install it")
    # "create" refuses an existing chain, so no second jump is added.
    lines = [*_lines(chain, suffix, conditions)]
    done = iptables.run(netns, [binary, "-f", "-"], "".join(f"{line}\n" for line in lines))
    if not done.returncode or TABLE.has_chain(netns, chain):
        return
    errors = [*_errors(done.stderr)]
    why = errors[0][1] if errors else done.stderr.strip()
    # Only the lines between have words of the user: a base that others remove is no fault of these.
    if not TABLE.has_chain(netns, layout.CONDITIONS) or {1, len(lines)} & {at for at, _ in errors}:
        text = f"add the chain '{chain}', whose base others may have removed: {why}"
        raise NetlinkError(errno.ENOENT, text)
    raise CNIError(Code.INVALID_CONFIG, f"nft refuses the conditions {dict(conditions)}: {why}")


def _errors(text: str) -> Iterator[tuple[int, str]]:
    """Return the line and the words of each error in what nft(8) says: "FILE:LINE:COLUMNS: …"."""
    for said in text.splitlines():
        place, found, words = said.partition(": Error: ")
        line = place.split(":")[1:2]
        if found and line and line[0].isdecimal():
            yield int(line[0]), words


def _lines(chain: str, suffix: str, conditions: Mapping[int, Sequence[str]]) -> Iterator[str]:
    table = f"inet {TABLE.name}"
    port = "inet_proto . inet_service"
    yield f"create chain {table} {chain}"
    for version, family in layout.FAMILIES.items():
        word, header = _WORDS[version]
        address = f"{word}_addr"
        for name, key in ((family.ports, port), (family.at, f"{address} . {port}")):
            what = f"type {key} : {address} . inet_service;"
            yield f"create map {table} {name}{suffix} {{ {what} }}"
        match = f"meta nfproto {word} {' '.join(conditions.get(version, ()))}"
        for name, what in (
            (family.at, f"{header} daddr . meta l4proto . th dport"),
            (family.ports, "meta l4proto . th dport"),
        ):
            target = f"dnat {header} to {what} map @{name}{suffix}"
            yield f"add rule {table} {chain} {match} {target}"
    # Before the jump for ranges, whose chain looks up all other ports, too.
    yield f"insert rule {table} {layout.CONDITIONS} jump {chain}"
