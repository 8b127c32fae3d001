"""Port mappings in the reference's iptables layout, and the removal of the reference's mappings.

Rules are appended, so that a Service of kube-proxy takes precedence over a host port
(CVE-2019-9946). One iptables-restore per family makes all rules of an attachment, or none.
"""

from __future__ import annotations

import re
from functools import partial
from hashlib import sha512
from typing import TYPE_CHECKING

from cni_common.kernel import iptables, nft_table
from cni_common.node.record import Lock
from plugins.portmap.route_localnet import DNAT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from cni_common.kernel.netlink import Message
    from cni_common.kernel.netns import NetNS
    from cni_common.kernel.nft_table import Table
    from cni_common.node.host import Host
    from cni_common.spec.names import Cidr
    from cni_common.spec.request import Attachment
    from plugins.portmap.conf import Conf, Port

SETMARK, MASQUERADE = "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
_COUNTED = re.compile(  # a rule as `iptables -S -v` has it
    r"(?: -d (\S+)/\d+)? -p (\w+) .*--dport (\d+) -c (\d+) (\d+) -j DNAT --to-destination (\S+)$"
)
_HOOKS = ("PREROUTING", "OUTPUT", "POSTROUTING")
_PORTS_MAX = 15  # ports of a multiport match
_WHY = 'the iptables backend needs it; install it or set "backend": "nftables"'
_REFERENCE = {
    4: nft_table.Table(nft_table.IPV4, "cni_hostport"),
    6: nft_table.Table(nft_table.IPV6, "cni_hostport"),
}


def chain_of(network: str, attachment: Attachment) -> str:
    """Return the chain of one attachment; the reference has one chain per container."""
    # With separators, which no name can contain: "a" and "bc" are not "ab" and "c".
    return _chain(" ".join((network, attachment.containerid, attachment.ifname)))


def add(host: Host, conf: Conf, network: str, attachment: Attachment) -> None:
    """Map the ports of `conf`. Raises CNIError."""
    chain = chain_of(network, attachment)
    mark = iptables.comment(network, attachment.containerid, "dnat ")
    for version, cidr in sorted(conf.addresses.items()):
        ports = [port for port in conf.singles() if port.serves(version)]
        if not ports:
            continue
        command = iptables.COMMANDS[version]
        restore = iptables.find(f"{command}-restore", why=_WHY)
        with Lock(host.records):
            present = iptables.listing(host.netns, iptables.find(command, why=_WHY))
            commands = [*_shared(conf, present), f":{chain} - [0:0]"]
            commands += [f"-D{line[2:]}" for line in present if _leads_to(line, chain)]
            for port in ports:
                commands += [f"-A {chain} {rule}" for rule in _rules(conf, port, cidr)]
            for match in _entries(list(conf.singles())):
                conditions = "".join(f" {_quoted(token)}" for token in conf.conditions[version])
                commands.append(f"-A {DNAT} {mark} {match}{conditions} -j {chain}")
            iptables.restore(host.netns, restore, commands)


def remove(host: Host, chain: str) -> None:
    """Remove the rules and chain of `add`."""
    with Lock(host.records):
        for version in iptables.COMMANDS:
            _remove_chain(host.netns, version, chain)


def check(netns: NetNS, conf: Conf, network: str, attachment: Attachment) -> Iterator[str]:
    """Yield each difference from the result of `add`."""
    chain = chain_of(network, attachment)
    for version, cidr in conf.addresses.items():
        ports = [port for port in conf.singles() if port.serves(version)]
        if not ports:
            continue
        command = iptables.COMMANDS[version]
        binary = next(iter(iptables.binaries(netns, version, chain)), "")
        rules = iptables.listed(netns, binary, chain) if binary else []
        for port in ports:
            if not any(_maps(line, port, cidr) for line in rules):
                yield f"the {command} rule of host port {port} in {chain} is missing"
        jumps = iptables.listed(netns, binary, DNAT)
        if not any(_leads_to(line, chain) for line in jumps):
            yield f"no {command} rule of {DNAT} leads to {chain}"


