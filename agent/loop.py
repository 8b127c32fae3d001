"""The one loop that changes anything on the node: woken by all others, it looks and mends.

Only the head start of plugins and engine comes before it.
Each step asks the node anew what is there. So it does not matter which wake-up came, in which
order, or whether one was lost.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent import configuration, install, owners
from agent.reports import Condition, Lasting
from agent.snapshot import overlaps
from agent.watch import BackOff
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.configuration import Choice
    from agent.engine import Engine
    from agent.logs import Log
    from agent.metrics import Metrics
    from agent.network.fabric import Applied, Fabric
    from agent.pod_events import PodEvents
    from agent.remembered import Remembered
    from agent.reports import Reports
    from agent.snapshot import Snapshot
    from agent.wake import Wake
    from agent.watch import NodeWatch

_REST_SECONDS = 300.0  # between two looks without a wake-up
_RETRY_SECONDS = (1.0, 60.0)  # while something is wrong
_STUCK_SECONDS = 300.0  # that one round may take at most
_INSTALL_TRIES = 4  # the first installs, the second sees that all is there
# Reasons of the Events, by part.
_REASONS = {
    "nodes": "NodesUnknown",
    "install": "InstallFailed",
    "engine": "EngineFailed",
    "network": "NetworkFailed",
    "overlap": "PodCIDROverlap",
    "configuration": "ConfigurationFailed",
    "conflict": "ConfigurationConflict",
    "leftovers": "LeftoversStay",
}


@dataclass(frozen=True)
class Parts:
    """The parts that the loop works with; None for those that an operator has switched off."""

    watch: NodeWatch
    remembered: Remembered
    fabric: Fabric
    choice: Choice
    bin_dir: Path
    dist: Path | None  # what to install
    engine: Engine | None
    reports: Reports
    pod_events: PodEvents
    metrics: Metrics
    log: Log
    before: Callable[[], object] = lambda: None  # called at the beginning of each round
    head_start: Callable[[], set[str]] = set  # waits for it; returns what it has told
    leftovers: Callable[[], tuple[str, ...]] = tuple  # called at the end; returns problems
    has_condition: bool = False  # NetworkUnavailable of the Node is the agent's


@dataclass
class _Seen:
    """Findings of the last rounds."""

    build: str = ""  # that is installed
    signature: tuple[object, ...] = ()
    text: bytes = b""  # of the list that was written
    engine: bool = False  # it has served
    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lasting: dict[str, Lasting] = field(default_factory=lambda: defaultdict(Lasting))  # by part
    since: float = 0.0  # when the round began that goes on, 0: none


class Loop:
    """Rounds of looking and mending."""

    def __init__(self, parts: Parts, node: str) -> None:
        """`node` is the name of this node."""
        self._parts = parts
        self._node = node
        self._seen = _Seen()
        self._remembered = parts.remembered.load(node)
        self._back_off = BackOff(*_RETRY_SECONDS)

    def run(self, wake: Wake) -> None:
        """Make rounds until `wake` stops."""
        causes: frozenset[str] | None = frozenset({"start"})
        while causes is not None:
            seconds = self.round(causes)
            causes = wake.wait(seconds)

    def round(self, causes: frozenset[str]) -> float:
        """Make one round; return the seconds after which another is due without a wake-up."""
        began = self._seen.since = time.monotonic()
        try:
            self._parts.before()
            self._round()
        finally:
            self._seen.since = 0.0
        seconds = time.monotonic() - began
        self._parts.metrics.reconciled(causes, seconds)
        self._parts.log.debug("round", causes=sorted(causes), seconds=round(seconds, 3))
        if any(self._seen.problems.values()):
            return self._back_off.next()
        self._back_off.reset()
        return _REST_SECONDS

    def _round(self) -> None:
        """Binaries and engine first, then the network, and the list of plugins last."""
        self._try("install", self._install)
        wrong = self._attempt("engine", self._engine)
        snapshot = self._snapshot()
        applied = self._apply(snapshot) if snapshot else None
        self._problems("engine", wrong or self._attempt("engine", self._await_engine))
        if snapshot is None:
            return
        self._overlaps(snapshot)
        if applied and applied.mtu and self._seen.build:
            self._try("configuration", lambda: self._configure(snapshot, applied))
        self._try("conflict", lambda: self._conflicts(snapshot))
        if applied:
            self._parts.reports.announce(snapshot.cluster.own, applied.public_key)
        self._try("leftovers", self._parts.leftovers)
        self._try("pods", lambda: self._tell_pods(snapshot))
        if self._parts.has_condition:
            self._set_condition(snapshot)

    def _snapshot(self) -> Snapshot | None:
        """Return the cluster: as the API server has it, else as it was when that last answered."""
        snapshot = self._parts.watch.snapshot
        if snapshot:
            self._try("state", lambda: self._save(snapshot))
        found = snapshot or self._remembered
        self._problems("nodes", () if found else self._why_unknown())
        return found

    def _why_unknown(self) -> tuple[str, ...]:
        """Return why no cluster is known, nothing while the first list goes on."""
        watch = self._parts.watch
        if watch.lacks_own:
            asked = "is NODE_NAME the Node's own name (spec.nodeName)?"
            return (f"there is no Node '{self._node}' (yet): {asked}",)
        if watch.failure:
            return (f"the API server has never been reached: {watch.failure}",)
        return ()

    def _save(self, snapshot: Snapshot) -> tuple[str, ...]:
        self._parts.remembered.save(snapshot)
        return ()

    def _install(self) -> tuple[str, ...]:
        """Bring the bundle and its launchers into place, where they are not already."""
        parts, seen = self._parts, self._seen
        if parts.dist is None:
            seen.build = install.installed(parts.bin_dir)
            lacks = f"'{parts.bin_dir}' has no plugins of ours, and --install is off: install them"
            return () if seen.build else (lacks,)
        if seen.signature and seen.signature == install.signature(parts.bin_dir, seen.build):
            return ()
        if seen.signature:
            parts.metrics.repaired("install")
            parts.log.warning("plugins were removed or replaced: installing them again")
        seen.signature = ()
        seen.build = install.build_of(parts.dist)
        told = self._parts.head_start()
        for _ in range(_INSTALL_TRIES):
            # Only what was the same before and after was looked at in between: other programs may
            # replace a plugin meanwhile.
            before = install.signature(parts.bin_dir, seen.build)
            install.install(parts.dist, parts.bin_dir, told.add, owner=owners.AGENT)
            if install.signature(parts.bin_dir, seen.build) == before:
                seen.signature = before
                break
        for text in sorted(told):
            parts.log.info(text, part="install")
        if seen.signature:
            return ()
        return (f"another program replaces plugins in '{parts.bin_dir}' all the time: stop that",)

    def _engine(self) -> tuple[str, ...]:
        parts, seen = self._parts, self._seen
        if parts.engine is None or not seen.build:
            return ()
        if seen.engine and not parts.engine.build():
            parts.metrics.repaired("engine")
        return parts.engine.ensure(seen.build)

    def _await_engine(self) -> tuple[str, ...]:
        """Wait for an engine that was started: it imports while the network is looked at."""
        problems = self._parts.engine.await_start() if self._parts.engine else ()
        self._seen.engine = bool(self._seen.build) and not problems
        return problems

    def _apply(self, snapshot: Snapshot) -> Applied | None:
        applied: list[Applied] = []

        def apply() -> tuple[str, ...]:
            found = self._parts.fabric.apply(snapshot.cluster)
            applied.append(found)
            if found.repaired:
                self._parts.metrics.repaired("pods", found.repaired)
            if not found.mtu and not found.problems:
                return ("no device has this node's address yet: its InternalIP has to be on one",)
            return found.problems

        self._try("network", apply)
        return applied[0] if applied else None

    def _overlaps(self, snapshot: Snapshot) -> None:
        found = overlaps(snapshot.cluster)
        self._parts.metrics.overlaps(len(found))
        closed = configuration.why_closed(snapshot)
        taker = configuration.taker(snapshot)
        words = (
            "pods of this node that run stay reachable from other nodes, as its name comes first"
        )
        if taker:
            words = f"pods of this node that run are not reached from other nodes: {_taken(taker)}"
        told = (f"new pods are refused: {closed}", words)
        self._problems("overlap", told if closed else ())

    def _set_condition(self, snapshot: Snapshot) -> None:
        """Say whether new pods can start; nothing before the list was written for the first time.

        A node that waits for its first list is NotReady without it.
        """
        overlap = self._seen.problems.get("overlap", ())
        if overlap:
            found = Condition(_REASONS["overlap"], "; ".join(overlap), is_unavailable=True)
        elif self._seen.text:
            found = Condition("PycniReady", "the network is set up")
        else:
            return
        self._parts.reports.condition(snapshot.cluster.own, found)

    def _tell_pods(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Have Events on those pods that have lost something; nothing else looks at them."""
        taker = configuration.taker(snapshot)
        everywhere = f"not reached from other nodes: {_taken(taker)}" if taker else ""
        self._parts.pod_events.tell(_REASONS["overlap"], everywhere, self._parts.fabric.broken)
        return ()

    def _configure(self, snapshot: Snapshot, applied: Applied) -> tuple[str, ...]:
        """Write the list, and open the node for pods.

        Where pods would not get out a node stays closed after its boot. One that was open stays so,
        also if the network has failed since, and its list follows the cluster.
        """
        parts, seen = self._parts, self._seen
        parts.metrics.ranges(snapshot.cluster.own.ranges)
        if applied.unfit and not parts.choice.indicator.exists():
            return (f"new pods wait until this is mended: {'; '.join(applied.unfit)}",)
        mtu = applied.mtu
        text = configuration.render(parts.choice, snapshot, mtu)
        if not configuration.waits(parts.choice):  # none, or an earlier agent's: no call may fail
            configuration.open_node(parts.choice)
        if configuration.write(parts.choice, text, parts.bin_dir):
            if text == seen.text:
                parts.metrics.repaired("configuration")
            parts.log.info("wrote the list of plugins", path=str(parts.choice.path), mtu=mtu)
        # One that waits comes first: that from before the boot may have another range.
        configuration.open_node(parts.choice)
        seen.text = text
        parts.metrics.configuration(text)
        return ()

    def _conflicts(self, snapshot: Snapshot) -> tuple[str, ...]:
        choice = self._parts.choice
        found = configuration.problems(choice, snapshot.cluster.own.ranges)
        try:
            found += configuration.of_another_plugin(choice)
        except (CNIError, OSError) as error:
            self._parts.log.debug("records cannot be read", part="conflict", reason=str(error))
        return tuple(found)

    def _try(self, part: str, step: Callable[[], tuple[str, ...]]) -> None:
        """Run one step, and note what is wrong with its part after it."""
        self._problems(part, self._attempt(part, step))

    def _attempt(self, part: str, step: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """Run one step; return its problems. A failure is a problem, and stops no other step."""
        try:
            return step()
        except (configuration.ConfigurationError, install.InstallError) as error:
            return (str(error),)
        except OSError as error:
            where = f" '{error.filename}'" if error.filename else ""
            return (f"{error.strerror or error}{where}",)
        except Exception as error:  # noqa: BLE001 - one part's mistake must not stop the others
            self._parts.log.error("unexpected", part=part, error=repr(error), trace=_trace(error))
            return (f"unexpected: {error!r}",)

    def _problems(self, part: str, problems: tuple[str, ...]) -> None:
        """Note what is wrong with a part; log what is new, and have Events while it lasts."""
        before = self._seen.problems.get(part, ())
        self._seen.problems[part] = problems
        self._parts.metrics.problems(part, len(problems))
        for one in problems:
            if one not in before:
                self._parts.log.warning(one, part=part)
        lasting = self._seen.lasting[part]
        for one in lasting.due(problems):
            if self._parts.reports.event(_REASONS.get(part, "AgentFailed"), one):
                lasting.note(one)
        for one in before:
            if one not in problems:
                self._parts.log.info("no longer", part=part, problem=one)

    # --- what probes ask, from other threads ---

    def alive(self) -> str:
        """Return what is wrong with the loop itself, "" for nothing."""
        since = self._seen.since
        if since and time.monotonic() - since > _STUCK_SECONDS:
            return f"a round has taken more than {_STUCK_SECONDS:.0f} s"
        return ""

    def ready(self) -> tuple[str, ...]:
        """Return why this node cannot start pods by this agent, nothing where it can."""
        parts, seen = self._parts, self._seen
        found = []
        for part in ("nodes", "install", "configuration"):
            found += [f"{part}: {one}" for one in seen.problems.get(part, ())]
        if not seen.text or not parts.choice.path.exists():
            found.append(f"configuration: '{parts.choice.path}' is not written yet")
            found += [f"network: {one}" for one in seen.problems.get("network", ())]
        if parts.engine and not parts.engine.build():
            found.append("engine: it does not answer")
        return tuple(found)


def _taken(taker: str) -> str:
    return f"these send packets for podCIDRs that overlap to node {taker}, whose name comes first"


def _trace(error: Exception) -> str:
    from traceback import format_exception

    return "".join(format_exception(error))
