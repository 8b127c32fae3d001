"""Masquerading in the reference plugins' iptables layout, and the removal of their leftovers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha512
from ipaddress import ip_address, ip_interface
from itertools import pairwise
from typing import TYPE_CHECKING

from cni_common.kernel import iptables, nft_table
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_messages import Rule
    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.request import Attachment

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_REFERENCE_TABLE = nft_table.Table(nft_table.INET, "cni_plugins_masquerade")
_REFERENCE_CHAIN = "masq_checks"
_POSTROUTING = "POSTROUTING"
_COUNTED = re.compile(r" -c (\d+) (\d+) -j MASQUERADE$")


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule of POSTROUTING that leads packets from one address to a masquerading chain."""

    chain: str
    network: str
    containerid: str
    source: Address


def add(
    netns: NetNS,
    network: str,
    attachment: Attachment,
    addresses: Sequence[Cidr],
    *,
    again: bool = False,
) -> None:
    """Masquerade packets from `addresses` that leave their subnets. Raises CNIError.

    `again`: part of it may be there, and is replaced.
    """
    chain = chain_of(network, attachment)
    mark = iptables.comment(network, attachment.containerid)
    for version, command in iptables.COMMANDS.items():
        own = [cidr for cidr in addresses if cidr.version == version]
        if not own:
            continue
        # Every subnet is accepted before anything is masqueraded.
        rules = [f"-A {chain} -d {cidr.network} {mark} -j ACCEPT" for cidr in own]
        rules.append(f"-A {chain} ! -d {_MULTICAST[version]} {mark} -j MASQUERADE")
        rules += [f"-A {_POSTROUTING} -s {cidr.ip} {mark} -j {chain}" for cidr in own]
        jumps = _jumps(netns, iptables.find(command), chain) if again else []
        rules = [f":{chain} - [0:0]", *(f"-D{line.removeprefix('-A')}" for line in jumps), *rules]
        iptables.restore(netns, iptables.find(f"{command}-restore"), rules)


def check(
    netns: NetNS, network: str, attachment: Attachment, addresses: Sequence[Cidr]
) -> Iterator[str]:
    """Yield each difference from the result of `add`."""
    chain = chain_of(network, attachment)
    for version, command in iptables.COMMANDS.items():
        own = [cidr.ip for cidr in addresses if cidr.version == version]
        binary = next(iter(iptables.binaries(netns, version, chain) if own else ()), "")
        jumps = _jumps(netns, binary, chain) if binary else []
        for address in own:
            if not any(_is_from(line, address) for line in jumps):
                yield f"{command} rule {_POSTROUTING} -s {address} -j {chain} is missing"
        if binary and not any(
            line.endswith("-j MASQUERADE") for line in iptables.listed(netns, binary, chain)
        ):
            yield f"the MASQUERADE rule of {command} chain {chain} is missing"


def counted(netns: NetNS, network: str, attachment: Attachment, version: int) -> list[int] | None:
    """Return the connections of one IP version that were masqueraded, and bytes of first packets.

    All addresses of an attachment have one rule. None where there is none.
    """
    chain = chain_of(network, attachment)
    for binary in iptables.binaries(netns, version, chain):
        for line in iptables.counted(netns, binary, chain):
            if found := _COUNTED.search(line):
                return [int(number) for number in found.groups()]
    return None


def remove(netns: NetNS, network: str, attachment: Attachment) -> None:
    """Remove the rules and chain of `add`."""
    _remove_chain(netns, chain_of(network, attachment), ())


def remove_of_reference(
    netns: NetNS, network: str, attachment: Attachment, addresses: Collection[Address]
) -> None:
    """Remove the masquerading of the reference's bridge or ptp for this attachment, either backend.

    Given `addresses`, only the jumps from these are removed: the reference shares one chain among
    all interfaces of a container on a network.
    """
    instance = reference_instance(network, attachment)
    _delete_reference_rules(netns, lambda rule: rule.comment.startswith(instance))
    shared = f"CNI-{_digest(network + attachment.containerid, 24)}"
    _remove_chain(netns, shared, addresses)


def gc_of_reference(
    netns: NetNS,
    network: str,
    keep: Callable[[], Collection[Attachment]],
    is_used: Callable[[Address], bool],
) -> list[str]:
    """Remove the reference's masquerading of attachments not in `keep`; describe each.

    Rules of an address that `is_used` stay. `keep` is called after the rules are read.
    """
    jumps = [jump for jump in reference_jumps(netns) if jump.network == network]
    kept = keep()
    instances = {reference_instance(network, attachment) for attachment in kept}
    removed = _delete_reference_rules(
        netns,
        lambda rule: (
            is_of_network(rule.comment, network)
            and rule.comment.partition(",")[0] not in instances
            and not any(is_used(address) for address in _sources(rule))
        ),
    )
    containers = {attachment.containerid for attachment in kept}
    for jump in jumps:
        if jump.containerid not in containers and not is_used(jump.source):
            _remove_chain(netns, jump.chain, ())
            removed.append(f"iptables chain {jump.chain} of {jump.containerid}, {jump.source}")
    return removed


