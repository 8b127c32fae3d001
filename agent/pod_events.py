"""Events on pods of this node: what `kubectl describe pod` shows beside the kubelet's Events.

The kubelet tells why a pod does not start, with the plugin's words. No other program reports the
losses of a running pod. The pods are those of the plugins' records: the API server is not asked for
any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.reports import Lasting
from cni_common.node.host import STATE_DIR
from cni_common.node.record import Records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.reports import Reports
    from cni_common.node.record import Record

BROKEN = "NetworkBroken"
_KEYS = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")  # of CNI_ARGS


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as an Event names it."""

    namespace: str
    name: str
    uid: str


class PodEvents:
    """Sends each Event when its reason begins, and again as long as that lasts."""

    def __init__(self, reports: Reports, network: str, *, state_dir: str = STATE_DIR) -> None:
        """`network` is the name of the list of plugins."""
        self._reports, self._network, self._state_dir = reports, network, state_dir
        self._lasting = Lasting()  # of containers, reasons and words about them

    def tell(self, reason: str, everywhere: str, broken: Mapping[str, str]) -> None:
        """Send `everywhere` with `reason` to all pods, and to some the words in `broken`, by
        container.

        Raises CNIError, OSError where the records cannot be read.
        """
        if not everywhere and not broken:
            self._lasting.due(())
            return
        found = pods(self._network, self._state_dir)
        words = [(one, BROKEN, broken[one]) for one in found if one in broken]
        words += [(one, reason, everywhere) for one in found if everywhere]
        for one in self._lasting.due(words):
            container, why, text = one
            if self._reports.event(why, text, pod=found[container]):
                self._lasting.note(one)  # else in a later round


def pods(network: str, state_dir: str) -> dict[str, Pod]:
    """Return the pods with an attachment to the network, by container. Raises CNIError, OSError."""
    records, found = Records(state_dir), dict[str, Pod]()
    try:
        for record, _ in records.listing():
            # An IPAM plugin's record of the same container does not have the arguments.
            if record.network == network and (pod := _pod_of(record)):
                found[record.attachment.containerid] = pod
    finally:
        records.close()
    return dict(sorted(found.items()))


def _pod_of(record: Record) -> Pod | None:
    """Return the pod of an attachment, None where no kubelet has made it."""
    pairs = dict(
        pair.partition("=")[::2] for pair in str(record.facts.get("cni_args", "")).split(";")
    )
    pod = Pod(*(pairs.get(key, "") for key in _KEYS))
    return pod if pod.namespace and pod.name else None
