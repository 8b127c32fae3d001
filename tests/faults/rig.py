"""A rig: a node whose plugins can be made to fail, its containers, and the judgement after it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import scope
from tests.e2e.node import Done, Node, addresses_in, network, single
from tests.faults.inject import Injection, Injector
from tests.machine import DIST, Json
from tests.scope import ALL

NETWORKS: Mapping[str, Sequence[str]] = {
    "ipv4": ["10.9.0.0/28"],
    "dual": ["10.9.0.0/28", "fd00:9::/64"],
}
DATA_DIR = "/var/lib/cni/networks"
STATE_DIR = "/run/pycni"
ONLY = "PYCNI_FAULT_AT"  # the number of the one case to run
TURNS = 8  # days after which each call has been in a sample
_DEATHS_MAX = 10  # of workers, that an engine makes good at once
_CALLS_MIN, _CALLS_MAX = 3, 400
_EDGE = 120
_KERNEL_SECONDS = 30.0  # to take away the pairs of a namespace that has ended


class Rig:
    """A node with one network, on which the plugin under test runs below an injector.

    Containers are network namespaces c1, c2 and so on; each is attached as eth0 at most.
    """

    def __init__(self, node: Node, injector: Injector, *, has_engine: bool = False) -> None:
        """`has_engine`: the node's engine runs below the injector, instead of each plugin."""
        self.node = node
        self.injector = injector
        self.config: Json = {}
        self.struck = ""  # the call that the last injection has met, "" when there was none
        self.called: list[str] = []  # all calls of the last injection, if that was no fault
        self.calls = 0  # how many there were, that one included
        self._has_engine = has_engine
        self.kept: tuple[str, ...] = ()  # interfaces of the node that may be there in the end
        self._is_armed = False
        self._netns: dict[str, str] = {}
        self._deaths = 0
        self._said: deque[str] = deque(maxlen=4)  # by the last calls, which may name what they keep
        if has_engine:
            node.start_engine(wrap=injector.command)

    # --- what a runtime does ---

    def container(self, name: str) -> str:
        """Return the namespace of a container, made if there is none."""
        if name not in self._netns:
            self._netns[name] = self.node.container(name)
        return self._netns[name]

    def containers(self) -> list[str]:
        """Return the names of all containers."""
        return list(self._netns)

    def end(self, name: str) -> None:
        """Have a container's namespace end, as when all of its processes have."""
        if self._netns.pop(name, None):
            self.node.delete_container(name)

    def run(self, command: str, name: str = "", *, plugin: str = "bridge", **keys: Any) -> Done:
        """Run a command for a container, or GC and STATUS for none; `keys` are configuration."""
        words: Sequence[str | Path] = [self.node.bin_dir / plugin]
        if self._is_armed and not self._has_engine:
            words = self.injector.command(*words)
        env = {"CNI_COMMAND": command, "CNI_PATH": str(self.node.bin_dir)}
        if name:
            netns = self._netns.get(name, f"/run/netns/{name}")
            env |= {"CNI_CONTAINERID": name, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
        done = self.node.run(*words, stdin=json.dumps({**self.config, **keys}), env=env)
        self._said.append(f"{command} {name} of {plugin}: {done.stderr}")
        return done

    def ok(self, command: str, name: str = "", *, plugin: str = "bridge", **keys: Any) -> Json:
        """Run a command that must succeed; return its result, {} where there is none."""
        done = self.run(command, name, plugin=plugin, **keys)
        assert done.returncode == 0, f"{command} {name}: {done.stdout}{done.stderr}"
        result: Json = json.loads(done.stdout or "{}")
        return result

    def add(self, name: str) -> Json:
        """Attach a container, which must succeed; return the result."""
        self.container(name)
        return self.ok("ADD", name)

    def check(self, name: str, result: Json) -> None:
        """Have CHECK find everything in its place, and the addresses too."""
        self.ok("CHECK", name, prevResult=result)
        assert set(self.addresses(name)) == set(addresses_in(result))

    def collect(self, *valid: str) -> None:
        """Run GC, with a list of the containers that are valid."""
        self.ok("GC", **attachments(*valid))

    def inject(self, injection: Injection, command: str, name: str = "", **keys: Any) -> Done:
        """Run a command as `run` does, with an injection."""
        self.injector.arm(injection)
        self._is_armed = True
        try:
            return self.run(command, name, **keys)
        finally:
            self._is_armed = False
            self.calls = self.injector.count
            happened = 0 < injection.at <= self.calls
            self.called = self.injector.calls
            self.struck = self.injector.what if happened else ""
            self.injector.disarm()
            if self.struck and not injection.error:
                self._replace_worker()

    def _replace_worker(self) -> None:
        """See to it that workers remain: an engine takes its time to replace them in numbers."""
        self._deaths += 1
        if self._has_engine and self._deaths % _DEATHS_MAX == 0:
            self.node.start_engine(wrap=self.injector.command)

    # --- what befalls a node ---

    def age(self) -> None:
        """Make records and leases older than any time of grace."""
        for root in (DATA_DIR, f"{STATE_DIR}/attachments"):
            for name in self.files(root):
                os.utime(self.node.path(name), (0, 0))

    def files(self, root: str) -> list[str]:
        """Return the files below a directory of the node."""
        top = str(self.node.path(""))
        return [str(path).removeprefix(top) for path in _files(self.node.path(root))]

    def wipe(self) -> None:
        """Make the node one on which nothing has run yet, containers excepted."""
        self.node.run("ip", "link", "delete", "br0")
        self.node.command("nft", "flush", "ruleset")
        for root in (f"{STATE_DIR}/attachments", f"{STATE_DIR}/indexes", DATA_DIR):
            self.node.command("rm", "-rf", root)

    # --- the judges ---

    def addresses(self, name: str) -> list[str]:
        """Return the addresses of a container, "" standing for none of its interfaces."""
        netns = self.container(name)
        if "eth0" not in self.node.links(netns):
            return []
        return [text.partition("/")[0] for text in self.node.addresses(netns, "eth0")]

    def assert_unique(self) -> None:
        """Demand that no two containers have one address, and that each has its lease."""
        holders: dict[str, str] = {}
        leases = {Path(name).name for name in self.files(DATA_DIR)}
        for name in self._netns:
            for address in self.addresses(name):
                assert address not in holders, f"{address}: {name} and {holders[address]}"
                holders[address] = name
                assert address in leases, f"{address} of {name} is free for others"

    def assert_clean(self) -> None:
        """Demand that nothing is left of any attachment."""
        deadline = time.monotonic() + _KERNEL_SECONDS
        while (
            "links" in (found := self.node.traces("br0", *self.kept))
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)  # the kernel may still be at it
        assert found == {}, "\n".join(self._said)
        for name, netns in self._netns.items():
            assert self.node.links(netns) == ["lo"], name


class Here(Node):
    """The node that this process is in."""

    def __init__(self) -> None:
        self.bin_dir = DIST
        self._engine: subprocess.Popen[bytes] | None = None
        self._enter: list[str] = []

    def path(self, name: str) -> Path:
        """Return where a file of the node is to be found."""
        return Path(name)

    def workers(self) -> list[int]:
        """Return the process ids of the engine's workers."""
        if self._engine is None:
            return []
        pid = self._engine.pid
        return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        """End the engine."""
        if self._engine:
            self._engine.terminate()
            assert self._engine.wait(60) == 0


def attachments(*names: str) -> Json:
    """Return the key that tells GC which containers are valid."""
    valid = [{"containerID": name, "ifname": "eth0"} for name in names]
    return {"cni.dev/valid-attachments": valid}


def configuration(kind: str, **keys: Any) -> Json:
    """Return a bridge with masquerading and host-local on the subnets of NETWORKS[kind]."""
    return single(network("1.1.0", NETWORKS[kind], **keys))


def network_of(*subnets: str) -> Json:
    """Return a bridge with host-local on these subnets."""
    return single(network("1.1.0", subnets, ipMasq=False))


def sweep(
    rig: Rig,
    request: pytest.FixtureRequest,
    scenario: Callable[[Injection], None],
    *,
    error: int = 0,
    lasting: bool = False,
    most: int = 0,
    everything: bool = ALL,
) -> None:
    """Run `scenario` with an injection at some calls, or for `everything` at each in turn.

    It prepares, calls `rig.inject` once, and judges; each time it leaves the node as it found it.
    A failure tells what was injected, and how to have that one case again. `most` limits the
    sample, 0: no limit.
    """
    for number in _numbers(rig, scenario, most, everything=everything):
        injection = Injection(number, error, lasting)
        rig.struck = ""
        try:
            scenario(injection)
        except BaseException as failure:
            failure.add_note(f"{injection}: {rig.struck or 'there was none'}")
            failure.add_note(
                f"replay: {ONLY}={number} tests/in-sandbox .venv/bin/python -m pytest"
                f" '{request.node.nodeid}'"
            )
            raise


def _numbers(
    rig: Rig, scenario: Callable[[Injection], None], most: int, *, everything: bool
) -> Sequence[int]:
    """Return the numbers of the calls that are hit, after a run of the scenario without fault."""
    if ONLY in os.environ:
        return [int(os.environ[ONLY])]
    scenario(Injection(0))
    calls = rig.called
    assert len(calls) > _CALLS_MIN, "the injector sees nothing"
    if everything:
        return _less_alike(len(calls))
    chosen = sample_of(calls, scope.turn(), most)
    print(f"of {len(calls)} calls {chosen}")
    return chosen


def _less_alike(count: int) -> Sequence[int]:
    """Return all numbers up to `count`; of very many few from the middle, whose calls are alike."""
    numbers = range(1, count + 1)
    if count <= _CALLS_MAX:
        return numbers
    middle = numbers[_EDGE:-_EDGE]
    return [*numbers[:_EDGE], *middle[:: len(middle) // _EDGE], *numbers[-_EDGE:]]


def sample_of(calls: Sequence[str], turn: int, most: int = 0) -> list[int]:
    """Return the numbers of an eighth of the calls, at least one of each kind: open, write, ….

    `turn` chooses which; in TURNS turns each call has been in a sample. With `most` only so many
    of these are returned, others TURNS turns later.
    """
    kinds: dict[str, list[int]] = {}
    for number, call in enumerate(calls, 1):
        kinds.setdefault(call.partition(" ")[0], []).append(number)
    chosen = sorted(
        number
        for numbers in kinds.values()
        for number in numbers[turn % min(TURNS, len(numbers)) :: TURNS]
    )
    if most and len(chosen) > most:
        step = len(chosen) // most
        first = turn // TURNS
        return sorted(chosen[(first + n * step) % len(chosen)] for n in range(most))
    return chosen


def _files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]
