"""host-local: gives out addresses of the configured ranges, and stores the leases on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code, drifted, listed
from cni_common.spec.ipam_config import CNI_ARGS, ROUTES_SCHEMA, parse_routes
from cni_common.spec.names import Address, is_absolute, parse_address, parse_cidr, version_tuple
from cni_common.spec.request import PROTOCOL_PROPERTIES, Command
from cni_common.spec.result import IPConfig, Result, Route
from cni_common.spec.schema import key_schema
from plugins.host_local import allocate, choose
from plugins.host_local.lease import PLUGIN, RELEASE_COOLDOWN_MAX, pod_key
from plugins.host_local.ranges import Locator, RangeSet, gateways_outside, parse_sets
from plugins.host_local.store import Store, indexes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.spec.request import Attachment, Request
    from cni_common.spec.undo import Undo
    from cni_common.spec.wire import Json
    from plugins.host_local.lease import Lease

DEFAULT_DATA_DIR = "/var/lib/cni/networks"
_POD_ARGS = frozenset({"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"})


_RANGE: Json = {
    "subnet": key_schema(
        "string", "Subnet of the range, such as 10.0.0.0/24; at most /30 or /126."
    ),
    "rangeStart": key_schema("string", "First address to give out; by default the subnet's first."),
    "rangeEnd": key_schema(
        "string",
        "Last address to give out; by default the subnet's last, less the IPv4 broadcast address.",
    ),
    "gateway": key_schema(
        "string", "Gateway for the container, never given out; by default the subnet's first."
    ),
}
_RANGE_SETS: Json = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "object", "properties": _RANGE}},
}
_ADDRESSES: Json = {"type": "array", "items": {"type": "string"}}

SCHEMA: Json = {
    "type": "object",
    "properties": {
        **PROTOCOL_PROPERTIES,
        "ipam": {
            "type": "object",
            "description": "Settings of the IPAM plugin.",
            "properties": {
                "type": key_schema("string", "File name of the IPAM plugin: host-local."),
                **_RANGE,
                "ranges": {
                    **_RANGE_SETS,
                    "description": "Range sets; an attachment gets one address of each.",
                },
                "routes": ROUTES_SCHEMA,
                "resolvConf": key_schema("string", "File in resolv.conf format, passed on as dns."),
                "dataDir": key_schema(
                    "string",
                    "Directory of the leases, one sub-directory per network.",
                    default=DEFAULT_DATA_DIR,
                ),
                "closed": key_schema(
                    "string",
                    "Why no address is given out now: ADD fails with this reason.",
                ),
                "readinessIndicatorFile": key_schema(
                    "string", "File without which the network is not made: ADD and STATUS fail."
                ),
                "releaseCooldown": key_schema(
                    "integer",
                    "Seconds for which a freed address rests, unless no other is left.",
                    default=0,
                    minimum=0,
                    maximum=RELEASE_COOLDOWN_MAX,
                ),
            },
        },
        "runtimeConfig": {
            "type": "object",
            "description": "Values from the runtime, by capability.",
            "properties": {
                "ipRanges": {**_RANGE_SETS, "description": "Range sets, put before all others."},
                "ips": {**_ADDRESSES, "description": "Requested addresses, at most one per set."},
            },
        },
        "args": {
            "type": "object",
            "description": "Arguments of the runtime, by the CNI conventions.",
            "properties": {
                "cni": {
                    "type": "object",
                    "description": "Arguments for all plugins.",
                    "properties": {
                        "ips": {
                            **_ADDRESSES,
                            "description": "Requested addresses, at most one per set.",
                        }
                    },
                }
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The configuration, complete and consistent."""

    directory: str
    sets: Sequence[RangeSet]
    routes: list[Route]
    resolv_conf: str  # absolute path, or empty
    pod: str  # namespace/name, or empty
    pod_uid: str  # K8S_POD_UID, the same in every try to start the pod, or empty

    def pod_key(self, attachment: Attachment) -> str:
        """Return the key of the pod's interface, the same in every try to start the pod, or ""."""
        return pod_key(self.pod_uid, attachment)

    @classmethod
    def of(cls, req: Request) -> Conf:
        """Return the configuration of `req`. Raises CNIError 7 naming the key, 4 for CNI_ARGS."""
        ipam = req.config.get("ipam")
        if ipam is None:
            raise CNIError(Code.INVALID_CONFIG, "IPAM config missing 'ipam' key")
        sets = list(req.config.get("runtimeConfig", {}).get("ipRanges", ()))
        if ipam.get("subnet"):
            sets.append([{key: ipam[key] for key in _RANGE if key in ipam}])
        sets += ipam.get("ranges", ())
        for key in ("dataDir", "resolvConf", "readinessIndicatorFile"):
            if ipam.get(key) and not is_absolute(ipam[key]):
                raise CNIError(
                    Code.INVALID_CONFIG, f'ipam.{key} "{ipam[key]}" is not an absolute path'
                )
        several = version_tuple(req.cni_version) >= (0, 3, 0)
        # STATUS comes without runtimeConfig: the runtime may pass the ranges to ADD only.
        to_come = req.command == Command.STATUS and req.config.get("capabilities", {}).get(
            "ipRanges"
        )
        args = req.cni_args(CNI_ARGS | _POD_ARGS) if req.command is Command.ADD else {}
        names = [args.get(key, "") for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME")]
        return cls(
            _directory(req),
            parse_sets(sets, several_per_family=several) if sets or not to_come else (),
            parse_routes(ipam.get("routes", ())),
            ipam.get("resolvConf", ""),
            "/".join(names) if all(names) else "",
            args.get("K8S_POD_UID", ""),
        )


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Reserve one address of every range set: all in one transaction, or none.

    Raises CNIError 4, 5, 7, 11 or 999.
    """
    conf = Conf.of(req)
    _require_open(req)
    _require_ready(req, Code.TRY_AGAIN_LATER)
    wanted = choose.assign(conf.sets, _requested(req), req.network)
    dns: Json = {}
    if conf.resolv_conf:
        from plugins.host_local import resolv

        dns = resolv.read(conf.resolv_conf)
    outside = gateways_outside(conf.sets)
    if outside:
        host.log(f"{PLUGIN}: network {req.network}: {listed(outside)}; used all the same")
    choices = allocate.reserve(req, host, undo, conf=conf, wanted=wanted)
    ips = [IPConfig(choice.cidr, choice.range.gateway) for choice in choices]
    return Result(ips=ips, routes=conf.routes, dns=dns)


def delete(req: Request, host: Host) -> None:
    """Free the attachment's leases, in the recorded directory and in the configured one."""
    allocate.release(req, host, _directory(req), rest_seconds=_release_cooldown(req))


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each address of prevResult in its ranges that the attachment lacks."""
    conf = Conf.of(req)
    previous, locator = req.prev_result, Locator(conf.sets)
    expected = [
        ip.address.ip
        for ip in (previous.ips if previous else ())
        if locator.index_of(ip.address.ip) is not None
    ]
    with Store(conf.directory, indexes=indexes_of(host), log=host.log) as store:
        store.lock(for_index=not expected)
        for address in expected:
            yield from _check_held(address, store.lease(address), req.attachment)
        if expected or store.held_by(req.attachment):
            return
    yield drifted(
        f"{PLUGIN}: Failed to find address added by container {req.containerid}"
        f" for {req.ifname} in '{conf.directory}'"
    )


def gc(req: Request, host: Host) -> None:
    """Free the leases of attachments that are gone. Raises an ExceptionGroup."""
    from plugins.host_local import collect

    collect.collect(req, host, _directory(req), rest_seconds=_release_cooldown(req))


def status(req: Request, host: Host) -> None:
    """Raise CNIError 50 if the next ADD would fail. Never waits for the lock."""
    from plugins.host_local.capacity import Capacity

    conf = Conf.of(req)
    _require_ready(req, Code.PLUGIN_NOT_AVAILABLE)
    try:
        host.records.probe()
        with Capacity(conf.directory, host, req.network) as capacity:
            capacity.probe()
            sets = enumerate(conf.sets)
            full = next(((i, one) for i, one in sets if not capacity.has_room(one)), None)
    except (CNIError, OSError) as error:
        reason = error.msg if isinstance(error, CNIError) else f"{error.strerror}: {error.filename}"
        raise CNIError(Code.PLUGIN_NOT_AVAILABLE, f"{PLUGIN}: {reason}") from None
    if full:
        where = f"{PLUGIN}: network {req.network}: range set {full[0]}"
        raise CNIError(Code.PLUGIN_NOT_AVAILABLE, f"{where}: {choose.exhausted(full[1])}")


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    from plugins.host_local.parts import LIFECYCLE

    return LIFECYCLE


def _directory(req: Request) -> str:
    # Used by DEL and GC as well: an invalid configuration must not stop them.
    data_dir = req.config.get("ipam", {}).get("dataDir", "")
    if not is_absolute(data_dir):
        data_dir = DEFAULT_DATA_DIR
    return f"{data_dir.rstrip('/')}/{req.network}"


def _require_open(req: Request) -> None:
    """Raise CNIError 11 if the network gives out no addresses for now.

    STATUS says nothing of it: a node that is not ready loses its running pods as well.
    """
    reason = req.config.get("ipam", {}).get("closed", "")
    if reason:
        raise CNIError(Code.TRY_AGAIN_LATER, f"{PLUGIN}: network {req.network} is closed: {reason}")


def _require_ready(req: Request, code: int) -> None:
    """Raise CNIError `code` if the network is not made yet."""
    path = req.config.get("ipam", {}).get("readinessIndicatorFile", "")
    if path and not os.path.exists(path):
        raise CNIError(
            code,
            f"{PLUGIN}: network {req.network} is not ready on this node: '{path}' is not there"
            " (ipam.readinessIndicatorFile), which its agent makes after each boot;"
            " try again, and if it does not come, look at the agent's log",
        )


def _release_cooldown(req: Request) -> int:
    # As _directory: DEL and GC ignore invalid keys.
    return int(req.config.get("ipam", {}).get("releaseCooldown", 0))


def _requested(req: Request) -> dict[Address, str]:
    """Return the addresses that the runtime requests, of all three sources, with their sources.

    Raises CNIError 4 for CNI_ARGS, 7 for the others.
    """
    texts = [("IP of CNI_ARGS", req.cni_args(CNI_ARGS).get("IP", ""), Code.INVALID_ENVIRONMENT)]
    if not texts[0][1]:
        texts.clear()
    for where, ips in (
        ("args.cni.ips", req.config.get("args", {}).get("cni", {}).get("ips", ())),
        ("runtimeConfig.ips", req.config.get("runtimeConfig", {}).get("ips", ())),
    ):
        texts += [(where, text, Code.INVALID_CONFIG) for text in ips]
    addresses: dict[Address, str] = {}
    for where, text, code in texts:
        try:
            address = parse_cidr(text).ip if "/" in text else parse_address(text)
        except ValueError:
            raise CNIError(
                code, f'{where}: cannot understand ip "{text}", expected such as 10.0.0.5'
            ) from None
        addresses.setdefault(address, where)
    return addresses


def _check_held(address: Address, lease: Lease | None, owner: Attachment) -> Iterator[CNIError]:
    if lease is None or not lease.is_of(owner):
        instead = f"held by {lease.holder} since {lease.since}" if lease else "not reserved"
        yield drifted(
            f"{PLUGIN}: {address} should be reserved for {owner.containerid} ({owner.ifname})"
            f" but is {instead}"
        )
