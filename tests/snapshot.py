"""Snapshots: what a namespace has, comparable, once the kernel has done what it does by itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import lru_cache
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.machine import Json

# What `ip` is asked for one; `table all` has both families.
LISTINGS = ("link", "addr", "route show table all", "rule")
_KINDS = ("links", "addresses", "routes", "rules")
# What changes by itself, or says only in which order things were made.
_VOLATILE = {
    "handle",
    "index",
    "stats64",
    "tentative",
    "stats",
    "valid_life_time",
    "preferred_life_time",
    "flags",
    "gc_timer",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "forward_delay_timer",
    "hold_timer",
    "message_age_timer",
    "fdb_n_learned",
    "metainfo",
}
_NEVER_UP = {"UNKNOWN", "DORMANT"}  # the state, for good, of what cannot tell that it has a carrier


def steady(entry: Any) -> Any:
    """Return an entry of `ip -j` or `nft -j` without what changes by itself."""
    if isinstance(entry, dict):
        # What the element of a set has counted.
        counted = {"counter"} if "val" in entry else set()
        # A new interface that is down has no state until the kernel looks, up to a second later.
        state = {"operstate"} if "UP" not in entry.get("flags", ["UP"]) else set()
        unsteady = _VOLATILE | counted | state
        return {key: steady(value) for key, value in entry.items() if key not in unsteady}
    if isinstance(entry, list):
        return [steady(item) for item in entry]
    return entry


def of_listings(lines: list[str]) -> dict[str, list[str]]:
    """Return what `ip` said to each of LISTINGS, comparable."""
    return {kind: _listed(line) for kind, line in zip(_KINDS, lines, strict=True)}


def pending(lines: list[str]) -> Iterator[str]:
    """Tell what the kernel is still about to change by itself, by the answers to LISTINGS.

    An interface learns of its carrier a moment after it has one, and IPv6 begins with its addresses
    then: a link-local address has its route when the kernel has looked for its duplicates. An
    interface that is deleted goes before its routes do.
    """
    addresses, routes = (list(filter(None, json.loads(line or "[]"))) for line in lines[1:3])
    names = {link["ifname"] for link in addresses}
    yield from (f"a route of {one['dev']} is left" for one in routes if is_going(one, names))
    local = {(one.get("dev"), one["dst"]) for one in routes if one.get("type") == "local"}
    for link in addresses:
        name, flags, state = link["ifname"], link["flags"], link["operstate"]
        has_carrier = "LOWER_UP" in flags
        if "UP" in flags and state not in _NEVER_UP and has_carrier != (state == "UP"):
            yield f"{name} is {state} with {flags}"
        for address in link["addr_info"] if has_carrier else ():
            ip = str(ip_interface(address["local"]).ip)
            if not address.get("dadfailed") and (name, ip) not in local:
                yield f"{ip} of {name} has no route yet"


def is_going(route: Json, names: Collection[str]) -> bool:
    """Tell whether the interface of a route is none of those there are, with these names."""
    return "dev" in route and route["dev"] not in names


def changes(before: object, after: object, where: str = "") -> list[str]:
    """Return the entries that are in one of two snapshots, each with where it stands."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        pairs = [(f"{where} {key}", before.get(key), after.get(key)) for key in keys]
        return [line for place, old, new in pairs for line in changes(old, new, place)]
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"-{where}: {one}" for one in before if one not in after]
        found = gone + [f"+{where}: {one}" for one in after if one not in before]
        return found or ([] if before == after else [f"{where}: in another number or order"])
    return [] if before == after else [f"-{where}: {before}", f"+{where}: {after}"]


@lru_cache(64)
def _listed(line: str) -> list[str]:
    """Return the entries of a listing, comparable; of one that came before, those of then."""
    return sorted(
        json.dumps(steady(one), sort_keys=True) for one in json.loads(line or "[]") if one
    )
