"""The cluster's nodes, from the API server: one list, then a watch that only ends to begin anew."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from lightkube.core.exceptions import ApiError

from agent import api, memory, nodes
from agent.nodes import Node
from agent.snapshot import Snapshot, cluster_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightkube import Client

    from agent.cluster import Member
    from agent.logs import Log
    from agent.metrics import Metrics
    from agent.wake import Wake

_PAGE = 50  # nodes of one answer: bounds the memory of a list
_WATCH_SECONDS = (300, 600)  # the server ends a watch after a random time between these
_BACK_OFF_SECONDS = (1.0, 30.0)  # the pause after the first failure, and the longest
_STEADY_SECONDS = 60.0  # a watch that lasted so long starts the pauses anew
_GONE = 410  # of HTTP: the version is too old, everything has to be listed again
_CAUSE = "nodes"
_REFUSED_MAX = 100  # sentences about Nodes


class NodeWatch:
    """Follows all Nodes in a thread of its own, and wakes the loop when a Member has changed."""

    def __init__(
        self, connect: Callable[[], Client], own: str, wake: Wake, *, log: Log, metrics: Metrics
    ) -> None:
        """`own` is the name of this node."""
        self._connect = connect
        self._own = own
        self._wake = wake
        self._log = log
        self._metrics = metrics
        self._members: dict[str, Member] = {}
        self._sources: dict[str, tuple[str, ...]] = {}  # what each Member was made of
        self._runtime = ""
        self._version = ""  # of the last object seen; "" to list everything
        self._snapshot: Snapshot | None = None
        self._lacks_own = False
        self._failure = ""
        self._refused: set[str] = set()  # sentences that were logged
        self._back_off = BackOff(*_BACK_OFF_SECONDS)

    def start(self) -> None:
        """Start the thread, which ends with the process."""
        threading.Thread(target=self._run, name="nodes", daemon=True).start()

    @property
    def snapshot(self) -> Snapshot | None:
        """The cluster as last heard of; None before the first list, or without the own node."""
        return self._snapshot

    @property
    def lacks_own(self) -> bool:
        """Tell whether the API server was heard of last without a Node of the own name."""
        return self._lacks_own

    @property
    def failure(self) -> str:
        """The reason why the API server does not answer, "" while it does."""
        return self._failure

    def _run(self) -> None:
        while not self._wake.is_stopping:
            began = time.monotonic()
            try:
                client = self._connect()
                try:
                    self._follow(client)
                finally:
                    close(client)
            except api.ERRORS as error:
                self._note(error)
            except Exception as error:  # noqa: BLE001 - without the thread the cluster stands still
                self._log.error("unexpected", part="nodes", error=repr(error))
                self._version = ""
                self._note(error)
            if time.monotonic() - began > _STEADY_SECONDS:
                self._back_off.reset()
            time.sleep(self._back_off.next())

    def _note(self, error: Exception) -> None:
        if _is_gone(error):
            self._metrics.watch_ended("gone")
            self._version = ""
            return
        self._metrics.watch_ended("failure")
        reason = f"{error}" or type(error).__name__
        if self._failure != reason:
            self._failure = reason
            self._log.warning("the API server does not answer", reason=reason)
            self._wake("api")

    def _follow(self, client: Client) -> None:
        """List unless a version is known, then watch until a failure. Raises one of api.ERRORS."""
        if not self._version:
            self._list(client)
        seconds = random.randint(*_WATCH_SECONDS)
        events = client.watch(Node, resource_version=self._version, server_timeout=seconds)
        for kind, node in events:
            self._heard()
            self._version = node.metadata.resourceVersion
            self._take(kind, node)

    def _list(self, client: Client) -> None:
        members: dict[str, Member] = {}
        self._sources.clear()
        pages = client.list(Node, chunk_size=_PAGE)
        for node in pages:
            members[node.metadata.name] = nodes.member_of(node, self._refuse)
            self._sources[node.metadata.name] = nodes.source_of(node)
            if node.metadata.name == self._own:
                self._runtime = nodes.runtime_of(node)
        self._members = members
        memory.trim()
        self._version = pages.resourceVersion or ""
        self._heard()
        self._publish()

    def _heard(self) -> None:
        self._metrics.heard_of_api()
        if self._failure:
            self._failure = ""
            self._log.info("the API server answers again")
            self._wake("api")

    def _take(self, kind: str, node: Node) -> None:
        """Take one event in, and wake the loop if it changes anything that counts."""
        self._metrics.node_event(kind)
        name = node.metadata.name
        before = (self._members.get(name), self._runtime)
        if kind == "DELETED":
            self._members.pop(name, None)
            self._sources.pop(name, None)
        elif (source := nodes.source_of(node)) != self._sources.get(name) or name == self._own:
            self._sources[name] = source
            self._members[name] = nodes.member_of(node, self._refuse)
            if name == self._own:
                self._runtime = nodes.runtime_of(node) or self._runtime
        if (self._members.get(name), self._runtime) != before:
            self._publish()

    def _refuse(self, text: str) -> None:
        """Log what is left out of a Node, once."""
        if text not in self._refused and len(self._refused) < _REFUSED_MAX:
            self._refused.add(text)
            self._log.warning(text, part="nodes")

    def _publish(self) -> None:
        self._metrics.nodes(len(self._members))
        own = self._members.get(self._own)
        self._lacks_own = own is None
        if own is None and self._snapshot:  # deleted: its pods go on until it is registered again
            own = self._snapshot.cluster.own
        if own is None:
            self._wake(_CAUSE)
            return
        cluster = cluster_of(own, self._members.values())
        snapshot = Snapshot(cluster, self._runtime)
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            self._wake(_CAUSE)


def _is_gone(error: Exception) -> bool:
    """Tell whether the version that was asked for is too old: as an event, or as the answer."""
    if isinstance(error, ApiError) and error.status:
        return error.status.code == _GONE
    return getattr(getattr(error, "response", None), "status_code", 0) == _GONE


class BackOff:
    """Pauses that double from `least` to `most` seconds, each cut at random, to a half at most."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self._seconds = least

    def next(self) -> float:
        """Return the seconds to wait now."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, self._most)
        return seconds * random.uniform(0.5, 1)

    def reset(self) -> None:
        """Begin anew."""
        self._seconds = self._least


def close(client: Client) -> None:
    """Close a client's connections; lightkube's own client has no public way."""
    client._client.close()  # type: ignore[no-untyped-call]