def reference_jumps(netns: NetNS) -> Iterator[Jump]:
    """Yield each masquerade jump in the reference's layout, of any network."""
    try:
        found = _binaries(netns, _POSTROUTING)
    except CNIError as error:
        if error.code != Code.PLUGIN_NOT_AVAILABLE:
            raise
        return  # the table is nftables' own: without iptables there are no rules of iptables
    for line in (line for binary in found for line in iptables.listed(netns, binary, _POSTROUTING)):
        pairs = dict(pairwise(iptables.words(line)))
        chain = pairs.get("-j", "")
        # name: "<network>" id: "<container>"
        names = iptables.words(pairs.get("--comment", "")) if chain.startswith("CNI-") else []
        if names[:1] == ["name:"] and names[2:3] == ["id:"] and len(names) == 4 and "-s" in pairs:
            yield Jump(chain, names[1], names[3], ip_interface(pairs["-s"]).ip)


def reference_instance(network: str, attachment: Attachment) -> str:
    """Return the beginning of the comments of an attachment in the reference's nftables layout."""
    owner = _digest(f"{attachment.ifname}:{attachment.containerid}", 16)
    return f"{_digest(network, 16)}-{owner}"


def is_of_network(instance: str, network: str) -> bool:
    """Tell whether a rule with that comment is of `network`."""
    return instance.startswith(f"{_digest(network, 16)}-")


def reference_rules(netns: NetNS) -> list[tuple[str, Address]]:
    """Return comment and source of each rule of the reference's nftables masquerading."""
    rules = _REFERENCE_TABLE.rules(netns, _REFERENCE_CHAIN)
    return [(rule.comment, source) for rule in rules for source in _sources(rule)]


def chain_of(network: str, attachment: Attachment) -> str:
    """Return the chain of one attachment; the reference has one chain per container."""
    # With separators, which no name can contain: "a" and "bc" are not "ab" and "c".
    parts = (network, attachment.containerid, attachment.ifname)
    return f"CNI-{_digest(' '.join(parts), 24)}"


def _delete_reference_rules(netns: NetNS, is_meant: Callable[[Rule], bool]) -> list[str]:
    found: list[Rule] = []

    def deletions() -> list[Message]:
        found[:] = filter(is_meant, _REFERENCE_TABLE.rules(netns, _REFERENCE_CHAIN))
        return [_REFERENCE_TABLE.delete_rule(_REFERENCE_CHAIN, rule.handle) for rule in found]

    nft_table.apply_deletions(netns, deletions)
    return [f"nftables rule {rule.comment}" for rule in found]


def _sources(rule: Rule) -> list[Address]:
    # The family comes first, one byte, then the source address; the destination is negated.
    return [ip_address(value) for value in rule.compared if len(value) in (4, 16)][:1]


def _remove_chain(netns: NetNS, chain: str, addresses: Collection[Address]) -> None:
    """Delete the jumps to `chain` (only from `addresses`, if any), then the chain if unused."""
    for binary in _binaries(netns, chain):
        jumps = _jumps(netns, binary, chain)
        ours = [
            line
            for line in jumps
            if not addresses or any(_is_from(line, address) for address in addresses)
        ]
        # -D takes the words of "-A POSTROUTING …" as iptables listed them, quotes included.
        commands = [f"-D{line.removeprefix('-A')}" for line in ours]
        if len(ours) == len(jumps):
            commands += [f"-F {chain}", f"-X {chain}"]
        if commands:
            iptables.restore(netns, f"{binary}-restore", commands)


def _binaries(netns: NetNS, chain: str) -> list[str]:
    found = [iptables.binaries(netns, version, chain) for version in iptables.COMMANDS]
    return [binary for binaries in found for binary in binaries]


def _jumps(netns: NetNS, binary: str, chain: str) -> list[str]:
    lines = iptables.listed(netns, binary, _POSTROUTING)
    return [line for line in lines if line.endswith(f"-j {chain}")]


def _is_from(line: str, address: Address) -> bool:
    return f" -s {address}/{address.max_prefixlen} " in line


def _digest(text: str, length: int) -> str:
    return sha512(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]
