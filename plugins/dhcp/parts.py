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
    from cni_common.spec.wire import Json


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """A lease that the daemon keeps."""

    PART = "dhcp"
    socket: str = ""  # of the daemon
    address: str = ""  # with prefix length, "" as long as there is none
    server: str = ""  # address of the DHCP server
    address6: str = ""  # likewise, of DHCPv6
    server6: str = ""

    @property
    def leases(self) -> dict[str, tuple[str, str]]:
        """Address and server of each lease, by the name of its family."""
        both = {"ipv4": (self.address, self.server), "ipv6": (self.address6, self.server6)}
        return {family: one for family, one in both.items() if one[0]}


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
        """Yield the lease, as the daemon knows it; without a daemon nothing keeps it."""
        given = {
            "network": record.network,
            "containerid": record.attachment.containerid,
            "ifname": record.attachment.ifname,
        }
        try:
            found = client.call(facts.socket, rpc.CHECK, given, seconds=client.STATUS_SECONDS)
        except client.AwayError:
            away = {"told": f"no daemon answers at '{facts.socket}'"}
            found = {**away, "leases": {"ipv6": away}}
        if not facts.leases:
            yield _owned(self.name, found, "no address yet", "")
        for family, (address, server) in facts.leases.items():
            told = found.get("leases", {}).get(family, {}) if family == "ipv6" else found
            yield _owned(self.name, told, address, server)

    def addresses(self, facts: LeaseFacts) -> Iterator[str]:
        """Yield the address of each lease."""
        for address, _ in facts.leases.values():
            yield address


def _owned(name: str, told: Json, address: str, server: str) -> Owned:
    """Return a lease as recorded, with what the daemon tells of it."""
    from cni_common.node.owned import Owned

    what = f"DHCP lease of {address}"
    if server:
        what += f", given by {server}"
    if told.get("told"):
        what += f" ({told['told']})"
    return Owned(name, what, bool(told) and told.get("address") == address)


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
