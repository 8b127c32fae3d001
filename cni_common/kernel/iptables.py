"""Masquerading in the reference plugins' iptables layout, and the removal of what they left.

Data reaches iptables through stdin only; what exists is asked of netlink, so that the usual case,
nothing there, starts no process.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess  # noqa: TID253 - this module is loaded only to run iptables
from dataclasses import dataclass
from hashlib import sha512
from ipaddress import ip_address, ip_interface
from itertools import pairwise
from typing import TYPE_CHECKING

from cni_common.kernel import nft_table
from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_messages import Rule
    from cni_common.spec.names import Address, Cidr
    from cni_common.spec.request import Attachment

# By IP version: command, netfilter family, multicast range.
_FAMILIES = {
    4: ("iptables", nft_table.IPV4, "224.0.0.0/4"),
    6: ("ip6tables", nft_table.IPV6, "ff00::/8"),
}
_REFERENCE_TABLE = nft_table.Table(nft_table.INET, "cni_plugins_masquerade")
_REFERENCE_CHAIN = "masq_checks"
_POSTROUTING = "POSTROUTING"
_WAIT_SECONDS = "5"  # for the xtables lock
_RUN_SECONDS = 30
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"  # the caller's may be empty
_WHY = 'the iptables backend needs it; install it or set "ipMasqBackend": "nftables"'
_NAME_MAX = 110  # characters of each of two names, as a comment can have 255


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule of POSTROUTING that leads packets from one address to a masquerading chain."""

    chain: str
    network: str
    containerid: str
    source: Address


def add(netns: NetNS, network: str, attachment: Attachment, addresses: Sequence[Cidr]) -> None:
    """Masquerade what `addresses` send to outside of their subnets. Raises CNIError."""
    chain = chain_of(network, attachment)
    mark = comment(network, attachment.containerid)
    for version, (command, _, multicast) in _FAMILIES.items():
        own = [cidr for cidr in addresses if cidr.version == version]
        if not own:
            continue
        # Every subnet is accepted before anything is masqueraded.
        rules = [f"-A {chain} -d {cidr.network} {mark} -j ACCEPT" for cidr in own]
        rules.append(f"-A {chain} ! -d {multicast} {mark} -j MASQUERADE")
        rules += [f"-A {_POSTROUTING} -s {cidr.ip} {mark} -j {chain}" for cidr in own]
        restore(netns, find(f"{command}-restore"), [f":{chain} - [0:0]", *rules])


def check(netns: NetNS, network: str, attachment: Attachment, addresses: Sequence[Cidr]) -> str:
    """Return what is no longer as `add` made it, "" when nothing has changed."""
    chain = chain_of(network, attachment)
    for version, (command, *_) in _FAMILIES.items():
        own = [cidr.ip for cidr in addresses if cidr.version == version]
        binary = next(iter(binaries(netns, version, chain) if own else ()), "")
        jumps = _jumps(netns, binary, chain) if binary else []
        for address in own:
            if not any(_is_from(line, address) for line in jumps):
                return f"{command} rule {_POSTROUTING} -s {address} -j {chain} is missing"
        if binary and not any(
            line.endswith("-j MASQUERADE") for line in listed(netns, binary, chain)
        ):
            return f"{command} chain {chain} no longer masquerades"
    return ""


def remove(netns: NetNS, network: str, attachment: Attachment) -> None:
    """Take back what `add` made."""
    _remove_chain(netns, chain_of(network, attachment), ())


def remove_of_reference(
    netns: NetNS, network: str, attachment: Attachment, addresses: Collection[Address]
) -> None:
    """Remove what the reference's bridge or ptp made for this attachment, with either backend.

    Given `addresses`, only the jumps from these go: the reference shares one chain among all
    interfaces of a container on a network.
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
    """Remove the reference's masquerading of what `keep` does not name; return what that was.

    What comes from an address that `is_used` stays. `keep` is asked after a look at the rules.
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
        found = [b for version in _FAMILIES for b in binaries(netns, version, _POSTROUTING)]
    except CNIError as error:
        if error.code != Code.PLUGIN_NOT_AVAILABLE:
            raise
        return  # the table is nftables' own: without iptables nobody has made rules of its kind
    for line in (line for binary in found for line in listed(netns, binary, _POSTROUTING)):
        pairs = dict(pairwise(_words(line)))
        chain = pairs.get("-j", "")
        # name: "<network>" id: "<container>"
        names = _words(pairs.get("--comment", "")) if chain.startswith("CNI-") else []
        if names[:1] == ["name:"] and names[2:3] == ["id:"] and len(names) == 4 and "-s" in pairs:
            yield Jump(chain, names[1], names[3], ip_interface(pairs["-s"]).ip)


def reference_instance(network: str, attachment: Attachment) -> str:
    """Return how the comment of an attachment's rules begins in the reference's nftables layout."""
    owner = _digest(f"{attachment.ifname}:{attachment.containerid}", 16)
    return f"{_digest(network, 16)}-{owner}"


def is_of_network(instance: str, network: str) -> bool:
    """Tell whether a rule with that comment is of `network`."""
    return instance.startswith(f"{_digest(network, 16)}-")


def reference_rules(netns: NetNS) -> list[tuple[str, Address]]:
    """Return comment and source of each rule of the reference's nftables masquerading."""
    rules = _REFERENCE_TABLE.rules(netns, _REFERENCE_CHAIN)
    return [(rule.comment, source) for rule in rules for source in _sources(rule)]


