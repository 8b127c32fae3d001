"""A storm: many clients attach, detach, collect, die and are killed at random on one node.

    tests/in-sandbox .venv/bin/python -m tests.faults.storm --operations 10000

Nobody may get an address that another one has, and nothing may be left at the end. A seed chooses
what every client does, and when it is killed; how the calls interleave is the kernel's choice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cni_common.spec.errors import Code
from plugins.host_local.lease import GRACE_SECONDS
from tests import aging
from tests.e2e.node import addresses_in
from tests.faults.clients import (
    FROZEN,
    FULL_MASTER,
    GO,
    MASTER,
    Client,
    Container,
    Draw,
    Network,
    networks,
    networks_of_a_full_kernel,
)
from tests.faults.rig import DATA_DIR, STATE_DIR, Here, attachments
from tests.machine import Json

SEED = "PYCNI_STORM_SEED"
ROUND = 5  # operations of a client between two audits
_STAYS = ("br0", "br1", MASTER, FULL_MASTER)
_RECORDS = f"{STATE_DIR}/attachments"
_ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:]+")
_FULL = re.compile(r"no IP addresses available in range set: ")
_NOTABLE = re.compile(r"took over|reclaimed")  # in the log: what is not asked for
_CALL_SECONDS = 120
_QUIET_SECONDS = 30.0


class Storm:
    """One storm on the node that this process is in."""

    def __init__(
        self, node: Here, seed: str, networks: tuple[Network, ...], *, clients: int
    ) -> None:
        self.node, self.networks, self.clients = node, networks, clients
        self.done: Counter[str] = Counter()
        self.dead: set[str] = set()  # containers that had no DEL
        self._clients = [Client(self, number, seed) for number in range(clients)]
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # address: the container that has it
        self._seconds = 0.2  # that a call takes, a moving average
        self._workers_killed = 0
        self._excused: set[str] = set()  # containers whose Go plugin may go on by itself

    def round(self, operations: int) -> None:
        """Have all clients do so many operations at once, then audit."""
        with ThreadPoolExecutor(len(self._clients)) as pool:
            for future in [pool.submit(one.run, operations) for one in self._clients]:
                future.result()
        self._audit()
        self._age(2 * GRACE_SECONDS)

    def finish(self) -> None:
        """Detach all, collect, and demand that nothing is left."""
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(Client.leave, self._clients))
        self._await(lambda: not self._lost(), "leases of what was deleted")
        self._await(lambda: not self._busy(), "processes at work")
        self._age(2 * GRACE_SECONDS)
        for network in self.networks:
            for number in range(len(network.plugins)):
                done = self._start("GC", Container("", FROZEN, network), number, **attachments())
                stdout, stderr = done.communicate(timeout=_CALL_SECONDS)
                assert done.returncode == 0, f"GC of {network.name}: {stdout!r} {stderr!r}"
        self._await(lambda: not self.node.traces(*_STAYS), "traces")

    def attempt(
        self, command: str, container: Container, draw: Draw | None, **keys: Any
    ) -> Json | None:
        """Run a command of each plugin of a chain, one of which may be killed.

        Returns the last one's result, or None when it did not get there.
        """
        numbers = range(len(container.network.plugins))
        kill_at = draw.kill_at if draw else None
        result: Json | None = None
        for number in reversed(numbers) if command == "DEL" else numbers:
            is_killed = draw is not None and draw.kill_step % len(numbers) == number
            result = self._call(command, container, number, kill_at if is_killed else None, **keys)
            if result is None:
                return None
            if command == "ADD":
                keys = {"prevResult": result}
        self.done[command] += 1
        return result

    def _call(
        self, command: str, container: Container, number: int, kill_at: float | None, **keys: Any
    ) -> Json | None:
        """Run one plugin; a failure without a kill must say that it can be tried again."""
        begun, workers_killed = time.monotonic(), self._workers_killed
        process = self._start(command, container, number, **keys)
        if kill_at is not None:
            time.sleep(kill_at * self._seconds)
            process.kill()
        stdout, stderr = process.communicate(timeout=_CALL_SECONDS)
        self._seconds += (time.monotonic() - begun - self._seconds) / 50
        self.done.update(_NOTABLE.findall(stderr.decode()))
        if process.returncode == 0:
            result: Json = json.loads(stdout or b"{}")
            return result
        if kill_at is not None and process.returncode < 0:
            self.done[f"{command} killed"] += 1
            if container.route is GO:
                self._excused.add(container.name)
            return None
        said = f"{command} {container.name}: {stdout!r} {stderr!r}"
        try:
            error = json.loads(stdout)
        except ValueError:
            error = {"code": 0, "msg": ""}
        if command == "ADD" and container.network.may_be_full and _FULL.search(error["msg"]):
            self.done["ADD without room"] += 1
            return None
        # A worker that was killed has taken the call with it.
        again = error["code"] == Code.TRY_AGAIN_LATER or workers_killed != self._workers_killed
        assert again, said
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

    def collect(self, network: Network, draw: Draw) -> None:
        """Run GC, which may be killed, with the list of all that exist at this moment."""
        names = [one.name for client in self._clients for one in client.present()]
        self.attempt("GC", Container("", FROZEN, network), draw, **attachments(*names))

    def end_worker(self, chance: float) -> None:
        """Kill one of the engine's workers, if there is an engine."""
        workers = self.node.workers()
        if workers:
            self._workers_killed += 1
            try:
                os.kill(workers[int(chance * len(workers))], 9)
            except ProcessLookupError:
                return
            self.done["worker killed"] += 1

    def _start(
        self, command: str, container: Container, number: int, **keys: Any
    ) -> subprocess.Popen[bytes]:
        config = {**container.network.config(number), **container.keys(), **keys}
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND": command}
        process = subprocess.Popen(
            [container.route[0] / config["type"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**env, "CNI_PATH": container.route[1], **container.environ()},
        )
        assert process.stdin
        try:
            process.stdin.write(json.dumps(config).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        return process

    def _age(self, seconds: float) -> None:
        """Make leases and records older, and what records say of their namespaces' end."""
        for path in (*self._lease_files(), *Path(_RECORDS).glob("*")):
            try:
                aging.age(path, seconds)
            except FileNotFoundError:
                continue  # of a Go plugin that goes on by itself

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

    def _lease_files(self) -> Iterator[Path]:
        return (p for p in Path(DATA_DIR).glob("*/*") if _ADDRESS.fullmatch(p.name))

    def _leased(self) -> dict[str, str]:
        """Return the owner of each address, by the files."""
        found = {}
        for path in self._lease_files():
            try:
                found[path.name] = path.read_bytes().partition(b"\r\n")[0].decode()
            except FileNotFoundError:
                continue  # of a call at work
        return found

    def _lost(self) -> set[str]:
        return set(self._leased().values()) - self._excused - self.dead

    def _busy(self) -> list[str]:
        """Return the command lines of plugins that run."""
        found = []
        types = {plugin["type"] for one in self.networks for plugin in one.plugins}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if Path(os.fsdecode(words[0])).name in {*types, "host-local"}:
                found.append(os.fsdecode(b" ".join(words)))
        return found

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _QUIET_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                detail = self._lost(), self.node.traces(*_STAYS), self._busy()
                raise AssertionError(f"there are {what}: {detail}")
            time.sleep(0.1)


def run(
    seed: str, *, operations: int, clients: int, has_engine: bool, is_kernel_full: bool
) -> None:
    """Let a storm rage on this node, and say how far it is."""
    node = Here()
    begun = time.monotonic()
    master, kind = (FULL_MASTER, "dummy") if is_kernel_full else (MASTER, "bridge")
    if not node.link("", master):
        node.command("ip", "link", "add", master, "type", kind)
        node.command("ip", "link", "set", master, "up")
    if has_engine:
        node.start_engine()
    try:
        make = networks_of_a_full_kernel if is_kernel_full else networks
        storm = Storm(node, seed, make(clients), clients=clients)
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
    parser.add_argument(
        "--full-kernel", action="store_true", help="vlan, ipvlan, dummy and vrf, not the others"
    )
    options = parser.parse_args(arguments)
    if b"in-sandbox" not in Path("/proc/1/cmdline").read_bytes():
        parser.error("it would use this machine's own network: run it by tests/in-sandbox")
    seed = os.environ.get(SEED) or f"{time.time_ns() & 0xFFFFFFFF:08x}"
    print(f"seed: {SEED}={seed}", flush=True)
    try:
        for has_engine in (False, True):
            run(
                seed,
                operations=options.operations // 2,
                clients=options.clients,
                has_engine=has_engine,
                is_kernel_full=options.full_kernel,
            )
    except BaseException:
        words = f"--operations {options.operations} --clients {options.clients}"
        words += " --full-kernel" * options.full_kernel
        program = "tests/in-sandbox .venv/bin/python -m tests.faults.storm"
        print(f"replay: {SEED}={seed} {program} {words}", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
