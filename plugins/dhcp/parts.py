"""The lease of an attachment, as DEL, GC and the operators' commands see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.node.lifecycle import Lifecycle, Part
from plugins.dhcp import client, rpc
from plugins.dhcp.conf import PLUGIN, socket_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Unrecorded
    from cni_common.node.owned import Owned
    from cni_common.node.record import Record
    from cni_common.spec.request import Request


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """A lease that the daemon keeps."""

    PART = "dhcp"
    socket: str = ""  # of the daemon
    address: str = ""  # with prefix length, "" as long as there is none
    server: str = ""  # address of the DHCP server


class Lease(Part):
    """A lease that the daemon keeps."""

    facts = LeaseFacts
    lasting = True

    def teardown(self, req: Request, host: Host, record: Record, facts: LeaseFacts) -> None:
        """Release the lease; without a daemon, note that it is to be released."""
        release(facts.socket or socket_of(req), req, host)

    def teardown_unrecorded(self, req: Request, host: Host, found: Unrecorded) -> None:
        """Release the lease that the daemon may have all the same."""
        release(socket_of(req), req, host)

    def collect(self, req: Request, host: Host, plugin: str) -> None:
        """Have the daemon release leases of the network that no valid attachment has."""
        valid = req.valid_attachments
        if valid is None:
            return
        given = {
            "network": req.network,
            "valid": [[one.containerid, one.ifname] for one in sorted(valid)],
        }
        try:
            client.call(socket_of(req), rpc.COLLECT, given, seconds=client.ANSWER_SECONDS)
        except client.AwayError as error:
            host.log(f"GC goes on without the leases: {error.msg}")

    def present(self, host: Host, record: Record, facts: LeaseFacts) -> Iterator[Owned]:
        """Yield the lease, as the daemon knows it; without a daemon nobody keeps it."""
        from cni_common.node.owned import Owned

        given = {
            "network": record.network,
            "containerid": record.attachment.containerid,
            "ifname": record.attachment.ifname,
        }
        try:
            found = client.call(facts.socket, rpc.CHECK, given, seconds=client.STATUS_SECONDS)
        except client.AwayError:
            found = {"told": f"no daemon answers at '{facts.socket}'"}
        what = f"DHCP lease of {facts.address or 'no address yet'}"
        if facts.server:
            what += f", given by {facts.server}"
        if found.get("told"):
            what += f" ({found['told']})"
        yield Owned(self.name, what, bool(found) and found.get("address") == facts.address)

    def addresses(self, facts: LeaseFacts) -> Iterator[str]:
        """Yield the address."""
        if facts.address:
            yield facts.address


def release(path: str, req: Request, host: Host) -> None:
    """Have the lease released, now or by the next daemon. Raises the daemon's CNIError."""
    given = client.key_of(req)
    try:
        client.call(path, rpc.RELEASE, given, seconds=client.ANSWER_SECONDS)
    except client.AwayError as error:
        host.log(f"the next daemon will release the lease of {req.containerid}: {error.msg}")
        client.queue_release(path, req, host.log)


LEASE = Lease()
LIFECYCLE = Lifecycle(PLUGIN, LEASE)
