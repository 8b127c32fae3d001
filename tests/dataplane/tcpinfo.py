"""The kernel's figures of a TCP connection (struct tcp_info, linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

ESTABLISHED, SYN_SENT = 1, 2  # net/tcp_states.h


class TCPInfo(NamedTuple):
    """Some of its fields. Of a listener, `unacked` are the connections that wait."""

    state: int
    snd_mss: int
    unacked: int
    segs_out: int
    segs_in: int
    data_segs_in: int


def tcp_info(sock: socket.socket) -> TCPInfo:
    """Return what the kernel counts for a socket."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    words = struct.unpack_from("<40I", data)
    return TCPInfo(data[0], words[4], words[6], words[34], words[35], words[38])
