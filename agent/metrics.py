"""The agent's metrics, in Prometheus' text format by its own client library."""

from __future__ import annotations

import hashlib
from collections import Counter as Counts
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric

from agent import leases
from cni_common.spec.names import VERSION
from commands import counters, pools

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.cluster import Network
    from commands.exposition import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: an idle reconcile takes some milliseconds, an installation a second or two.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


class Metrics:
    """All metrics of one agent."""

    def __init__(self, leases: Path, state_dir: str = "") -> None:
        """`leases` is host-local's directory of the network; `state_dir` has traces of calls."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("pycni_build", "The agent's version.", registry=registry).info({"version": VERSION})
        self._reconciles = Counter(
            "pycni_agent_reconciles", "Reconciles, by their cause.", ["cause"], registry=registry
        )
        self._duration = Histogram(
            "pycni_agent_reconcile_duration_seconds",
            "How long a reconcile took.",
            registry=registry,
            buckets=_BUCKETS,
        )
        self._problems = Gauge(
            "pycni_agent_problems", "What is wrong now, by part.", ["part"], registry=registry
        )
        self._repairs = Counter(
            "pycni_drift_repairs",
            "Objects that other programs had removed or changed.",
            ["object"],
            registry=registry,
        )
        self._config = Info("pycni_config", "The list of plugins.", registry=registry)
        self._ready = Gauge("pycni_agent_ready", "Whether /readyz says yes.", registry=registry)
        self._overlaps = Gauge(
            "pycni_pod_cidr_overlaps",
            "Ranges of other nodes that overlap a range of this node.",
            registry=registry,
        )
        self._sync = Gauge(
            "pycni_api_last_sync_timestamp_seconds",
            "When the API server was heard of last.",
            registry=registry,
        )
        self._events = Counter(
            "pycni_api_node_events", "Events of Nodes, by kind.", ["kind"], registry=registry
        )
        self._watches = Counter(
            "pycni_api_watches_ended",
            "Watches that ended, by reason.",
            ["reason"],
            registry=registry,
        )
        self._nodes = Gauge("pycni_nodes", "Nodes of the cluster.", registry=registry)
        self._dropped = Counter(
            "pycni_agent_reports_dropped",
            "Tries to send an Event for which there was no room; what lasts is tried again.",
            registry=registry,
        )
        self._addresses = _Addresses(leases)
        registry.register(self._addresses)
        if state_dir:
            registry.register(_Calls(state_dir))

    def text(self) -> bytes:
        """Return all metrics as /metrics shows them."""
        return generate_latest(self._registry)

    def reconciled(self, causes: Iterable[str], seconds: float) -> None:
        """Count a reconcile. Of a cause only the word before the first colon counts."""
        for cause in sorted({one.partition(":")[0] for one in causes}) or ["timer"]:
            self._reconciles.labels(cause).inc()
        self._duration.observe(seconds)

    def problems(self, part: str, count: int) -> None:
        """Set how much is wrong with a part."""
        self._problems.labels(part).set(count)

    def repaired(self, what: str, count: int = 1) -> None:
        """Count repairs."""
        self._repairs.labels(what).inc(count)

    def configuration(self, text: bytes) -> None:
        """Show a digest of the list of plugins."""
        self._config.info({"hash": hashlib.sha256(text).hexdigest()[:12]})

    def ready(self, *, is_ready: bool) -> None:
        """Set what /readyz says."""
        self._ready.set(is_ready)

    def overlaps(self, count: int) -> None:
        """Set how many ranges of other nodes overlap an own range."""
        self._overlaps.set(count)

    def ranges(self, ranges: tuple[Network, ...]) -> None:
        """Set the own ranges, whose addresses are counted."""
        self._addresses.ranges = ranges

    def heard_of_api(self) -> None:
        """Note that the API server has just answered."""
        self._sync.set_to_current_time()

    def node_event(self, kind: str) -> None:
        """Count an event."""
        self._events.labels(kind.lower()).inc()

    def watch_ended(self, reason: str) -> None:
        """Count a watch that ended."""
        self._watches.labels(reason).inc()

    def nodes(self, count: int) -> None:
        """Set how many nodes there are."""
        self._nodes.set(count)

    def report_dropped(self) -> None:
        """Count an event on the Node that was not sent."""
        self._dropped.inc()


class _Calls:
    """The counts of the plugins' calls, which `pycni metrics` shows, too."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics, none where no call can have left a trace."""
        try:
            yield from map(_metric, counters.of_calls(self._state_dir))
        except OSError:
            return


def _metric(family: Family) -> Metric:
    """Return a family in the form of the client library."""
    metric = Metric(family.name, family.help, family.type)
    for one in family.samples:
        metric.add_sample(f"{family.name}{one.suffix}", dict(one.labels), one.value)
    return metric


class _Addresses:
    """The addresses of each own range, counted when they are asked for."""

    def __init__(self, leases: Path) -> None:
        self._leases = leases
        self.ranges: tuple[Network, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """Yield the family of metrics, none where the leases cannot be read."""
        try:
            leased = Counts(one.version for one in leases.leased(self._leases))
        except OSError:
            return
        # Never given out: the network's own, the gateway's, and broadcast in IPv4.
        yield _metric(
            pools.addresses(
                (str(one), leased[one.version], one.num_addresses - (3 if one.version == 4 else 2))
                for one in self.ranges
            )
        )