def counted(netns: NetNS, chain: str) -> Iterator[tuple[str, int, int]]:
    """Yield each port of an attachment's chain with where it leads, and its packets and bytes.

    Only the first packet of a connection passes the table nat.
    """
    for version in iptables.COMMANDS:
        for binary in iptables.binaries(netns, version, chain):
            for line in iptables.counted(netns, binary, chain):
                found = _COUNTED.search(line)
                if found:
                    at, protocol, port, packets, size, target = found.groups()
                    where = f"{at} " if at else ""
                    yield f"{where}{port}/{protocol} to {target}", int(packets), int(size)


def is_there(netns: NetNS, chain: str) -> bool:
    """Tell whether an attachment's chain exists."""
    return any(iptables.binaries(netns, version, chain) for version in iptables.COMMANDS)


def is_led_to(netns: NetNS, chain: str) -> bool:
    """Tell whether a rule leads host ports to an attachment's chain, in each table that has it."""
    binaries = [one for v in iptables.COMMANDS for one in iptables.binaries(netns, v, chain)]
    return all(
        any(_leads_to(line, chain) for line in iptables.listed(netns, binary, DNAT))
        for binary in binaries
    )


def bare(netns: NetNS, chain: str) -> Iterator[str]:
    """Yield what else an attachment's chain needs and is missing, in words."""
    for version, command in iptables.COMMANDS.items():
        for binary in iptables.binaries(netns, version, chain):
            lines = iptables.listing(netns, binary)
            if not any(line.startswith(f"-A {chain} ") for line in lines):
                yield f"rules of {command} chain {chain}"
            for hook in _HOOKS[:2]:
                jumps = (one for one in lines if one.startswith(f"-A {hook} "))
                if not any(one.endswith(f" -j {DNAT}") for one in jumps):
                    yield f"{command} rule of {hook} that leads to {DNAT}"
            is_marked = any(one.endswith(f" -j {SETMARK}") for one in lines)
            if is_marked and not any(one.endswith(f" -j {MASQUERADE}") for one in lines):
                yield f"{command} rule of {_HOOKS[2]} that leads to {MASQUERADE}"


def remove_of_reference(host: Host, conf: Conf, network: str, containerid: str) -> None:
    """Remove the mappings of the reference's portmap for this container, with either backend.

    The reference's nftables rules name the container alone. Only those for the ports and addresses
    of `conf` are removed: the others may be another network's.
    """
    name = _chain(network + containerid)
    for chain in (name, name.replace("-DN-", "-SN-")):
        remove(host, chain)
    ports = {port.host_port.to_bytes(2, "big") for port in conf.singles()}
    for version, table in _REFERENCE.items():
        own = conf.addresses.get(version)
        address = {own.ip.packed} if own else set()
        for chain, wanted in (("hostports", ports), ("masquerading", address)):
            deletions = partial(_deletions, host.netns, table, chain, (containerid, wanted))
            nft_table.apply_deletions(host.netns, deletions)


def _deletions(
    netns: NetNS, table: Table, chain: str, owned: tuple[str, Collection[bytes]]
) -> list[Message]:
    """Return the deletions of the rules that have a comment and compare with one of some values."""
    comment, values = owned
    return [
        table.delete_rule(chain, rule.handle)
        for rule in table.rules(netns, chain)
        if rule.comment == comment and not set(rule.compared).isdisjoint(values)
    ]


def probe(netns: NetNS) -> None:
    """Raise CNIError 50 if iptables is not installed, OSError if there could be no look at it."""
    iptables.find("iptables-restore", why=_WHY)
    is_there(netns, DNAT)


def _chain(text: str) -> str:
    return f"CNI-DN-{sha512(text.encode('utf-8', 'surrogateescape')).hexdigest()[:21]}"


def _leads_to(line: str, chain: str) -> bool:
    return line.startswith(f"-A {DNAT} ") and line.endswith(f" -j {chain}")


def _maps(line: str, port: Port, cidr: Cidr) -> bool:
    wanted = f"--dport {port.host_port} -j DNAT --to-destination {_target(port, cidr)}"
    at = f" -d {port.only_at}/" if port.only_at else ""
    return line.endswith(wanted) and f" -p {port.protocol} " in line and at in line