def has_chain(netns: NetNS, chain: str) -> bool:
    """Tell whether `chain` is in a nat table of either flavour of iptables."""
    return any(binaries(netns, version, chain) for version in _FAMILIES)


def chain_of(network: str, attachment: Attachment) -> str:
    """Return the chain of one attachment; the reference has one for all of a container's."""
    # With separators, which no name can contain: "a" and "bc" are not "ab" and "c".
    parts = (network, attachment.containerid, attachment.ifname)
    return f"CNI-{_digest(' '.join(parts), 24)}"


def find(*names: str, why: str = _WHY) -> str:
    """Return the path of the first of these commands that is installed. Raises CNIError 50."""
    for name in names:
        found = shutil.which(name, path=_PATH)
        if found:
            return found
    raise CNIError(Code.PLUGIN_NOT_AVAILABLE, f"'{names[-1]}' is not installed, and {why}")


def installed(name: str) -> str:
    """Return the path of this command, "" when there is none."""
    return shutil.which(name, path=_PATH) or ""


def _delete_reference_rules(netns: NetNS, is_doomed: Callable[[Rule], bool]) -> list[str]:
    doomed: list[Rule] = []

    def deletions() -> list[Message]:
        doomed[:] = filter(is_doomed, _REFERENCE_TABLE.rules(netns, _REFERENCE_CHAIN))
        return [_REFERENCE_TABLE.delete_rule(_REFERENCE_CHAIN, rule.handle) for rule in doomed]

    nft_table.apply_deletions(netns, deletions)
    return [f"nftables rule {rule.comment}" for rule in doomed]


def _sources(rule: Rule) -> list[Address]:
    # The family comes first, one byte, then the source address; the destination is negated.
    return [ip_address(value) for value in rule.compared if len(value) in (4, 16)][:1]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # somebody else's comment, with a quote of its own
        return []


def comment(network: str, containerid: str, what: str = "") -> str:
    """Return the match by which the reference marks a rule as an attachment's."""
    # Names consist of letters, digits and "_.-" alone: they cannot break out of the quotes.
    names = f'{what}name: \\"{network[:_NAME_MAX]}\\" id: \\"{containerid[:_NAME_MAX]}\\"'
    return f'-m comment --comment "{names}"'


def _remove_chain(netns: NetNS, chain: str, addresses: Collection[Address]) -> None:
    """Delete the jumps to `chain` (only from `addresses`, if any), then the chain if it is free."""
    for binary in [b for version in _FAMILIES for b in binaries(netns, version, chain)]:
        jumps = _jumps(netns, binary, chain)
        ours = [
            line
            for line in jumps
            if not addresses or any(_is_from(line, address) for address in addresses)
        ]
        # "-A POSTROUTING …" as iptables listed it, quotes and all, is what -D wants.
        commands = [f"-D{line.removeprefix('-A')}" for line in ours]
        if len(ours) == len(jumps):
            commands += [f"-F {chain}", f"-X {chain}"]
        if commands:
            restore(netns, f"{binary}-restore", commands)


def binaries(netns: NetNS, version: int, chain: str) -> list[str]:
    """Return the commands in whose nat tables `chain` exists: none, or one or both flavours."""
    command, family, _ = _FAMILIES[version]
    found = []
    if nft_table.Table(family, "nat").has_chain(netns, chain):
        found.append(find(f"{command}-nft", command))
    if "nat" in netns.legacy_tables(version):
        legacy = find(f"{command}-legacy", command)
        if _list(netns, legacy, chain).returncode == 0:
            found.append(legacy)
    return found


def _jumps(netns: NetNS, binary: str, chain: str) -> list[str]:
    return [line for line in listed(netns, binary, _POSTROUTING) if line.endswith(f"-j {chain}")]


def _is_from(line: str, address: Address) -> bool:
    return f" -s {address}/{address.max_prefixlen} " in line


def listing(netns: NetNS, binary: str, table: str = "nat") -> list[str]:
    """Return the chains and rules of a table, as commands that would make them."""
    return _list(netns, binary, "", table).stdout.splitlines()


def listed(netns: NetNS, binary: str, chain: str) -> list[str]:
    """Return the rules of `chain` in table nat; none when there is no such chain."""
    lines = _list(netns, binary, chain).stdout.splitlines()
    return [line for line in lines if line.startswith("-A ")]


def _list(
    netns: NetNS, binary: str, chain: str, table: str = "nat"
) -> subprocess.CompletedProcess[str]:
    # `chain` consists of letters, digits and dashes.
    what = [chain] if chain else []
    return run(netns, [binary, "-w", _WAIT_SECONDS, "-t", table, "-S", *what], "")


def restore(netns: NetNS, binary: str, commands: Sequence[str], table: str = "nat") -> None:
    """Carry out commands on a table, all or none."""
    text = "\n".join([f"*{table}", *commands, "COMMIT", ""])
    done = run(netns, [binary, "-w", _WAIT_SECONDS, "--noflush"], text)
    if done.returncode:
        raise CNIError(Code.INTERNAL, f"{binary} failed: {done.stderr.strip()}")


def run(netns: NetNS, command: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside `netns`. No shell, and a bounded time."""

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
        )

    try:
        return netns.run(start)
    except subprocess.TimeoutExpired:
        raise CNIError(
            Code.TRY_AGAIN_LATER, f"{command[0]} did not end within {_RUN_SECONDS} s"
        ) from None


def _digest(text: str, length: int) -> str:
    return sha512(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]
