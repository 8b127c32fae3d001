"""The objects that a call has made on a node, as a flat table to compare two nodes by.

A table that is kept, as a golden answer, has only the rows that a plugin has to do with: `brief`
leaves out what the kernel does by itself, which another kernel does otherwise, and `complete` puts
in what this one does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tests.e2e.node import Done, Node

Table = dict[str, str]

_SEPARATOR = "\x1e"
_VETH = re.compile(r"veth[0-9a-f]{8}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_LINK = ("mtu", "txqlen", "qdisc", "linkmode", "group", "promiscuity", "master")
# What the kernel counts, derives from names and MACs that are random, or notices some time later:
# the state of a port follows its carrier.
_VOLATILE = re.compile(
    r"timer|_id$|^id$|^no$|^root_|fdb_n_|designated|topology_change|^config_pend|^state$"
)
_CHAIN = re.compile(r"CNI-[0-9a-f]{24}")
_NETWORKS = "/var/lib/cni/networks"

# Every list of one namespace at once: a process each would take longer than the plugins do.
_LISTS = f"""
for list in '-d link' '-d addr' '-d -4 route show table all' '-d -6 route show table all' \
    '-4 rule' '-6 rule'; do
    ip -j $list
    printf '{_SEPARATOR}'
done
grep -s -r . /proc/sys/net/ipv[46]/conf /proc/sys/net/ipv[46]/neigh
echo /proc/sys/net/ipv4/ip_forward:$(cat /proc/sys/net/ipv4/ip_forward)
printf '{_SEPARATOR}'
grep -H . /sys/class/net/*/addr_assign_type
true
"""


def state_of(node: Node, *containers: str) -> Table:
    """Return what there is on the node and in the containers, random names and MACs masked."""
    table: Table = {}
    for netns in ("", *containers):
        where = netns.rpartition("/")[2] or "host"
        output = node.command("sh", "-c", _LISTS, netns=netns).split(_SEPARATOR)
        links, addresses, routes4, routes6, rules4, rules6, sysctls, assigned = output
        for text, rows in (
            (links, _link_rows),
            (addresses, _address_rows),
            (routes4, _route_rows),
            (routes6, _route_rows),
            (rules4, _rule_rows),
            (rules6, _rule_rows),
        ):
            for entry in json.loads(text or "[]"):
                table |= {f"{where} {path}": value for path, value in rows(entry) if entry}
        for line in sysctls.splitlines():
            path, _, value = line.partition(":")
            if "stable_secret" not in path:
                table[f"{where} sysctl {path.removeprefix('/proc/sys/')}"] = value
        for line in [] if netns else assigned.splitlines():  # /sys is the node's everywhere
            _, _, _, _, name, value = line.split("/")
            table[f"host link {name} addr_assign_type"] = value.partition(":")[2]
    table |= _file_rows(node) | _firewall_rows(node)
    return {mask(path): mask(value) for path, value in table.items()}


def table_of(done: Done, node: Node) -> Table:
    """Return a reply as a table; a MAC that is the interface's own is not told in figures."""
    reply = json.loads(done.stdout or "{}")
    for interface in reply.get("interfaces", ()):
        link = node.link(interface.get("sandbox", ""), interface["name"])
        if link and link["address"] == interface.get("mac"):
            interface["mac"] = "that of the interface"
    plain = json.dumps(json.loads(done.stdout), indent=4) if done.stdout else ""
    table = {f"reply{path}": value for path, value in _flat(reply)} | {
        "exit status": str(done.returncode),
        "reply is indented by 4 and ends without newline": str(done.stdout == plain),
    }
    return {mask(path): mask(value) for path, value in table.items()}


def differences(reference: Table, ours: Table) -> list[str]:
    """Return a line for each entry that differs, and one when keys stand in another order."""
    lines = [
        f"{path}: {reference.get(path, 'absent')} -> {ours.get(path, 'absent')}"
        for path in sorted(reference.keys() | ours.keys())
        if reference.get(path) != ours.get(path)
    ]
    orders = [
        [path for path in one if path.startswith("reply.") and path in other]
        for one, other in ((reference, ours), (ours, reference))
    ]
    if orders[0] != orders[1]:
        lines.append(f"order of keys: {orders[0]} -> {orders[1]}")
    return lines


# A bridge with a port, as the kernel makes them when nothing is asked for.
_PLAIN = """
ip netns add plain
ip -n plain link add plain0 type bridge
ip -n plain link add plain1 type veth peer name plain2
ip -n plain link set plain1 master plain0
for name in plain2 plain1 plain0; do ip -n plain link set $name up; done
ip -n plain -j -d link
ip netns delete plain
"""
_SYSCTL = re.compile(r"(\S+ sysctl net/ipv[46]/(conf|neigh)/)[^/]+(/\w+)")
_DEFAULTS = {"conf": "default", "neigh": "lo"}  # what has the values that interfaces begin with
_USUAL = {
    "linkmode": "DEFAULT",
    "group": "default",
    "promiscuity": "0",
    "master": "None",
    "info_data": "{}",
    "info_slave_data": "{}",
    "valid_life_time": "4294967295",
    "preferred_life_time": "4294967295",
}
_LAST_WORD = re.compile(r"\w+$")
_INFO = re.compile(r"(?P<link>\S+ link \S+) (?P<key>info_(slave_)?data\..+)")
_ABSENT = "absent"


@cache
def plain_link(node: Node) -> Table:
    """Return the rows `info_data` of a plain bridge, and `info_slave_data` of a plain port."""
    links = json.loads(node.command("sh", "-ec", _PLAIN))
    rows = [row for link in links for row in _link_rows(link)]
    return {path.split(" ", 2)[2]: mask(value) for path, value in rows if " info_" in path}


def brief(table: Table, before: Table, plain: Table) -> list[str]:
    """Return the rows, as lines, that are not as before, and not as the kernel makes them."""
    rows = {p: v for p, v in table.items() if _by_itself(p, table, before, plain) != v}
    if before.keys() & table.keys():  # it is not a reply alone
        rows |= {path: _ABSENT for path in before if path not in table}
    return [f"{path} = {value}" for path, value in rows.items()]


def complete(lines: Sequence[str], ours: Table, before: Table, plain: Table) -> Table:
    """Return the table of which `brief` has kept these lines, for a node like ours."""
    kept = dict(line.split(" = ", 1) for line in lines)
    rest = {p: _by_itself(p, ours, before, plain) for p in ours if p not in kept}
    return {path: value for path, value in (kept | rest).items() if value not in (None, _ABSENT)}


def _by_itself(path: str, table: Table, before: Table, plain: Table) -> str | None:
    """Return the value that a row has when no plugin has asked for another one, None: no value."""
    if path in before:
        return before[path]
    if found := _SYSCTL.fullmatch(path):
        return table.get(f"{found[1]}{_DEFAULTS[found[2]]}{found[3]}")
    if found := _INFO.fullmatch(path):
        is_bridge_or_port = found[3] or table.get(f"{found['link']} info_kind") == '"bridge"'
        return plain.get(found["key"]) if is_bridge_or_port else None
    found = _LAST_WORD.search(path)
    return _USUAL.get(found[0]) if found else None


def mask(text: str) -> str:
    """Return `text` without names and MACs that are random."""
    return _MAC.sub("<mac>", _VETH.sub("<veth>", text))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of `value` with its path, in the order of the text."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, json.dumps(value)


def _link_rows(link: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not link or link["ifname"] in ("up0", "ext0"):
        return
    name = f"link {link['ifname']}"
    info = link.get("linkinfo", {})
    for key in _LINK:
        yield f"{name} {key}", str(link.get(key))
    yield f"{name} flags", " ".join(sorted(set(link["flags"]) - {"NO-CARRIER", "LOWER_UP"}))
    if info.get("info_kind") != "bridge":  # which notices later that it lost its last port
        yield f"{name} operstate", _settled_state(link)
    for key in ("info_kind", "info_data", "info_slave_data"):
        for path, value in _flat(info.get(key, {}), f" {key}"):
            if not _VOLATILE.search(path.rpartition(".")[2]):
                yield f"{name}{path}", value


def _settled_state(link: Mapping[str, Any]) -> str:
    """Return the state that a link with a carrier has, or gets when the kernel comes to it."""
    state = str(link["operstate"])
    return "UP" if state == "DOWN" and "LOWER_UP" in link["flags"] else state


def _address_rows(link: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for info in link.get("addr_info", ()):
        if info["scope"] == "link" or link["ifname"] in ("up0", "ext0"):
            continue
        rest = {key: value for key, value in info.items() if key not in ("local", "prefixlen")}
        name = f"address {link['ifname']} {info['local']}/{info['prefixlen']}"
        yield name, "there"
        yield from _flat(rest, name)


def _route_rows(route: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own = route["dst"].startswith(("fe80:", "ff00:"))
    if own or route.get("dev") in ("up0", "ext0"):
        return  # comes and goes with carriers, as do the addresses that the kernel makes up
    key = ("type", "dst", "table", "dev", "gateway", "metric")
    name = "route " + " ".join(f"{word} {route[word]}" for word in key if word in route)
    yield name, " ".join(sorted(set(route["flags"]) - {"linkdown"}))
    yield from _flat({k: v for k, v in route.items() if k not in (*key, "flags")}, name)


def _rule_rows(rule: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"rule {' '.join(f'{key} {value}' for key, value in rule.items())}", "there"


def _file_rows(node: Node) -> Table:
    table = {}
    for name, content in node.files().items():
        if name.startswith(_NETWORKS):
            table[f"file {name}"] = repr(content)
            table[f"mode of {name}"] = f"{node.path(name).stat().st_mode & 0o777:o}"
        else:
            table[f"files in {name.rpartition('/')[0]}"] = "there"
    return table


def _firewall_rows(node: Node) -> Table:
    """Return iptables' rules word for word, and which other tables there are."""
    table = {}
    for command in ("iptables-save", "ip6tables-save"):
        lines = [
            _CHAIN.sub("CNI-<digest>", line)
            for line in node.command(command).splitlines()
            if "CNI-" in line
        ]
        if lines:
            table[f"firewall {command}"] = " | ".join(lines)
    for line in node.command("nft", "list", "tables").splitlines():
        if not line.startswith(("table ip ", "table ip6 ")):
            table[f"firewall {line}"] = "there"
    return table
