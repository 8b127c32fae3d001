"""The lease of one address: the content of its file, and its age."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from cni_common.spec.names import Address, parse_address
from cni_common.spec.request import Attachment

if TYPE_CHECKING:
    from collections.abc import Sequence

PLUGIN = "host-local"  # as the attachment records name it
RELEASE_COOLDOWN_MAX = 86_400  # seconds
GRACE_SECONDS = 60  # younger leases may belong to an ADD in progress


@dataclass(frozen=True, slots=True)
class Lease:
    """One file named after an address.

    `owner` has an empty ifname if an early release wrote the lease. `owner` is None if the file
    names no owner: then the lease is `reclaimable` if a crash left the file empty or torn; any
    other file must not be touched.
    """

    address: Address
    owner: Attachment | None
    since_ns: int = 0  # modification time, nanoseconds since the epoch
    inode: int = 0
    reclaimable: bool = False

    @property
    def holder(self) -> str:
        """The owner, for a message."""
        if self.owner is None:
            return "a lease file without owner"
        return f"{self.owner.containerid}/{self.owner.ifname}".removesuffix("/")

    @property
    def since(self) -> str:
        """The time at which the lease was made, RFC 3339 in UTC."""
        import time

        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since_ns // 10**9))

    def is_young(self) -> bool:
        """Tell whether the lease is within GRACE_SECONDS, or dated in the future."""
        import time

        return time.time_ns() - self.since_ns < GRACE_SECONDS * 10**9

    def is_of(self, owner: Attachment) -> bool:
        """Tell whether `owner` holds the lease; one without ifname counts for every interface."""
        return (
            self.owner is not None
            and self.owner.containerid == owner.containerid
            and self.owner.ifname in (owner.ifname, "")
        )


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """The leases of an attachment."""

    PART = "lease"
    directory: str = ""
    addresses: Sequence[str] = ()
    pod: str = ""  # namespace/name, "" when the runtime did not say
    pod_uid: str = ""  # the same for every try to start the pod, or ""


def text_of(owner: Attachment) -> str:
    """Return the content of a lease file of `owner`."""
    return f"{owner.containerid}\r\n{owner.ifname}" if owner.ifname else owner.containerid


def pod_key(uid: str, owner: Attachment) -> str:
    """Return the key of the interface of `owner`, the same in every try to start the pod `uid`."""
    return f"{uid} {owner.ifname}" if uid else ""


def address_of(name: str) -> Address | None:
    """Return the address whose lease file is called `name`, None for any other file."""
    if name[-1] not in "0123456789abcdef:":
        return None
    octets = name.split(".")
    if len(octets) == 4 and name.isascii() and all(map(str.isdecimal, octets)):
        # Five times as fast as IPv4Address; all leases of a directory pass here.
        first, second, third, fourth = map(int, octets)
        if max(first, second, third, fourth) > 255:
            return None
        number = first << 24 | second << 16 | third << 8 | fourth
        return IPv4Address(number) if f"{first}.{second}.{third}.{fourth}" == name else None
    try:
        address = parse_address(name)
    except ValueError:
        return None
    return address if str(address) == name else None


def owner_in(data: bytes) -> Attachment | None:
    """Return the owner in the content `data` of a lease file, None for none."""
    # As the Go plugin compares: white space around the whole does not count.
    parts = os.fsdecode(data.strip()).split("\r\n")
    if len(parts) > 2 or not all(parts) or any(min(part) < " " for part in parts):
        return None
    return Attachment(parts[0], parts[1] if len(parts) == 2 else "")
