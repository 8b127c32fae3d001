"""Reports of the agent to the API server: Events, a condition of its Node, its public key.

A thread of its own sends them, so that no reconcile waits for a server that is away.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from lightkube.core.exceptions import ApiError
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, NodeStatus
from lightkube.types import PatchType

from agent import api
from agent.nodes import PUBLIC_KEY, Node
from agent.watch import BackOff, close

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from lightkube import Client

    from agent.cluster import Member
    from agent.logs import Log
    from agent.metrics import Metrics
    from agent.pod_events import Pod

_Thing = TypeVar("_Thing")

_COMPONENT = "pycni-agent"
_NAMESPACE = "default"  # of Events about objects that have no namespace
_WAITING_MAX = 50  # Events
_BURST, _EVENTS_PER_SECOND = 25, 1 / 60  # so many at once, and so many in the long run
_POD_BURST, _POD_EVENTS_PER_SECOND = 25, 1 / 10  # likewise, of pods
# Between two Events of one thing that lasts: the API server forgets an Event after an hour.
_AGAIN_SECONDS = 1800.0
_REFUSED_SECONDS = 60.0  # between two tries to set a condition that the API server refuses
_MESSAGE_MAX = 1024  # characters, as the API server has it
_BACK_OFF_SECONDS = (1.0, 60.0)
_BUSY = 429  # of HTTP: this, and what is above it, may pass by itself


@dataclass(frozen=True)
class Condition:
    """NetworkUnavailable of the Node: what is wrong, or that nothing is.

    While it is true the controller manager has the taint of that name on the Node, so the scheduler
    puts no new pods there.
    """

    reason: str
    message: str
    is_unavailable: bool = False


@dataclass(frozen=True)
class _Report:
    reason: str
    message: str
    is_warning: bool
    at: datetime = field(compare=False)
    pod: Pod | None = None  # None: about the Node


class Lasting:
    """Things that last: each has an Event when it begins, and again as long as it goes on.

    What had no Event yet comes first, then what has waited for longest.
    """

    def __init__(self) -> None:
        self._told: dict[object, float] = {}  # when each had its last Event

    def due(self, found: Collection[_Thing]) -> list[_Thing]:
        """Return those that are to have an Event now. `found` is all that goes on."""
        now = time.monotonic()
        self._told = {one: self._told[one] for one in found if one in self._told}
        last = {one: self._told.get(one, -math.inf) for one in found}
        due = [one for one in found if now - last[one] >= _AGAIN_SECONDS]
        return sorted(due, key=lambda one: last[one])

    def note(self, one: _Thing) -> None:
        """Note that a thing has its Event."""
        self._told[one] = time.monotonic()


class Reports:
    """Sends reports, in the order of their calls, as soon as the API server can be reached."""

    def __init__(
        self, connect: Callable[[], Client], node: str, *, log: Log, metrics: Metrics
    ) -> None:
        """`node` is the name of this node."""
        self._connect = connect
        self._node = node
        self._uid = node  # as the kubelet has it, until the Node is known
        self._log = log
        self._metrics = metrics
        self._pace = api.Pace(_BURST, _EVENTS_PER_SECOND)
        self._pod_pace = api.Pace(_POD_BURST, _POD_EVENTS_PER_SECOND)
        self._condition = threading.Condition()
        self._waiting: deque[_Report] = deque()
        self._key = ""  # to be announced, "" for none
        self._condition_due: Condition | None = None  # to be set
        self._told: tuple[Condition, str] | None = None  # the last one, and the uid of its Node
        self._refused: set[str] = set()  # messages of the server that were logged
        self._refused_at = math.inf  # when the condition was refused; in no time: it was not

    def start(self) -> None:
        """Start the thread, which ends with the process."""
        threading.Thread(target=self._run, name="reports", daemon=True).start()

    def event(
        self, reason: str, message: str, *, is_warning: bool = True, pod: Pod | None = None
    ) -> bool:
        """Have `kubectl describe` show a message of a pod, or of the node where none is given.

        Return False where there is no room for it now, which is counted. One that waits for the API
        server waits once.
        """
        report = _Report(reason, message[:_MESSAGE_MAX], is_warning, datetime.now(UTC), pod)
        with self._condition:
            if report in self._waiting:
                return True
            pace = self._pod_pace if pod else self._pace
            if len(self._waiting) >= _WAITING_MAX or not pace.try_step():
                self._metrics.report_dropped()
                return False
            self._waiting.append(report)
            self._condition.notify()
            return True

    def announce(self, own: Member, key: str) -> None:
        """Have the Node show the public key `key`, unless it does; "" leaves it alone."""
        with self._condition:
            self._uid = own.uid or self._uid
            self._key = "" if key == own.public_key else key
            if self._key:
                self._condition.notify()

    def condition(self, own: Member, found: Condition) -> None:
        """Have the Node `own` show a condition, unless it was told so already.

        One that the API server refused is tried again after a minute: rights may come.
        """
        with self._condition:
            is_due = time.monotonic() - self._refused_at >= _REFUSED_SECONDS
            if self._told == (found, own.uid) and not is_due:
                return
            self._refused_at = math.inf
            self._told = found, own.uid
            self._condition_due = found
            self._condition.notify()

    def _is_due(self) -> bool:
        return bool(self._waiting or self._key or self._condition_due)

    def _run(self) -> None:
        back_off = BackOff(*_BACK_OFF_SECONDS)
        while True:
            with self._condition:
                self._condition.wait_for(self._is_due)
            try:
                self._send_all()
                back_off.reset()
            except ApiError as error:
                self._refuse(error)
            except api.ERRORS as error:
                self._log.debug("reports wait for the API server", reason=str(error))
            except Exception as error:  # noqa: BLE001 - without the thread nothing is reported
                self._log.error("unexpected", part="reports", error=repr(error))
                self._drop()
            with self._condition:
                if self._is_due():
                    self._condition.wait(back_off.next())

    def _send_all(self) -> None:
        client = self._connect()
        try:
            while self._waiting:
                self._send(client, self._waiting[0])
                with self._condition:
                    self._waiting.popleft()
            with self._condition:
                key, self._key = self._key, ""
            if key:
                self._change(partial(self._patch, client, key))
            with self._condition:
                due, self._condition_due = self._condition_due, None
            if due:
                self._change(partial(self._set, client, due))
        finally:
            close(client)

    def _change(self, step: Callable[[], None]) -> None:
        """Change the Node; a change that the server does not accept is logged, and left."""
        try:
            step()
        except ApiError as error:
            if _may_pass(error):
                raise
            self._log_refusal(error)

    def _send(self, client: Client, report: _Report) -> None:
        about = ObjectReference(apiVersion="v1", kind="Node", name=self._node, uid=self._uid)
        if pod := report.pod:
            about = ObjectReference(
                apiVersion="v1", kind="Pod", namespace=pod.namespace, name=pod.name, uid=pod.uid
            )
        client.create(
            Event(
                metadata=ObjectMeta(
                    name=f"{about.name}.{uuid4().hex[:16]}",
                    namespace=about.namespace or _NAMESPACE,
                ),
                involvedObject=about,
                type="Warning" if report.is_warning else "Normal",
                reason=report.reason,
                message=report.message,
                source=EventSource(component=_COMPONENT, host=self._node),
                firstTimestamp=report.at,
                lastTimestamp=report.at,
                count=1,
                reportingComponent=_COMPONENT,
                reportingInstance=self._node,
            )
        )

    def _patch(self, client: Client, key: str) -> None:
        try:
            body = {"metadata": {"annotations": {PUBLIC_KEY: key}}}
            client.patch(Node, self._node, body, patch_type=PatchType.MERGE)
        except api.ERRORS as error:
            if not isinstance(error, ApiError) or _may_pass(error):
                with self._condition:
                    self._key = self._key or key
            raise
        self._log.info("announced the public key", key=key)

    def _set(self, client: Client, due: Condition) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        condition = {
            "type": "NetworkUnavailable",
            "status": str(due.is_unavailable),
            "reason": due.reason,
            "message": due.message[:_MESSAGE_MAX],
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        try:
            # A list that is merged by its members' types: the kubelet's conditions stay.
            body = {"status": {"conditions": [condition]}}
            client.patch(NodeStatus, self._node, body, patch_type=PatchType.STRATEGIC)
        except api.ERRORS as error:
            with self._condition:
                if not isinstance(error, ApiError) or _may_pass(error):
                    self._condition_due = self._condition_due or due
                else:
                    self._refused_at = time.monotonic()
            raise
        self._log.info("set the condition NetworkUnavailable", status=condition["status"])

    def _refuse(self, error: ApiError) -> None:
        """Leave the first Event out if the server does not accept it; or try again."""
        if _may_pass(error):
            self._log.debug("reports wait for the API server", reason=str(error))
            return
        self._log_refusal(error)
        self._drop()

    def _log_refusal(self, error: ApiError) -> None:
        """Log what the server does not accept, once."""
        message = str(error)
        if message not in self._refused and len(self._refused) < _WAITING_MAX:
            self._refused.add(message)
            self._log.warning("the API server refuses a report", reason=message)

    def _drop(self) -> None:
        """Leave out the report that comes first."""
        with self._condition:
            if self._waiting:
                self._waiting.popleft()
                self._metrics.report_dropped()


def _may_pass(error: ApiError) -> bool:
    """Tell whether the server may take the same request later."""
    return error.status.code is None or error.status.code >= _BUSY