def _shared(conf: Conf, present: Sequence[str]) -> Iterator[str]:
    """Yield the commands that make the missing chains and rules that all mappings share."""
    to_local = f"-m addrtype --dst-type LOCAL -j {DNAT}"
    wanted = {DNAT: [f"-A PREROUTING {to_local}", f"-A OUTPUT {to_local}"]}
    if conf.snat and not conf.mark_chain:
        mark = f"0x{1 << conf.mark_bit:x}/0x{1 << conf.mark_bit:x}"
        what = '-m comment --comment "CNI portfwd masquerade mark"'
        wanted[SETMARK] = [f"-A {SETMARK} {what} -j MARK --set-xmark {mark}"]
        jump = (
            f'POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j {MASQUERADE}'
        )
        wanted[MASQUERADE] = [
            f"-A {MASQUERADE} -m mark --mark {mark} -j MASQUERADE",
            f"-A {jump}",
        ]
    for chain, rules in wanted.items():
        if f"-N {chain}" not in present:
            yield f"-N {chain}"
        for rule in rules:
            if rule not in present:
                # This rule comes first, as in the reference.
                yield rule.replace("-A ", "-I ", 1) if "POSTROUTING" in rule else rule


def _rules(conf: Conf, port: Port, cidr: Cidr) -> Iterator[str]:
    at = f" -d {port.only_at}" if port.only_at else ""
    match = f"-p {port.protocol} --dport {port.host_port}{at}"
    if conf.snat:
        chain = conf.mark_chain or SETMARK
        anywhere = "0.0.0.0/0" if cidr.version == 4 else "::/0"
        yield f"{match} -s {anywhere if conf.masquerade_all else cidr.network} -j {chain}"
        if cidr.version == 4 and not conf.masquerade_all:
            yield f"{match} -s 127.0.0.1 -j {chain}"
    yield f"{match} -j DNAT --to-destination {_target(port, cidr)}"


def _target(port: Port, cidr: Cidr) -> str:
    address = f"[{cidr.ip}]" if cidr.version == 6 else str(cidr.ip)
    return f"{address}:{port.container_port}"


def _entries(ports: Sequence[Port]) -> Iterator[str]:
    """Yield the matches of all ports, at most _PORTS_MAX in one."""
    for protocol in sorted({port.protocol for port in ports}):
        numbers = [str(port.host_port) for port in ports if port.protocol == protocol]
        numbers = list(dict.fromkeys(numbers))
        for start in range(0, len(numbers), _PORTS_MAX):
            some = ",".join(numbers[start : start + _PORTS_MAX])
            yield f"-m multiport -p {protocol} --destination-ports {some}"


def _quoted(token: str) -> str:
    escaped = token.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _remove_chain(netns: NetNS, version: int, chain: str) -> None:
    for binary in iptables.binaries(netns, version, chain):
        jumps = [line for line in iptables.listed(netns, binary, DNAT) if _leads_to(line, chain)]
        commands = [f"-D{line[2:]}" for line in jumps]
        iptables.restore(netns, f"{binary}-restore", [*commands, f"-F {chain}", f"-X {chain}"])
        _remove_shared(netns, binary)


def _remove_shared(netns: NetNS, binary: str) -> None:
    """Remove the shared chains and rules if there are no mappings, the reference's included."""
    present = iptables.listing(netns, binary)
    chains = [chain for chain in (DNAT, SETMARK, MASQUERADE) if f"-N {chain}" in present]
    rules = [line for line in present if line.startswith("-A ")]
    own = [line for line in rules if line.split()[1] in chains]
    jumps = [line for line in rules if line.split()[-1] in chains and line not in own]
    is_used = any(line.split()[1] == DNAT for line in own)
    if is_used or any(line.split()[1] not in _HOOKS for line in jumps):
        return
    commands = [f"-D{line[2:]}" for line in jumps]
    commands += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
    iptables.restore(netns, f"{binary}-restore", commands)
