"""A storm: many clients attach, detach, collect, die and are killed at random on one node.

    tests/in-sandbox .venv/bin/python -m tests.faults.storm --operations 10000

Nobody may get an address that another one has, and nothing may be left at the end. A seed chooses
what every client does, and when it is killed; how the calls interleave is the kernel's choice.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cni_common.errors import Code
from tests.e2e.node import addresses_in
from tests.faults.rig import DATA_DIR, STATE_DIR, Here, attachments, configuration
from tests.machine import CNI_BIN, DIST, REFERENCE_BIN, Json

SEED = "PYCNI_STORM_SEED"
SUBNETS = ["10.9.0.0/22", "fd00:9::/64"]
# Where a call goes, with weights: the plugin's directory, and CNI_PATH.
FROZEN, SCRIPT, GO = (DIST, str(DIST)), (CNI_BIN, str(CNI_BIN)), (DIST, f"{REFERENCE_BIN}:{DIST}")
ROUTES, ROUTE_WEIGHTS = (FROZEN, SCRIPT, GO), (6, 1, 3)
SLOTS = 2  # containers of a client
ROUND = 5  # operations of a client between two audits
KILLED, COLLECTS, ENDS_WORKER, DIES, CHECKS = 0.15, 0.03, 0.02, 0.1, 0.15
_CALL_SECONDS = 120
_QUIET_SECONDS = 30.0

Route = tuple[Path, str]


@dataclass
class Container:
    """One container; `addresses` are its own once ADD has returned them, until DEL begins."""

    name: str
    route: Route
    addresses: list[str] = field(default_factory=list)
    result: Json | None = None  # of an ADD that has succeeded


@dataclass(frozen=True)
class Draw:
    """What chance says about one operation, drawn whether or not it matters."""

    slot: int
    route: Route
    kind: float
    kill_at: float | None  # as a part of what such a call takes


class Storm:
    """One storm on the node that this process is in."""

    def __init__(self, node: Here, seed: str, *, clients: int) -> None:
        self.node = node
        self.config = configuration("dual") | {"name": "storm"}
        self.config["ipam"] = self.config["ipam"] | {
            "ranges": [[{"subnet": subnet}] for subnet in SUBNETS]
        }
        self.done: Counter[str] = Counter()
        self._clients = [Client(self, number, seed) for number in range(clients)]
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # address: the container that has it
        self._seconds = 0.2  # that a call takes, a moving average
        self.workers_killed = 0
        self.excused: set[str] = set()  # containers of which only GC has to take what is left

    def round(self, operations: int) -> None:
        """Have all clients do so many operations at once, then audit."""
        with ThreadPoolExecutor(len(self._clients)) as pool:
            for future in [pool.submit(one.run, operations) for one in self._clients]:
                future.result()
        self._audit()

    def finish(self) -> None:
        """Detach all, collect, and demand that nothing is left."""
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(Client.leave, self._clients))
        self._await(lambda: not self._leases() - self.excused, "leases of what was deleted")
        self._await(lambda: not self._busy(), "processes at work")
        for root in (DATA_DIR, f"{STATE_DIR}/attachments"):
            for path in Path(root).rglob("*"):
                os.utime(path, (0, 0))
        self.call("GC", FROZEN, "", **attachments())
        self._await(lambda: not self.node.traces("br0"), "traces")

    def call(self, command: str, route: Route, name: str, **keys: object) -> Json:
        """Run a call that must succeed; return its result."""
        done = self.start(command, route, name, **keys)
        stdout, stderr = done.communicate(timeout=_CALL_SECONDS)
        assert done.returncode == 0, f"{command} {name}: {stdout!r} {stderr!r}"
        result: Json = json.loads(stdout or b"{}")
        return result

    def start(
        self, command: str, route: Route, name: str, **keys: object
    ) -> subprocess.Popen[bytes]:
        """Start a call of the bridge."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND": command}
        env |= {"CNI_PATH": route[1]}
        if name:
            netns = f"/run/netns/{name}"
            env |= {"CNI_CONTAINERID": name, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
        process = subprocess.Popen(
            [route[0] / "bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        assert process.stdin
        try:
            process.stdin.write(json.dumps({**self.config, **keys}).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        return process

    def attempt(
        self, command: str, container: Container, kill_at: float | None, **keys: object
    ) -> Json | None:
        """Run a call, which may be killed; return its result, None when it did not get there.

        What fails without being killed must say that it can be tried again.
        """
        begun, workers_killed = time.monotonic(), self.workers_killed
        process = self.start(command, container.route, container.name, **keys)
        if kill_at is not None:
            time.sleep(kill_at * self._seconds)
            process.kill()
        stdout, stderr = process.communicate(timeout=_CALL_SECONDS)
        self._seconds += (time.monotonic() - begun - self._seconds) / 50
        if process.returncode == 0:
            self.done[command] += 1
            result: Json = json.loads(stdout or b"{}")
            return result
        if kill_at is not None and process.returncode < 0:
            self.done[f"{command} killed"] += 1
            if container.route is GO:
                self.excused.add(container.name)  # the Go plugin goes on by itself
            return None
        said = f"{command} {container.name}: {stdout!r} {stderr!r}"
        try:
            again = json.loads(stdout)["code"] == Code.TRY_AGAIN_LATER
        except ValueError:
            again = False
        # A worker that was killed has taken the call with it.
        assert again or workers_killed != self.workers_killed, said
        self.done[f"{command} to be tried again"] += 1
        return None

    def claim(self, container: Container, result: Json) -> None:
        """Note what a container has from now on, which nobody else may have."""
        addresses = addresses_in(result)
        with self._lock:
            for address in addresses:
                other = self._held.setdefault(address, container.name)
                assert other == container.name, f"{address}: {other} and {container.name} have it"
        container.addresses, container.result = addresses, result

    def disclaim(self, container: Container) -> None:
        """Note that a container is about to lose what it has."""
        with self._lock:
            for address in container.addresses:
                del self._held[address]
        container.addresses = []

    def collect(self, kill_at: float | None = None) -> None:
        """Run GC, which may be killed, with the list of all that exist at this moment."""
        names = [one.name for client in self._clients for one in client.present()]
        self.attempt("GC", Container("", FROZEN), kill_at, **attachments(*names))

    def end_worker(self, chance: float) -> None:
        """Kill one of the engine's workers, if there is an engine."""
        workers = self.node.workers()
        if workers:
            self.workers_killed += 1
            try:
                os.kill(workers[int(chance * len(workers))], 9)
            except ProcessLookupError:
                return
            self.done["worker killed"] += 1

    def _audit(self) -> None:
        """Demand that each container has what it was told, and nobody else, by `ip`."""
        leases = self._leased()
        holders: dict[str, str] = {}
        for client in self._clients:
            for one in client.present():
                addresses = self._addresses(one.name)
                if one.addresses:
                    assert set(addresses) == set(one.addresses), one
                    assert all(leases.get(address) == one.name for address in addresses), one
                for address in addresses:
                    assert address not in holders, f"{address}: {one.name}, {holders[address]}"
                    holders[address] = one.name

    def _addresses(self, name: str) -> list[str]:
        netns = f"/run/netns/{name}"
        if not Path(netns).exists():
            return []
        links = self.node.ip(netns, "addr")
        infos = [info for link in links if link["ifname"] == "eth0" for info in link["addr_info"]]
        return [info["local"] for info in infos if info["scope"] == "global"]

    def _leased(self) -> dict[str, str]:
        """Return who has each address, by the files."""
        found = {}
        for path in Path(DATA_DIR, "storm").iterdir():
            if re.fullmatch(r"[0-9.]+|[0-9a-f:]+", path.name):
                try:
                    found[path.name] = path.read_bytes().partition(b"\r\n")[0].decode()
                except FileNotFoundError:
                    continue  # of a call at work
        return found

    def _leases(self) -> set[str]:
        return set(self._leased().values())

    def _busy(self) -> list[str]:
        """Return the command lines of plugins that run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if Path(os.fsdecode(words[0])).name in ("bridge", "host-local"):
                found.append(os.fsdecode(b" ".join(words)))
        return found

    def _await(self, condition: "object", what: str) -> None:
        assert callable(condition)
        deadline = time.monotonic() + _QUIET_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                detail = self._leases() - self.excused, self.node.traces("br0"), self._busy()
                raise AssertionError(f"there are {what}: {detail}")
            time.sleep(0.1)


class Client:
    """A runtime of a few containers, which does one thing after the other."""

    def __init__(self, storm: Storm, number: int, seed: str) -> None:
        self._storm = storm
        self._number = number
        self._random = random.Random(f"{seed} {number}")
        self._made = 0
        self._slots: list[Container | None] = [None] * SLOTS

    def present(self) -> list[Container]:
        """Return the containers that exist."""
        return [one for one in list(self._slots) if one]

    def run(self, operations: int) -> None:
        """Do so many operations."""
        for _ in range(operations):
            self._operate(self._draw())

    def leave(self) -> None:
        """Detach all containers and end them."""
        for slot, container in enumerate(self._slots):
            for _ in range(5):
                if container and self._slots[slot]:
                    self._detach(slot, container, None)
            assert self._slots[slot] is None

    def _draw(self) -> Draw:
        chance = self._random
        killed = chance.random() < KILLED
        kill_at = chance.random() * 1.2
        (route,) = chance.choices(ROUTES, ROUTE_WEIGHTS)
        slot = chance.randrange(SLOTS)
        return Draw(slot, route, chance.random(), kill_at if killed else None)

    def _operate(self, draw: Draw) -> None:
        if draw.kind < COLLECTS:
            self._storm.collect(draw.kill_at)
            return
        if draw.kind < COLLECTS + ENDS_WORKER:
            self._storm.end_worker((draw.kind - COLLECTS) / ENDS_WORKER)
        container = self._slots[draw.slot]
        if container is None:
            self._attach(draw)
        elif draw.kind > 1 - DIES:
            self._die(draw.slot, container)
        elif container.addresses and draw.kind > 1 - DIES - CHECKS:
            prev = {"prevResult": container.result}
            self._storm.attempt("CHECK", container, draw.kill_at, **prev)
        else:
            self._detach(draw.slot, container, draw.kill_at)

    def _attach(self, draw: Draw) -> None:
        self._made += 1
        container = Container(f"s{self._number}-{self._made}", draw.route)
        self._storm.node.command("ip", "netns", "add", container.name)
        self._slots[draw.slot] = container  # before the ADD: GC must know it
        result = self._storm.attempt("ADD", container, draw.kill_at)
        if result is not None:
            self._storm.claim(container, result)

    def _detach(self, slot: int, container: Container, kill_at: float | None) -> None:
        self._storm.disclaim(container)
        if self._storm.attempt("DEL", container, kill_at) is None:
            return  # to be tried again
        self._slots[slot] = None
        self._delete_netns(container)

    def _die(self, slot: int, container: Container) -> None:
        """End a container, and never send the DEL."""
        self._storm.excused.add(container.name)
        self._storm.disclaim(container)
        self._slots[slot] = None
        self._delete_netns(container)
        self._storm.done["died"] += 1

    def _delete_netns(self, container: Container) -> None:
        self._storm.node.command("ip", "netns", "delete", container.name)


def run(seed: str, *, operations: int, clients: int, has_engine: bool) -> None:
    """Let a storm rage on this node, and say how far it is."""
    node = Here()
    begun = time.monotonic()
    if has_engine:
        node.start_engine()
    try:
        storm = Storm(node, seed, clients=clients)
        done = 0
        say = partial(print, flush=True)
        say(f"storm {'with' if has_engine else 'without'} the engine, {clients} clients")
        while done < operations:
            each = max(1, min(ROUND, (operations - done) // clients))
            storm.round(each)
            done += each * clients
            counts = ", ".join(f"{count} {what}" for what, count in sorted(storm.done.items()))
            say(f"{done:6} of {operations}, {time.monotonic() - begun:.0f} s: {counts}")
        storm.finish()
        say(f"{time.monotonic() - begun:6.0f} s: no address given twice, nothing left")
    finally:
        node.close()


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.storm", description=__doc__)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args(arguments)
    if b"in-sandbox" not in Path("/proc/1/cmdline").read_bytes():
        parser.error("it would use this machine's own network: run it by tests/in-sandbox")
    seed = os.environ.get(SEED) or f"{time.time_ns() & 0xFFFFFFFF:08x}"
    try:
        for has_engine in (False, True):
            run(
                seed,
                operations=options.operations // 2,
                clients=options.clients,
                has_engine=has_engine,
            )
    except BaseException:
        words = f"--operations {options.operations} --clients {options.clients}"
        program = "tests/in-sandbox .venv/bin/python -m tests.faults.storm"
        print(f"replay: {SEED}={seed} {program} {words}", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
