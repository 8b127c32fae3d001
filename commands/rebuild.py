"""Damaged records of living containers, written anew from what can be proven.

libcni keeps configuration, arguments and result of each ADD. The plugin's own ADD, run once more
for these in namespaces that end with it (commands/plan), notes what it noted then, but for names
and MACs, which both results have. The resulting record is believed if the node has every object of
it.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_common.kernel.netns import identity, pid_namespace
from cni_common.node.record import FORMAT, Record
from cni_common.spec import wire
from cni_common.spec.errors import CNIError
from commands import throwaway
from commands.plan import act, stage
from commands.verb import RefusedError, words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from cni_common.node.host import Host
    from cni_common.spec.wire import JsonObject
    from commands.node import Known, Node


_BYTES_MAX = 1 << 24
_KIND = "cniCacheV1"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A damaged record, and why it was not written anew; "" if it was, or would be."""

    known: Known
    reason: str

    def json(self) -> dict[str, str]:
        """Return the attempt for --json."""
        return {
            "record": self.known.path,
            "plugin": self.known.plugin,
            "network": self.known.network,
            "containerid": self.known.attachment.containerid,
            "ifname": self.known.attachment.ifname,
            "damage": self.known.damage,
            "reason": self.reason,
        }


def attempts(
    node: Node, results: str, is_meant: Callable[[str], bool], *, dry_run: bool
) -> Iterator[Attempt]:
    """Write damaged records of living containers anew, if not `dry_run`, and yield each of them."""
    for known in node.records:
        if not known.damage or not is_meant(known.attachment.containerid):
            continue
        if known.plugin not in node.lifecycles or not node.may_live(known):
            continue
        try:
            facts = _proven(node, known, results)
            if not dry_run:
                _write(node, known, facts)
        except (CNIError, OSError, RefusedError, ExceptionGroup) as error:
            yield Attempt(known, words_of(error))
        else:
            yield Attempt(known, "")


def _write(node: Node, known: Known, facts: JsonObject) -> None:
    record = node.host.records.open(known.path)
    if record is None:
        raise RefusedError("another call is at work on it")
    try:
        if not record.damage and not record.is_unbegun():
            raise RefusedError("another call has written it meanwhile")
        record.renew(facts)
        for part in node.lifecycles[known.plugin].parts:
            noted = record.get(part.facts)
            if noted is not None:
                part.rejoin(node.host, record, noted)
    finally:
        record.close()


def _proven(node: Node, known: Known, results: str) -> JsonObject:
    """Return what a record has to say. Raises RefusedError with what is in the way."""
    for part in node.lifecycles[known.plugin].parts:
        if not part.derived:
            raise RefusedError(
                f"its part '{part.name}' may have noted what was on the node before, which nothing"
                " else knows"
            )
    cached = _cached(known, results)
    netns = _netns(node, known, cached)
    plugins, place = _chain(known, cached)
    real = cached["result"]
    played = _played(node, known, cached, plugins[: place + 1])
    again, noted = played["result"], played["records"].get(known.plugin)
    if noted is None:
        raise RefusedError("an ADD with that configuration leaves no such record")
    names = _names(again, real)
    call = _call(node.host, known, cached, plugins)
    previous = real if place else None
    header = {
        **{key: noted[key] for key in ("plugin", "network", "containerid", "ifname")},
        "pid_ns": pid_namespace(),
        "netns": netns,
        "netns_id": identity(netns),
        "stdin": json.dumps(call.config(plugins[place], previous)),
        "cni_args": call.cni_args,
        "cni_path": _cni_path(node, known),
    }
    parts = [one.name for one in node.lifecycles[known.plugin].parts if one.name in noted]
    facts = {"format": FORMAT, **{key: header[key] for key in header if key in noted}}
    facts |= {name: _renamed(noted[name], names) for name in parts}
    _check(node, known, facts)
    return facts


def _check(node: Node, known: Known, facts: JsonObject) -> None:
    """Raise RefusedError unless the node has each object that the facts tell of."""
    lifecycle, candidate = node.lifecycles[known.plugin], Record(known.path, -1, facts)
    lost = [
        f"{one.kind} {one.what}"
        for one in lifecycle.present(node.host, candidate)
        if not one.present
    ]
    if lifecycle.leases:
        owner = known.network, known.attachment
        lost += lifecycle.leases.missing(candidate, node.held(*owner))
    if lost:
        raise RefusedError(f"the node does not have all of it: {lost[0]} is missing")


