"""The acts of a plan: ADD plugin by plugin, then DEL, with a look after each."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_common.kernel.netns import NetNS
from cni_common.node.host import STATE_DIR, Host
from cni_common.serve.protocol import execute
from cni_common.spec.errors import CNIError
from cni_common.spec.request import Command, Request
from cni_common.spec.undo import Undo
from commands.plan import look, stage
from commands.verb import log, words_of
from plugins import profile_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_common.node.host import Loader
    from cni_common.spec.wire import Json
    from commands.plan.guests import Guests
    from commands.plan.look import Look

_ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Call:
    """The request that a runtime would get."""

    network: Json  # the file's content
    plugins: Sequence[Json]
    path: Sequence[str]  # CNI_PATH
    containerid: str
    ifname: str
    cni_args: str
    capabilities: Json  # values by capability

    def stdin(self, plugin: Json, previous: Json | None) -> bytes:
        """Return the configuration of one plugin, with directories and addresses of the stage."""
        config = {**self.config(plugin, previous)}
        example = _stand_in(plugin)
        if example:
            config["ipam"] = example
        return json.dumps(_covered(config)).encode()

    def config(self, plugin: Json, previous: Json | None) -> Json:
        """Return the configuration of one plugin, as libcni makes it."""
        own = {key: self.network[key] for key in ("name", "cniVersion") if key in self.network}
        config: dict[str, Any] = {**plugin, **own}
        wanted = plugin.get("capabilities", {})
        by_runtime = {key: value for key, value in self.capabilities.items() if wanted.get(key)}
        if by_runtime:
            config["runtimeConfig"] = {**config.get("runtimeConfig", {}), **by_runtime}
        if previous is not None:
            config["prevResult"] = previous
        return config

    def environ(self, command: str) -> dict[str, str]:
        """Return the environment of one call."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.containerid,
            "CNI_NETNS": stage.CONTAINER,
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": self.cni_args,
            "CNI_PATH": ":".join(self.path),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two looks."""

    where: str
    kind: str
    what: str
    change: str  # made, removed, or a sysctl's values "0 -> 1"

    def json(self) -> dict[str, str]:
        """Return the change for --json."""
        return {"where": self.where, "kind": self.kind, "what": self.what, "change": self.change}


class Play:
    """The whole course, in the namespaces of the stage."""

    def __init__(
        self,
        call: Call,
        load: Loader,
        uplinks: Sequence[stage.Uplink],
        guests: Guests | None = None,
    ) -> None:
        self._call = call
        self._load = load
        self._messages: list[str] = []
        self._host = stage.build(uplinks, guests)
        self._container = NetNS(stage.CONTAINER)

    def run(self) -> Json:
        """Return the steps of ADD, its result or error, and what DEL leaves; as JSON has it."""
        self._messages += _examples(self._call.plugins)
        before, tables = self._look(), look.nft_tables()
        steps, result, error = self._add(before)
        answer: dict[str, Any] = {"steps": steps, "result": result, "error": error}
        if not error:
            answer["delError"] = self._delete(result)
            answer["left"] = [one.json() for one in _changes(before, self._look())]
            answer["leftTables"] = sorted(look.nft_tables().keys() - tables.keys())
        return {**answer, "messages": self._messages}

    def records(self) -> Json:
        """Return the result of ADD, and what each plugin has noted of it. Raises CNIError."""
        result: Json | None = None
        for plugin in self._call.plugins:
            result = self._run(str(plugin.get("type", "")), Command.ADD, plugin, result)
        with this_node(self._load, self._messages.append) as host:
            found = {record.plugin: record.facts for record, _ in host.records.listing()}
        return {"result": result, "records": found}

    def _add(self, now: Look) -> tuple[list[Json], Json | None, str]:
        steps: list[Json] = []
        result: Json | None = None
        tables = look.nft_tables()
        for plugin in self._call.plugins:
            type = str(plugin.get("type", ""))
            error = ""
            try:
                result = self._run(type, Command.ADD, plugin, result)
            except (CNIError, OSError, ExceptionGroup) as problem:
                error = words_of(problem)
            after, listed = self._look(), look.nft_tables()
            changed = [text for name, text in listed.items() if tables.get(name) != text]
            steps.append(
                {
                    "plugin": type,
                    "error": error,
                    "changes": [one.json() for one in _changes(now, after)],
                    "nft": changed,
                }
            )
            now, tables = after, listed
            if error:
                return steps, None, f"{type}: {error}"
        return steps, result, ""

    def _delete(self, result: Json | None) -> str:
        for plugin in reversed(self._call.plugins):
            type = str(plugin.get("type", ""))
            try:
                self._run(type, Command.DEL, plugin, result)
            except (CNIError, OSError, ExceptionGroup) as problem:
                return f"{type}: {words_of(problem)}"
        return ""

    def _run(self, type: str, command: str, plugin: Json, previous: Json | None) -> Json | None:
        stdin = self._call.stdin(plugin, previous)
        req = Request.parse(self._call.environ(command), stdin)
        with this_node(self._load, self._messages.append) as host:
            if self._load(type) is not None:
                with Undo() as undo:
                    result = execute(type, req, host, undo)
            else:
                result = host.delegate(type, req, command)
        return None if result is None else {**result.to_json(req.cni_version)}

    def _look(self) -> Look:
        found = look.at(self._host, look.HOST)
        found |= look.at(self._container, look.CONTAINER)
        places = {stage.DATA_DIR, "/var/lib/cni", f"{STATE_DIR}/attachments"}
        return found | look.files(sorted(places))


def refusals(call: Call, load: Loader) -> Iterator[tuple[str, str]]:
    """Yield the plugins that refuse a STATUS on this node, with what they say.

    STATUS makes nothing; the runtime may call it at any time.
    """
    for plugin in call.plugins:
        type = str(plugin.get("type", ""))
        if load(type) is None:
            continue
        stdin = json.dumps({**plugin, "name": call.network.get("name"), "cniVersion": "1.1.0"})
        environ = {"CNI_COMMAND": Command.STATUS, "CNI_PATH": ":".join(call.path)}
        try:
            with this_node(load) as host, Undo() as undo:
                execute(type, Request.parse(environ, stdin.encode()), host, undo)
        except (CNIError, OSError) as problem:
            yield type, words_of(problem)


def this_node(load: Loader, complain: Callable[[str], object] = log) -> Host:
    """Return the host of these namespaces, which are the node's or the stage's."""
    executable = os.path.realpath(sys.argv[0])
    return Host(load, executable, complain, execute=execute, state_dir=STATE_DIR)


def _stand_in(plugin: Json) -> Json | None:
    """Return what gives addresses on the stage, None if that is as the configuration says."""
    ipam = plugin.get("ipam")
    profile = profile_of(str(ipam.get("type", ""))) if isinstance(ipam, dict) else None
    return profile.stand_in(ipam) if ipam and profile and profile.stand_in else None


def _examples(plugins: Sequence[Json]) -> Iterator[str]:
    """Yield in words what is not as the configuration says."""
    for plugin in plugins:
        example = _stand_in(plugin)
        if example:
            given = " and ".join(one["address"] for one in example["addresses"])
            type = plugin["ipam"]["type"]
            yield (
                f"{type} gets its addresses from beyond this node, where a plan sends nothing:"
                f" {given}, and the default routes, are examples"
            )


def _changes(before: Look, after: Look) -> Iterator[Change]:
    for thing in sorted(after.keys() | before.keys()):
        old, new = before.get(thing), after.get(thing)
        if old == new:
            continue
        if thing.kind == "sysctl":
            if old is None and new is None:
                continue
            change = f"{_ABSENT if old is None else old} -> {_ABSENT if new is None else new}"
        else:
            change = "removed" if new is None else "made"
        yield Change(thing.where, thing.kind, thing.what, change)


def _covered(value: Any, key: str = "") -> Any:
    """Return a configuration whose directories of state are within those of the stage."""
    if isinstance(value, dict):
        return {name: _covered(inner, name) for name, inner in value.items()}
    return stage.place(value) if key == "dataDir" and isinstance(value, str) else value
