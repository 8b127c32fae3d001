"""PROFILE of host-local, by which lint and doctor check a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.kernel.route import RT_SCOPE_LINK
from cni_common.spec.errors import CNIError
from cni_common.spec.ipam_config import parse_routes
from cni_common.spec.profile import IPAM, Advice, Need, Pool, Profile
from plugins.host_local import DEFAULT_DATA_DIR, Conf
from plugins.host_local.ranges import parse_sets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.spec.names import Subnet
    from cni_common.spec.profile import Fact, Path
    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json
    from plugins.host_local.ranges import Range


def _facts(req: Request) -> Iterator[Fact]:
    """Yield what follows from a configuration."""
    ipam = req.config.get("ipam", {})
    yield Need("directory", ipam.get("dataDir", DEFAULT_DATA_DIR), ("ipam", "dataDir"))
    if ipam.get("resolvConf"):
        yield Need("readable", ipam["resolvConf"], ("ipam", "resolvConf"))
    if ipam.get("closed"):
        yield Advice(
            "L506", ("ipam", "closed"), 'every ADD is refused as long as "closed" has a text'
        )
    for path, entry in _entries(ipam):
        one = _parsed(entry)
        if one is None:
            continue  # refused by `parse`
        yield Pool(one.subnet, one.first, one.last, (*path, "subnet"), one.gateway)
        if not any(one.gateway in net for net in _onlink(ipam)):
            yield from _of_gateway(one, path)


def _entries(ipam: Json) -> Iterator[tuple[Path, Json]]:
    """Yield each range with its path."""
    if ipam.get("subnet"):
        yield ("ipam",), ipam
    for number, entries in enumerate(ipam.get("ranges", ())):
        for index, entry in enumerate(entries):
            yield ("ipam", "ranges", number, index), entry


def _parsed(entry: Json) -> Range | None:
    try:
        return parse_sets([[entry]], several_per_family=True)[0].ranges[0]
    except CNIError:
        return None


def _onlink(ipam: Json) -> list[Subnet]:
    """Return the destinations of routes that need no next hop."""
    try:
        routes = parse_routes(ipam.get("routes", ()))
    except CNIError:
        return []
    return [
        one.dst
        for one in routes
        if (one.gw is not None and one.gw.is_unspecified) or one.scope == RT_SCOPE_LINK
    ]


def _of_gateway(one: Range, path: Path) -> Iterator[Advice]:
    gateway = one.gateway
    if gateway not in one.subnet and not gateway.is_link_local:
        yield Advice(
            "L501",
            (*path, "gateway"),
            f"gateway {gateway} is outside of subnet {one.subnet}: containers have no route to it",
        )
    elif gateway == one.subnet.network_address:
        yield Advice(
            "L501",
            (*path, "gateway"),
            f"gateway {gateway} is the address of subnet {one.subnet} itself, which no host has",
        )
    elif one.subnet.version == 4 and gateway == one.subnet.broadcast_address:
        yield Advice(
            "L501",
            (*path, "gateway"),
            f"gateway {gateway} is the broadcast address of subnet {one.subnet}",
        )


PROFILE = Profile(IPAM, Conf.of, _facts)
