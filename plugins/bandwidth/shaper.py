"""The limit of one interface's egress: by tbf, or by htb for some subnets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugins.bandwidth import tc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_common.kernel.link import Link
    from cni_common.kernel.netlink import Channel, Message
    from cni_common.spec.names import Subnet
    from plugins.bandwidth.conf import Limit

KINDS = ("tbf", "htb")
_LATENCY = 25  # milliseconds that a packet may wait, as in the reference
_PACKET_MAX = 65536  # bytes, the largest packet of TCP, and the least default burst
_ETHERNET_HEADER = 14
# The reference's values for htb: unlimited traffic has 800 Gbit/s.
_SHAPED, _UNSHAPED, _UNSHAPED_RATE = 48, 1, 100_000_000_000
_UNSHAPED_BUFFER = 15625  # ticks: 1 ms; with less a timer would delay each packet
_QUANTUM = 65536  # bytes that a class sends per turn
_UNSHAPED_PACKETS = 1000  # queue length, as of a device
_U32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit in the kernel's units."""

    rate: int  # bytes a second
    burst: int  # bytes
    limit: int  # bytes that may wait in the queue, for any burst
    frame: int  # bytes of the largest packet

    @classmethod
    def of(cls, limit: Limit, mtu: int) -> Bucket:
        """Return the bucket for an interface of this MTU.

        A burst below one packet becomes one packet, since no packet would ever pass.
        """
        waiting = limit.rate * _LATENCY // 1000
        frame = mtu + _ETHERNET_HEADER
        burst = max(limit.burst or min(max(waiting, _PACKET_MAX), _U32), frame)
        # Beside what waits, one packet that goes whole: the kernel splits those above the burst.
        largest = max(min(burst, _PACKET_MAX), frame)
        return cls(limit.rate, burst, min(waiting + largest, _U32), frame)

    @property
    def former_limit(self) -> int:
        """The queue that an ADD of an earlier release has made, which had room for a burst."""
        return min(self.rate * _LATENCY // 1000 + self.burst, _U32)

    @property
    def buffer(self) -> int:
        """Ticks in which the rate fills the burst; may exceed 32 bits with a low rate."""
        return self.burst * 1_000_000 // self.rate * 1000 // tc.TICK

    @property
    def needs_bytes(self) -> bool:
        """Whether ticks cannot express the burst, or would pass no whole packet."""
        expressed = self.buffer * tc.TICK * self.rate // 1_000_000_000
        return self.buffer > _U32 or expressed < self.frame


@dataclass(frozen=True, slots=True)
class Shaper:
    """The qdiscs, classes and filters that shape one interface's egress."""

    bucket: Bucket
    subnets: Sequence[Subnet] = ()
    only_subnets: bool = False  # True: `subnets` alone are shaped; False: all others
    source: bool = False  # True: match source addresses; False: destinations

    def messages(self, index: int, name: str) -> list[Message]:
        """Return the messages that shape the egress of the interface `index` called `name`."""
        bucket = self.bucket
        if not self.subnets:
            data = tc.tbf(
                bucket.rate,
                min(bucket.buffer, _U32),
                bucket.limit,
                burst=bucket.burst if bucket.needs_bytes else 0,
            )
            what = f"limit what '{name}' sends"
            return [tc.new_qdisc(what, index, tc.ROOT, tc.FIRST, "tbf", data)]
        what = f"limit what '{name}' sends to some"
        made = [tc.new_qdisc(what, index, tc.ROOT, tc.FIRST, "htb", tc.htb(self._default))]
        for minor, rate, buffer in self._classes():
            data = tc.htb_class(rate, buffer, _QUANTUM)
            what = f"make class {minor:x} on '{name}'"
            made.append(tc.new_class(what, index, tc.FIRST | minor, data))
        for minor, kind, length in (
            (_SHAPED, "bfifo", bucket.limit),
            (_UNSHAPED, "pfifo", _UNSHAPED_PACKETS),
        ):
            what = f"make queue {minor:x} on '{name}'"
            data = tc.fifo(length)
            made.append(tc.new_qdisc(what, index, tc.FIRST | minor, 0, kind, data))
        return made + [
            tc.subnet_filter(
                f"filter {subnet} on '{name}'",
                index,
                subnet,
                tc.FIRST | self._special,
                source=self.source,
            )
            for subnet in self.subnets
        ]

    def differences(self, channel: Channel, link: Link) -> Iterator[str]:
        """Yield each difference from the result of `messages`."""
        found = tc.root(channel, link.index)
        kind = "htb" if self.subnets else "tbf"
        if found is None or found.kind != kind or found.handle != tc.FIRST:
            other = found.kind if found else "none"
            yield f"the root qdisc of '{link.name}' is {other}, not {kind} 1:"
            return
        if kind == "tbf":
            queues = self.bucket.limit, self.bucket.former_limit
            same = found.rate == self.bucket.rate and found.limit in queues
            if not same or not self._has_burst(found.buffer):
                yield f"the limit of '{link.name}' is another than {self._text()}"
            return
        present = {
            (one.handle, one.rate, one.ceil, one.buffer) for one in tc.classes(channel, link.index)
        }
        wanted = {(tc.FIRST | minor, rate, rate, ticks) for minor, rate, ticks in self._classes()}
        if found.default != self._default or present != wanted:
            yield f"the limit of '{link.name}' is another than {self._text()}"
        yield from self._differences_of_filters(channel, link)

    @property
    def _default(self) -> int:
        return _UNSHAPED if self.only_subnets else _SHAPED

    @property
    def _special(self) -> int:
        return _SHAPED if self.only_subnets else _UNSHAPED

    def _classes(self) -> list[tuple[int, int, int]]:
        """Return minor number, rate and ticks of each class."""
        ticks = min(self.bucket.buffer, _U32)
        return [
            (_SHAPED, self.bucket.rate, ticks),
            (_UNSHAPED, _UNSHAPED_RATE, _UNSHAPED_BUFFER),
        ]

    def _has_burst(self, ticks: int) -> bool:
        if not self.bucket.needs_bytes:
            return ticks == self.bucket.buffer
        exact = self.bucket.burst * 1_000_000_000 // self.bucket.rate // tc.TICK
        # The kernel rounds, and reports the low 32 bits alone.
        return exact > _U32 or abs(ticks - exact) <= exact // 1000 + 1

    def _differences_of_filters(self, channel: Channel, link: Link) -> Iterator[str]:
        present = {(one.keys, one.classid) for one in tc.filters(channel, link.index, tc.FIRST)}
        for subnet in self.subnets:
            keys = tc.keys_of(subnet, source=self.source)
            if (keys, tc.FIRST | self._special) not in present:
                yield f"the filter for {subnet} is missing on '{link.name}'"

    def _text(self) -> str:
        return f"{self.bucket.rate * 8} bit/s with a burst of {self.bucket.burst} bytes"


def is_shaper(found: tc.Qdisc | None) -> bool:
    """Tell whether a root qdisc is of the kind that this plugin and the reference make."""
    return found is not None and found.kind in KINDS and found.handle == tc.FIRST
