"""The time of a masqueraded ADD and DEL, step by step.

In a warm process by timing its functions; in a process of its own from outside, by calls that get
ever further before they are refused.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.columns import BenchError, Call, Column, sh
from bench.experiments import Bench, run_chain
from bench.networks import Attachment, Network, Variant
from bench.samples import ENGINE, FLOOR, ONE_SHOT
from cni_common.kernel.netns import OWN, NetNS
from cni_common.node.host import Host
from cni_common.serve.protocol import execute, respond
from plugins import load

# Functions of one ADD or DEL that do not call each other.
STEPS: Mapping[str, Mapping[str, str]] = {
    "ADD": {
        "cni_common.node.lifecycle.Lifecycle.begin": "record begun",
        "plugins.bridge.port.ensure_bridge": "bridge looked at",
        "cni_common.node.veth.create_veth": "veth pair made, in both namespaces and the bridge",
        "cni_common.node.interface.allocate": "address leased by host-local",
        "plugins.bridge.gateway.ensure": "gateway addresses and forwarding looked at",
        "cni_common.node.veth.configure": "sysctls, addresses, link up, routes",
        "cni_common.node.masquerade.add": "masquerading, one nftables transaction",
        "plugins.bridge._await_working": "port and bridge awaited",
    },
    "DEL": {
        "cni_common.node.interface.Veth.teardown": "veth pair deleted",
        "cni_common.node.interface.Masquerade.teardown": "masquerading taken back",
        "cni_common.node.interface.Ipam.teardown": "address given back by host-local",
        "cni_common.node.record.Record.remove": "record removed",
    },
}
_REST = "all else: parsing, checks, opening namespaces, the result"
_FROM_OUTSIDE = (
    "a process that does nothing (/bin/true)",
    "until an unknown command is refused: launcher, interpreter or engine, protocol",
    "until a missing namespace is refused: the plugin's modules, its checks",
    "the ADD itself, with what it still has to load",
)
_VARIANT = Variant(masquerade="iptables")

Steps = dict[str, float]  # ms by step


def profiles(bench: Bench) -> dict[str, Steps]:
    """Return the medians of each step: in a warm process, and with one process per call."""
    columns = {column.name: column for column in bench.columns}
    rounds = max(3, bench.rounds)
    one_shot = columns[ONE_SHOT]
    found = dict(_warm(one_shot.bin_dir, rounds))
    found["ADD, one process a call"] = from_outside(bench, one_shot, rounds)
    if ENGINE in columns:
        found["ADD, by the engine"] = from_outside(bench, columns[ENGINE], rounds)
    return found


def from_outside(bench: Bench, column: Column, rounds: int) -> Steps:
    """Return the steps of an ADD that can be timed from outside."""
    network = Network("profile", column.name, column.bin_dir, _VARIANT)
    resident = Attachment(network, "/run/netns/resident0", "resident")
    run_chain(column, [resident], "ADD")
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in bench.turns(f"profile of {column.name}", rounds / bench.rounds):
        attachment = bench.attachment(network, 0)
        whole = attachment.add_calls()[0].call()
        calls = (
            Call(Path("/bin/true"), {}),
            _with(whole, CNI_COMMAND="NONE"),
            _with(whole, CNI_NETNS="/run/netns/none"),
        )
        walls = [column.run([call], must_succeed=False).wall_ms for call in calls]
        walls.append(run_chain(column, [attachment], "ADD")[0].wall_ms)
        run_chain(column, [attachment], "DEL")
        # Differences within a round: the machine's other load changes from round to round.
        for title, before, after in zip(_FROM_OUTSIDE, [0.0, *walls], walls, strict=False):
            samples[title].append(after - before)
    run_chain(column, [resident], "DEL")
    sh(f"ip link delete {network.bridge}")
    return {title: statistics.median(ms) for title, ms in samples.items()}


def _with(call: Call, **variables: str) -> Call:
    return replace(call, environ={**call.environ, **variables})


def _warm(bin_dir: Path, rounds: int) -> Iterator[tuple[str, Steps]]:
    """Yield the steps of ADD and DEL in this process, which keeps its sockets as a worker does."""
    own = NetNS(OWN)
    network = Network("profile", FLOOR, bin_dir, _VARIANT)
    resident = Attachment(network, "/run/netns/resident3", "resident")
    _serve(resident, "ADD", own)
    for command in ("ADD", "DEL"):
        samples: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds + 1):
            attachment = Attachment(network, "/run/netns/c0", f"{number:064x}")
            steps = {}
            for act in ("ADD", "DEL"):
                with _timed(STEPS[act]) as spent:
                    begin = time.perf_counter()
                    _serve(attachment, act, own)
                    whole = (time.perf_counter() - begin) * 1000
                if act == command:
                    steps = {**spent, _REST: whole - sum(spent.values())}
            if number:  # the first call is not warm
                for step, ms in steps.items():
                    samples[step].append(ms)
        yield f"{command}, warm", {step: statistics.median(ms) for step, ms in samples.items()}
    _serve(resident, "DEL", own)
    own.close()
    sh(f"ip link delete {network.bridge}")


def _serve(attachment: Attachment, command: str, own: NetNS) -> None:
    """Run bridge in this process."""
    (part,) = attachment.add_calls() if command == "ADD" else attachment.delete_calls()
    call = part.call()
    executable = str(attachment.network.bin_dir / "host-local")  # so that it runs in this process
    with Host(load, executable, lambda _text: None, execute=execute, own=own) as host:
        reply = respond("bridge", call.environ, call.stdin.encode(), host)
    if reply.exit_code:
        raise BenchError(f"profile: {command} failed: {reply.stdout.decode().strip()}")


@contextmanager
def _timed(steps: Mapping[str, str]) -> Iterator[Steps]:
    """Have each function in `steps` add the ms it takes to the result, under its title."""
    spent = dict.fromkeys(steps.values(), 0.0)
    replaced = []
    for name, title in steps.items():
        holder, attribute = resolve(name)
        original = getattr(holder, attribute)
        replaced.append((holder, attribute, original))
        setattr(holder, attribute, _timer(original, title, spent))
    try:
        yield spent
    finally:
        for holder, attribute, original in replaced:
            setattr(holder, attribute, original)


def _timer(function: Callable[..., Any], title: str, spent: Steps) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[title] += (time.perf_counter() - begin) * 1000

    return timed


def resolve(name: str) -> tuple[Any, str]:
    """Return the module or class of a dotted name, and the function's name in it."""
    holder, _, attribute = name.rpartition(".")
    try:
        return import_module(holder), attribute
    except ModuleNotFoundError:
        module, _, kind = holder.rpartition(".")
        return getattr(import_module(module), kind), attribute