def _cached(known: Known, results: str) -> JsonObject:
    """Return what libcni has kept of the ADD. Raises RefusedError, OSError."""
    owner = known.attachment
    path = f"{results}/{known.network}-{owner.containerid}-{owner.ifname}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid or status.st_mode & 0o022:
            raise RefusedError(f"'{path}' is not a file that root alone can write")
        data = file.read(_BYTES_MAX)
    try:
        found: JsonObject = dict(wire.decode(data))
        found["config"] = wire.decode(base64.b64decode(found["config"], validate=True))
        told = tuple(found[key] for key in ("kind", "networkName", "containerId", "ifName"))
        result = found["result"]
    except (CNIError, LookupError, TypeError, ValueError):
        raise RefusedError(f"'{path}' is not as libcni writes it") from None
    if told != (_KIND, known.network, owner.containerid, owner.ifname):
        raise RefusedError(f"'{path}' is of another attachment")
    if not isinstance(result, dict) or not isinstance(result.get("interfaces"), list):
        raise RefusedError(f"the result in '{path}' has no interfaces")
    return found


def _netns(node: Node, known: Known, cached: JsonObject) -> str:
    """Return the path of the container's namespace, by its other records or as libcni had it."""
    owned = node.attachments.get((known.network, known.attachment), ())
    told = [(str(o.facts.get("netns", "")), str(o.facts.get("netns_id") or "")) for o in owned]
    for path, wanted in told:
        if path and wanted and identity(path) == wanted:
            return path
    path = cached.get("netns", "")
    if isinstance(path, str) and path.startswith("/") and identity(path):
        return path
    raise RefusedError("nothing tells where its network namespace is")


def _cni_path(node: Node, known: Known) -> str:
    owned = node.attachments.get((known.network, known.attachment), ())
    told = (str(one.facts["cni_path"]) for one in owned if one.facts.get("cni_path"))
    return next(told, os.path.dirname(node.host.executable))


def _chain(known: Known, cached: JsonObject) -> tuple[list[JsonObject], int]:
    """Return the plugins of the network, and the place of the one whose record it is.

    An IPAM plugin's is that of the plugin that calls it.
    """
    config = cached["config"]
    plugins = config.get("plugins", [config])
    if not isinstance(plugins, list) or not all(isinstance(one, dict) for one in plugins):
        raise RefusedError("its configuration has no plugins")
    for place, one in enumerate(plugins):
        ipam = one.get("ipam")
        types = (one.get("type"), ipam.get("type") if isinstance(ipam, dict) else None)
        if known.plugin in types:
            return plugins, place
    raise RefusedError(f"its configuration has no plugin '{known.plugin}'")


def _call(host: Host, known: Known, cached: JsonObject, plugins: Sequence[JsonObject]) -> act.Call:
    pairs = cached.get("cniArgs") or ()
    capabilities = cached.get("capabilityArgs")
    return act.Call(
        {**cached["config"], "cniVersion": cached["result"].get("cniVersion", "")},
        plugins,
        [os.path.dirname(host.executable)],  # no program of another
        known.attachment.containerid,
        known.attachment.ifname,
        ";".join(f"{key}={value}" for key, value in pairs),
        capabilities if isinstance(capabilities, dict) else {},
    )


def _played(
    node: Node, known: Known, cached: JsonObject, plugins: Sequence[JsonObject]
) -> JsonObject:
    """Return result and records of the ADD, done again. Raises RefusedError."""
    host = node.host
    real = _addresses(cached["result"])
    pinned = copy.deepcopy(list(plugins))
    for one in pinned:
        ipam = one.get("ipam")
        module = host.load(str(ipam.get("type", ""))) if isinstance(ipam, dict) else None
        lifecycle = module.lifecycle() if module else None
        if lifecycle and lifecycle.leases:  # else it would begin with the first ones
            args = one.setdefault("args", {}).setdefault("cni", {})
            args["ips"] = [text.partition("/")[0] for text in real]
    uplinks = stage.uplinks(host.netns, ())
    play: Callable[[], JsonObject] = partial(
        _play, _call(host, known, cached, pinned), host, uplinks
    )
    played: JsonObject = throwaway.run(play)
    if _addresses(played["result"]) != real:
        raise RefusedError("an ADD with that configuration gives other addresses")
    return played


def _play(call: act.Call, host: Host, uplinks: Sequence[stage.Uplink]) -> JsonObject:
    return dict(act.Play(call, host.load, uplinks).records())


def _addresses(result: JsonObject) -> list[str]:
    return [str(one.get("address", "")) for one in result.get("ips") or ()]


def _names(again: JsonObject, real: JsonObject) -> dict[str, str]:
    """Return names and MACs of the ADD that was done again, and what they are in truth."""
    ours, theirs = again.get("interfaces") or (), real["interfaces"]
    found: dict[str, str] = {}
    for one, other in zip(ours, theirs, strict=False):
        for key in ("name", "mac"):
            found[str(one.get(key, ""))] = str(other.get(key, ""))
    found.pop("", None)
    if len(ours) != len(theirs) or not all(found.values()):
        raise RefusedError("an ADD with that configuration makes other interfaces")
    return found


def _renamed(value: Any, names: JsonObject) -> Any:
    """Return facts with the names of the truth, and directories outside of the stage."""
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if isinstance(value, str):
        return names.get(value, value.removeprefix(stage.DATA_DIR))
    return value
