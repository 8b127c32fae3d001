"""Measure how long pods of one node take from their creation to Ready, and the part of CNI in it.

    tests/in-sandbox .venv/bin/python -m tests.kubernetes.measure [--pods 1,30,60] [--rounds 5]

One cluster, one list of plugins, that of kindnet: ptp, host-local and portmap. What changes, in
turns, is the directory of the plugins: the Go plugins, ours as a process for each call, and ours
with the engine. The part of CNI is containerd's own metric. Writes docs/benchmarks-kubernetes.md,
from the samples in build/benchmarks-kubernetes.json: --add keeps those of earlier runs there.
"""

# ruff: noqa: T201  # a program of its own

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tests.kubernetes import by_hand, combination
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.daemons import Daemon
from tests.kubernetes.node import BIN, Node
from tests.kubernetes.pods import Pods, pod
from tests.kubernetes.world import World
from tests.machine import DIST, REFERENCE_BIN, ROOT
from tests.runtimes import image
from tests.sockets import open_socket
from tests.waits import wait_until

PAGE = ROOT / "docs" / "benchmarks-kubernetes.md"
SAMPLES = ROOT / "build" / "benchmarks-kubernetes.json"
SECONDS = 600.0  # for all pods of a sample
_TRIES = 5  # for a sample in which nothing but its own pods is torn down
_AGAIN_MAX = 60  # pods: more take so long that the kubelet always removes dead sandboxes meanwhile
_ENGINE = "engine"
_TEMPLATE = Path(__file__).with_suffix(".md")
_METRIC = "network_plugin_operations_duration_seconds"


@dataclass(frozen=True)
class Sample:
    """One column, once: seconds."""

    ready: float
    gone: float
    added: float  # by CNI, of all pods together
    deleted: float  # likewise, of all calls
    pods: int
    deletions: int  # calls: more than pods where the kubelet has removed dead sandboxes meanwhile


Found = dict[int, dict[str, list[Sample]]]  # by number of pods and name of the column


@dataclass(frozen=True)
class Column:
    """The content of the directory of the plugins."""

    name: str
    plugins: Path
    has_engine: bool = False


