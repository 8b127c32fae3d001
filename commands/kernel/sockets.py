"""The sockets of a namespace, by socket diagnosis: no `ss`, and no `nsenter`."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_STATES = (  # net/tcp_states.h, from 1 on
    *("established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "close"),
    *("close-wait", "last-ack", "listen", "closing", "new-syn-recv"),
)
_ALL = (1 << len(_STATES) + 1) - 1
_INFO, _CONG = 1 << 1, 1 << 3  # INET_DIAG_INFO, INET_DIAG_CONG: a bit is the attribute less one
_UNSET = 0x7FFFFFFF  # TCP_INFINITE_SSTHRESH


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket of TCP or UDP."""

    protocol: str
    state: str
    local: str  # address and port
    remote: str  # "" for one that waits for peers
    receive_queue: int  # bytes to be read; of a listener: connections to be accepted
    send_queue: int  # bytes not yet acknowledged; of a listener: its backlog
    inode: int
    congestion: str = ""  # TCP's congestion control
    tcp: dict[str, int] = field(default_factory=dict)  # see _TCP
    pid: int = 0  # of a process that has it, 0: none was found
    process: str = ""  # its name

    @property
    def is_listener(self) -> bool:
        """Whether it waits for peers."""
        return self.state == "listen" or (self.protocol == "udp" and self.state == "close")


# The fields of struct tcp_info that are shown: microseconds, packets, bytes.
_TCP = {
    "rtt_us": "tcpi_rtt",
    "rttvar_us": "tcpi_rttvar",
    "min_rtt_us": "tcpi_min_rtt",
    "rto_us": "tcpi_rto",
    "cwnd": "tcpi_snd_cwnd",
    "ssthresh": "tcpi_snd_ssthresh",
    "mss": "tcpi_snd_mss",
    "pmtu": "tcpi_pmtu",
    "unacked": "tcpi_unacked",
    "lost": "tcpi_lost",
    "retransmits": "tcpi_total_retrans",
    "backoff": "tcpi_backoff",
    "bytes_acked": "tcpi_bytes_acked",
    "bytes_received": "tcpi_bytes_received",
    "delivery_rate": "tcpi_delivery_rate",
}


def sockets() -> list[Socket]:
    """Return all sockets of TCP and UDP. Raises OSError, NetlinkError."""
    from pyroute2 import DiagSocket

    with DiagSocket() as diag:
        return [
            _socket(protocol, one)
            for protocol, number in _PROTOCOLS.items()
            for family in (socket.AF_INET, socket.AF_INET6)
            for one in diag.get_sock_stats(
                family=family, states=_ALL, protocol=number, extensions=_INFO | _CONG
            )
        ]


def _socket(protocol: str, one: Any) -> Socket:
    state = one["idiag_state"]
    return Socket(
        protocol,
        _STATES[state - 1] if 0 < state <= len(_STATES) else str(state),
        _end(one["idiag_src"], one["idiag_sport"]),
        _end(one["idiag_dst"], one["idiag_dport"]) if one["idiag_dport"] else "",
        one["idiag_rqueue"],
        one["idiag_wqueue"],
        one["idiag_inode"],
        str(one.get_attr("INET_DIAG_CONG") or ""),
        _tcp_of(one),
    )


def _tcp_of(one: Any) -> dict[str, int]:
    info = one.get_attr("INET_DIAG_INFO")
    # Of a listener, and of a socket that has no connection any more, the fields mean others.
    if not info or not one["idiag_dport"]:
        return {}
    found = {name: int(info[key]) for name, key in _TCP.items() if key in info}
    if found.get("ssthresh", 0) >= _UNSET:
        del found["ssthresh"]  # no loss yet
    return found


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
