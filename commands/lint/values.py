"""Values that a SCHEMA accepts and that cannot work, in one network or beside another one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

from cni_common.spec import schema, wire
from cni_common.spec.errors import CNIError
from cni_common.spec.names import parse_address, parse_cidr
from cni_common.spec.profile import Advice, Pool, Setting
from cni_common.spec.request import Request
from commands.lint.overlaps import Range, overlaps
from plugins import profile_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from cni_common.node.host import Loader
    from cni_common.spec.names import Address
    from cni_common.spec.profile import Fact, Profile
    from commands.lint.files import Entry, File
    from commands.lint.text import Path

_IPV6_MTU_MIN = 1280  # bytes: RFC 8200, 5
_SCOPE_LINK = 253  # RT_SCOPE_LINK of linux/rtnetlink.h
_WORD = re.compile(r"[^\s\"'\[\](),;]+")
_WORD_MIN = 3  # characters of a key that is recognised in a message without quotes
_RESERVED = tuple(
    (ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "an address of this kind means this network"),
        ("127.0.0.0/8", "it belongs to the loopback interface of each namespace"),
        ("224.0.0.0/4", "it is for multicast"),
        ("240.0.0.0/4", "it is reserved"),
        ("::/127", "it belongs to the loopback interface of each namespace"),
        ("fe80::/10", "every interface has link-local addresses by itself"),
        ("ff00::/8", "it is for multicast"),
    )
)


def facts_of(entry: Entry, load: Loader, *, report: bool = False) -> list[Fact]:
    """Return what the plugin of an entry and its IPAM plugin say of the configuration.

    With `report` what one of them refuses becomes a finding.
    """
    found: list[Fact] = []
    for type in (entry.type, entry.ipam):
        plugin, profile = load(type), profile_of(type)
        if plugin is None or profile is None:
            continue
        try:
            req = _request(entry, plugin.SCHEMA)
        except CNIError:
            continue  # name or version: reported with the file
        found += _facts(entry, profile, req, report=report)
    return found


def check(file: File, load: Loader) -> list[tuple[Entry, list[Fact]]]:
    """Report what cannot work of the values in one network, and return what its plugins say."""
    found = []
    for one in file.entries:
        facts = facts_of(one, load, report=True)
        found.append((one, facts))
        for fact in facts:
            if isinstance(fact, Advice):
                one.report(fact.code, fact.path, fact.text)
        pools = [fact for fact in facts if isinstance(fact, Pool)]
        _check_pools(one, pools)
        _check_destinations(one)
        _check_routes(one, pools)
        _check_dns(one)
    return found


def check_together(known: Iterable[tuple[Entry, list[Fact]]]) -> None:
    """Report what several networks want of the same thing, by what `check` has returned of each."""
    pools: list[tuple[Entry, Pool]] = []
    settings: dict[tuple[str, str], tuple[Entry, Setting]] = {}
    for entry, facts in known:
        for fact in facts:
            if isinstance(fact, Setting):
                first = settings.setdefault((fact.owner, fact.key), (entry, fact))
                _compare(first, entry, fact)
            elif isinstance(fact, Pool):
                pools.append((entry, fact))
    for version in (4, 6):
        _check_overlaps([one for one in pools if one[1].subnet.version == version])


def _request(entry: Entry, part: Any) -> Request:
    """Return the request of a STATUS: it has neither container nor arguments of a runtime."""
    own = {
        key: entry.file.config[key] for key in ("name", "cniVersion") if key in entry.file.config
    }
    data = json.dumps({**entry.given, **own}).encode()
    req = Request.parse({"CNI_COMMAND": "STATUS", "CNI_PATH": "/opt/cni/bin"}, data)
    config, _ = schema.salvage(wire.fold(req.config, part), part)
    return replace(req, config=config, given=config)


def _facts(entry: Entry, profile: Profile, req: Request, *, report: bool) -> list[Fact]:
    try:
        profile.parse(req)
    except CNIError as error:
        wrong = {one.code for one in entry.file.findings}
        if report and "L303" not in wrong:  # else it may follow from that
            words = f"{error.msg}: {error.details}" if error.details else error.msg
            entry.file.report("L304", _path_in(entry, words), words)
        return []
    return list(profile.facts(req))


def _path_in(entry: Entry, words: str) -> Path:
    """Return the path of what a refusal is about: a value that it quotes, else a key."""
    text = entry.file.text
    tokens = [one.strip(".:").removeprefix("ipam.") for one in _WORD.findall(words)]
    keys = {token: path for token in tokens if (path := text.path_of_key(token, entry.path))}
    for token in tokens:
        is_quoted = f'"{token}"' in words or f"'{token}'" in words
        path = text.path_of_text(token, entry.path)
        if path and token not in keys and (is_quoted or not token.isalpha()):
            return path
    if keys and len(longest := max(keys, key=len)) >= _WORD_MIN:
        return keys[longest]
    return (*entry.path, "ipam") if "range" in words else entry.path


# --- one network ---


def _check_pools(entry: Entry, pools: Sequence[Pool]) -> None:
    mtu = entry.given.get("mtu")
    has_ipv6 = any(one.subnet.version == 6 for one in pools)
    if isinstance(mtu, int) and 0 < mtu < _IPV6_MTU_MIN and has_ipv6:
        text = f"IPv6 needs {_IPV6_MTU_MIN} bytes at least, and the kernel turns it off below"
        entry.report("L507", ("mtu",), text)
    for one in pools:
        for block, what in _RESERVED:
            if block.version == one.subnet.version and one.subnet.overlaps(block):
                text = f"no container can have an address of {one.subnet}: {what}"
                entry.report("L508", one.path, text)
                break


def _check_routes(entry: Entry, pools: Sequence[Pool]) -> None:
    ipam = entry.given.get("ipam")
    routes = ipam.get("routes") if isinstance(ipam, dict) else None
    by_runtime = entry.given.get("capabilities", {})
    if not pools or not isinstance(routes, list) or not isinstance(by_runtime, dict):
        return
    if any(by_runtime.get(key) for key in ("ipRanges", "ips")):
        return  # the runtime adds addresses that are not known here
    onlink = [dst for one in routes if _is_onlink(one) and (dst := _net(one))]
    reachable = [*(one.subnet for one in pools), *onlink]
    families = {one.subnet.version for one in pools}
    for index, one in enumerate(routes):
        dst = _net(one)
        if dst is not None and dst.version not in families:
            text = f"no container has an IPv{dst.version} address: the route to {dst} is of no use"
            entry.report("L509", ("ipam", "routes", index, "dst"), text)
        hop = _address(one.get("gw")) if isinstance(one, dict) else None
        if (
            hop
            and not (hop.is_link_local or hop.is_unspecified)
            and not any(hop in subnet for subnet in reachable)
        ):
            text = f"{hop} is in none of the subnets, so that the kernel refuses the route"
            entry.report("L510", ("ipam", "routes", index, "gw"), text)


def _check_destinations(entry: Entry) -> None:
    ipam = entry.given.get("ipam")
    routes = ipam.get("routes") if isinstance(ipam, dict) else None
    for index, one in enumerate(routes if isinstance(routes, list) else ()):
        dst = _net(one)
        if dst is not None and _address(one["dst"].partition("/")[0]) != dst.network_address:
            text = f'"{one["dst"]}" is an address, and the route is to {dst}: write that'
            entry.report("L512", ("ipam", "routes", index, "dst"), text)


def _check_dns(entry: Entry) -> None:
    for path in (("dns",), ("ipam", "dns")):
        value: Any = entry.given
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        servers = value.get("nameservers") if isinstance(value, dict) else None
        for index, one in enumerate(servers if isinstance(servers, list) else ()):
            if isinstance(one, str) and _address(one) is None and "%" not in one:
                text = f'"{one}" is no address, and resolvers ignore it'
                entry.report("L511", (*path, "nameservers", index), text)


def _is_onlink(route: Any) -> bool:
    """Tell whether a route says that its destination needs no next hop."""
    if not isinstance(route, dict):
        return False
    hop = _address(route.get("gw"))
    return route.get("scope") == _SCOPE_LINK or (hop is not None and hop.is_unspecified)


def _net(route: Any) -> Any:
    try:
        return parse_cidr(route["dst"]).network
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # refused by the plugin


def _address(text: Any) -> Address | None:
    try:
        return parse_address(text) if isinstance(text, str) and text else None
    except ValueError:
        return None


# --- several networks ---


def _compare(first: tuple[Entry, Setting], entry: Entry, fact: Setting) -> None:
    other, before = first
    if before.value == fact.value:
        return
    place = other.file.place((*other.path, *before.path))
    entry.report(
        "L503",
        fact.path,
        f'"{fact.key}" of {fact.owner} is {json.dumps(fact.value)} here and'
        f" {json.dumps(before.value)} in {place}: it can have one value",
    )


def _check_overlaps(pools: Sequence[tuple[Entry, Pool]]) -> None:
    """Report the pools of one IP version that overlap with an earlier one of another network."""
    ranges = [Range(entry.file.name, int(one.first), int(one.last)) for entry, one in pools]
    for index, earlier in overlaps(ranges):
        (entry, pool), (other, before) = pools[index], pools[earlier]
        place = other.file.place((*other.path, *before.path))
        entry.report(
            "L502",
            pool.path,
            f"{pool.first} to {pool.last} overlaps with {before.first} to {before.last} of"
            f' network "{other.file.name}" in {place}: two containers get the same address',
        )