COLUMNS = (
    Column("reference", REFERENCE_BIN),
    Column("one-shot", DIST),
    Column("engine", DIST, has_engine=True),
)
_FIGURES: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("Ready", "s", lambda one: one.ready),
    ("gone", "s", lambda one: one.gone),
    ("set-up, each", "ms", lambda one: one.added / one.pods * 1000),
    ("teardown, each", "ms", lambda one: one.deleted / one.deletions * 1000),
    ("part of CNI", "%", lambda one: one.added / one.ready * 100),
)


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.measure")
    parser.add_argument("--pods", default="1,30,60", help="numbers of pods (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    names = ",".join(column.name for column in COLUMNS)
    parser.add_argument("--columns", default=names, help="(default: %(default)s)")
    parser.add_argument("--combination", default="current", choices=combination.COMBINATIONS)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--add", action="store_true", help="keep the samples of earlier runs")
    options = parser.parse_args()
    chosen = combination.COMBINATIONS[options.combination]
    numbers = [int(one) for one in options.pods.split(",")]
    columns = [one for one in COLUMNS if one.name in options.columns.split(",")]
    busy = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as folder, closing(World()) as world:
        archive = Path(folder) / "test.tar"
        image.write(archive)
        with closing(Cluster(world, chosen, [archive])) as cluster:
            cluster.start()
            found = measure(cluster, numbers, options.rounds, columns)
    if options.add:
        found = joined(load(SAMPLES), found)
    SAMPLES.parent.mkdir(exist_ok=True)
    SAMPLES.write_text(json.dumps(found, default=asdict, indent=1))
    runtime = "2.4" if chosen.containerd else "1.6"
    head = _TEMPLATE.read_text().format(runtime=runtime, metric=_METRIC, load=busy)
    options.output.write_text(head + "".join(rows(found)))
    return 0


def load(path: Path) -> Found:
    """Return the samples of a file, none where there is no file."""
    told = json.loads(path.read_text()) if path.exists() else {}
    return {
        int(number): {name: [Sample(**one) for one in some] for name, some in columns.items()}
        for number, columns in told.items()
    }


def joined(old: Found, new: Found) -> Found:
    """Return the samples of both, by number of pods and column."""
    return {
        number: {
            column.name: [
                *old.get(number, {}).get(column.name, ()),
                *new.get(number, {}).get(column.name, ()),
            ]
            for column in COLUMNS
        }
        for number in sorted({*old, *new})
    }


def measure(
    cluster: Cluster, numbers: Sequence[int], rounds: int, columns: Sequence[Column]
) -> Found:
    """Return the samples by number of pods and column."""
    nodes = list(cluster.nodes.values())
    for node in nodes:
        by_hand.install(node, REFERENCE_BIN)
    by_hand.connect(cluster.api, nodes)
    by_hand.configure(cluster.api, nodes, "0.3.1")
    cluster.wait_ready()
    found: Found = {number: {column.name: [] for column in COLUMNS} for number in numbers}
    for turn in range(rounds):
        for offset in range(len(columns)):
            column = columns[(turn + offset) % len(columns)]
            engine = install(cluster.first, column)
            sample(cluster, 1)  # what a network makes once
            for number in numbers:
                one = undisturbed(cluster, number)
                found[number][column.name].append(one)
                print(f"{column.name:10} {number:4} pods {one}", flush=True)
            if engine:
                engine.stop()
    return found


def install(node: Node, column: Column) -> Daemon | None:
    """Put a column's plugins in place of what is there; return its engine."""
    target = node.path(BIN)
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    by_hand.install(node, column.plugins)
    if not column.has_engine:
        return None
    words = node.entered(f"{BIN}/pycni", "engine")
    engine = Daemon(words, node.logs / "engine.log", node.environ)
    wait_until(lambda: engine.said("") and node.path("/run/pycni/engine.sock").exists(), "engine")
    return engine


def undisturbed(cluster: Cluster, number: int) -> Sample:
    """Return a sample, if possible one without the removal of earlier pods' sandboxes.

    Once a minute the kubelet removes all dead sandboxes, and containerd tears the network of each
    down a second time, one after the other.
    """
    for _ in range(_TRIES):
        one = sample(cluster, number)
        if one.deletions == one.pods or number > _AGAIN_MAX:
            break
        print(f"{one.deletions} teardowns of {number} pods: once more", flush=True)
    return one


def sample(cluster: Cluster, number: int) -> Sample:
    """Start and delete so many pods."""
    node = cluster.first
    pods = Pods(cluster.api, cluster.nodes)
    bodies = [pod(f"measured-{one}", node.name) for one in range(number)]
    names = [body["metadata"]["name"] for body in bodies]
    before = cni_seconds(node)
    begun = time.monotonic()
    pods.create(*bodies)
    pods.wait_ready(names, SECONDS)
    ready = time.monotonic() - begun
    between = cni_seconds(node)
    begun = time.monotonic()
    pods.delete(*names, seconds=SECONDS)
    gone = time.monotonic() - begun
    cluster.wait_torn_down()
    wait_until(lambda: cni_seconds(node).deletions >= between.deletions + number, "no DEL is told")
    after = cni_seconds(node)
    deletions, deleted = after.deletions - between.deletions, after.deleted - between.deleted
    return Sample(ready, gone, between.added - before.added, deleted, number, deletions)


class Told(NamedTuple):
    """Figures of containerd for all calls of CNI: seconds, and the number of deletions."""

    added: float
    deleted: float
    deletions: int


def cni_seconds(node: Node) -> Told:
    """Return what containerd on a node tells now."""
    connection = http.client.HTTPConnection("127.0.0.1", combination.METRICS_PORT)
    with closing(connection):
        connection.sock = open_socket(node.netns, "tcp", "127.0.0.1")
        connection.sock.settimeout(10)
        connection.sock.connect(("127.0.0.1", combination.METRICS_PORT))
        connection.request("GET", "/v1/metrics")
        text = connection.getresponse().read().decode()
    return Told(
        _value(text, "sum", "set_up_pod"),
        _value(text, "sum", "tear_down_pod"),
        int(_value(text, "count", "tear_down_pod")),
    )


def _value(text: str, what: str, operation: str) -> float:
    """Return a value of the metric for an operation; 0 before the first one."""
    found = re.search(rf'(?m)^\S*{_METRIC}\S*_{what}\{{[^}}]*"{operation}"\}} (\S+)$', text)
    return float(found[1]) if found else 0.0


def rows(found: Mapping[int, Mapping[str, Sequence[Sample]]]) -> list[str]:
    """Return the lines of the table."""
    lines = []
    for number, columns in found.items():
        for title, unit, value in _FIGURES:
            values = {name: [value(one) for one in samples] for name, samples in columns.items()}
            cells = [_cell(values[column.name], unit) for column in COLUMNS]
            middle = {name: statistics.median(some) for name, some in values.items() if some}
            ratio = middle[_ENGINE] / middle["reference"] if middle["reference"] else float("nan")
            rounds = len(values[_ENGINE])
            lines.append(f"| {number} | {rounds} | {title} | {' | '.join(cells)} | {ratio:.2f} |\n")
    return lines


def _cell(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    digits = 2 if unit == "s" else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
