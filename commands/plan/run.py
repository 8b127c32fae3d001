"""The course of `pycni plan`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from cni_common.kernel.netns import OWN, NetNS
from cni_common.spec.profile import HostLink
from cni_common.spec.request import Attachment
from commands import DONE, FOUND, throwaway, view
from commands.lint import files
from commands.lint.rules import ERROR
from commands.lint.values import facts_of
from commands.plan import guests, look, stage
from commands.plan.act import Call, Play, refusals, this_node
from commands.verb import RefusedError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from cni_common.node.host import Loader
    from cni_common.spec.wire import Json
    from commands.lint.files import File

_BIN_DIR = "/opt/cni/bin"
_REFUSING = ("plugin", "container")  # kinds of what this node has that refuse an ADD
_KINDS = ("link", "address", "route", "queue", "sysctl", "file")


def run(options: Namespace, load: Loader) -> int:
    """Print what an ADD and its DEL do; FOUND if one of them is or would be refused, else DONE."""
    if os.geteuid():
        raise RefusedError("needs root: it makes namespaces and interfaces")
    file = _read(options.file)
    call = Call(
        file.config,
        [one.given for one in file.entries],
        _path(options.path),
        options.container,
        options.interface,
        options.args,
        _capabilities(options.capabilities),
    )
    own = NetNS(OWN)
    try:
        uplinks = stage.uplinks(own, _wanted(file, load))
        found = _guests(call, load) if options.against_node else None
        answer = throwaway.run(lambda: Play(call, load, uplinks, found).run())
        if options.against_node:
            answer["node"] = [*_against(own, answer), *_refused(call, load)]
    finally:
        own.close()
    answer = {"file": file.path, "network": file.name, **answer}
    if options.json:
        view.write_json(answer)
    else:
        _print(answer, options)
    return FOUND if _is_refused(answer) else DONE


def _read(path: str) -> File:
    (file,) = files.gather([path])
    wrong = [one for one in file.findings if one.severity == ERROR]
    if not file.entries or wrong:
        reason = f"{wrong[0].text} [{wrong[0].code}]" if wrong else "there is no plugin in it"
        raise RefusedError(f"'{path}': {reason}; see pycni lint")
    return file


def _path(given: Sequence[str] | None) -> list[str]:
    """Return CNI_PATH: given directories, then that of this program, then the usual one."""
    own = os.path.dirname(os.path.realpath(sys.argv[0]))
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    return list(dict.fromkeys([*(given or ()), beside, own, _BIN_DIR]))


def _capabilities(text: str) -> Json:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise RefusedError(f"--capabilities is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError('--capabilities is an object such as {"mac": "02:00:00:00:00:07"}')
    return found


def _wanted(file: File, load: Loader) -> list[str]:
    facts = (fact for one in file.entries for fact in facts_of(one, load))
    return [fact.name for fact in facts if isinstance(fact, HostLink) and not fact.made]


def _guests(call: Call, load: Loader) -> guests.Guests:
    with this_node(load) as host:
        return guests.of(host, call.network)


def _refused(call: Call, load: Loader) -> Iterator[dict[str, str]]:
    """Yield what would be refused on this node, though not on the stage."""
    for type, why in refusals(call, load):
        yield {"kind": "plugin", "what": type, "state": why}
    with this_node(load) as host:
        owner = Attachment(call.containerid, call.ifname)
        if guests.is_attached(host, call.network, owner):
            state = f"would be refused: it lives, and has {call.ifname} on this network"
            yield {"kind": "container", "what": call.containerid, "state": state}


def _is_refused(answer: Json) -> bool:
    """Tell whether a call fails, on the stage or by what is on this node."""
    by_node = any(one["kind"] in _REFUSING for one in answer.get("node", ()))
    return bool(by_node or answer["error"] or answer.get("delError"))


def _against(own: NetNS, answer: Json) -> Iterator[dict[str, str]]:
    """Yield what the node has already of the things that an ADD makes on the host."""
    there = look.at(own, look.HOST)
    for step in answer["steps"]:
        for one in step["changes"]:
            if one["where"] == look.HOST and one["change"] != "removed":
                state = _state(there, one)
                if state:
                    yield {"kind": one["kind"], "what": one["what"], "state": state}


def _state(there: look.Look, change: dict[str, str]) -> str:
    """Return what the node has of one change in words, "" where that cannot be compared."""
    kind, what = change["kind"], change["what"]
    if kind == "link":
        name = what.partition(":")[0]
        same = (one.what for one in there if one.kind == kind and one.what.startswith(f"{name}:"))
        found = next(same, "")
        return f"exists, as {found.partition(': ')[2]}" if found else "would be made"
    if kind == "sysctl":
        value, wanted = there.get(look.Thing(look.HOST, kind, what)), change["change"].split()[-1]
        if value is None:
            return ""  # of an interface that is not there
        return "is so already" if value == wanted else f"is {value}, would be {wanted}"
    if kind in ("address", "route"):
        is_there = look.Thing(look.HOST, kind, what) in there
        return "exists" if is_there else "would be made"
    if kind == "file":
        return "exists" if os.path.exists(what) else "would be made"
    return ""


def _print(answer: Json, options: Namespace) -> None:
    where = f"container {options.container}, interface {options.interface}"
    view.write_text(f"network {answer['network']} of {answer['file']}: {where}", style="bold")
    for number, step in enumerate(answer["steps"], 1):
        view.write_line()
        view.write_text(f"{number}. ADD of {step['plugin']}", style="bold cyan")
        _print_changes(step["changes"])
        for text in step["nft"]:
            view.write_line()
            for line in text.splitlines():
                view.write_line(f"   {line.replace(chr(9), '  ')}")
        if not step["changes"] and not step["nft"] and not step["error"]:
            view.write_text("   changes nothing")
    for message in answer["messages"]:
        view.write_text(f"message: {message}", style="yellow", more_indent="   ")
    view.write_line()
    if answer["error"]:
        view.write_text(f"refused: {answer['error']}", style="bold red", more_indent="   ")
    else:
        _print_result(answer)
    _print_node(answer.get("node"))


def _print_result(answer: Json) -> None:
    """Print what ADD answers, and what DEL leaves."""
    view.write_text("result", style="bold cyan")
    for line in json.dumps(answer["result"], indent=2).splitlines():
        view.write_line(f"   {line}")
    view.write_line()
    if answer["delError"]:
        view.write_text(f"DEL is refused: {answer['delError']}", style="bold red")
        return
    left = [one for one in answer["left"] if one["change"] != "removed"]
    but = " but" if left or answer["leftTables"] else ""
    view.write_text(f"DEL takes all of it away{but}", style="bold cyan")
    _print_changes(left)
    for name in answer["leftTables"]:
        view.write_text(f"{'host':10} {'nft':8} {name}", indent="   ")


def _print_node(found: Any) -> None:
    if found is None:
        return
    view.write_line()
    view.write_text("on this node", style="bold cyan")
    for one in found:
        text = f"{one['kind']:8} {one['what']}: {one['state']}"
        style = "bold red" if one["kind"] in _REFUSING else ""
        view.write_text(text, style=style, indent="   ", more_indent=" " * 12)


def _print_changes(changes: Sequence[dict[str, str]]) -> None:
    for one in sorted(changes, key=_place):
        detail = f": {one['change']}" if one["kind"] == "sysctl" else ""
        mark = "-" if one["change"] == "removed" else " "
        text = f"{one['where']:10} {one['kind']:8}{mark}{one['what']}{detail}"
        view.write_text(text, indent="   ", more_indent=" " * 23)


def _place(one: dict[str, str]) -> tuple[str, int, str]:
    return one["where"], _KINDS.index(one["kind"]), one["what"]
