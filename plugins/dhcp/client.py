"""Calls of the daemon, and the releases that wait for one."""

from __future__ import annotations

import os
import socket
import time
from sys import byteorder
from typing import TYPE_CHECKING

from cni_common.node.journal import make_private_directory
from cni_common.spec import wire
from cni_common.spec.errors import CNIError, Code
from plugins.dhcp import rpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_common.spec.request import Request
    from cni_common.spec.wire import Json

# Seconds for an answer. An ADD must end before the runtime's patience does, and the daemon gives up
# before that, since it knows why. The others are answered from memory, however slow servers are.
# STATUS has half of the second after which it is given up without a reason (serve.protocol).
ALLOCATE_SECONDS = 78.0
SEARCH_SECONDS = 75.0
ANSWER_SECONDS = 10.0
STATUS_SECONDS = 0.5
_CONNECT_SECONDS = 2.0
_RELEASES = ".releases"  # directory beside the socket


class AwayError(CNIError):
    """No daemon answers."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            Code.PLUGIN_NOT_AVAILABLE,
            f"no DHCP daemon answers at '{path}' ({reason}): start 'dhcp daemon', for example by"
            " 'systemctl enable --now pycni-dhcp.socket pycni-dhcp.service'",
        )


def key_of(req: Request) -> Json:
    """Return the key of an attachment, which no other of the node has."""
    return {"network": req.network, "containerid": req.containerid, "ifname": req.ifname}


def call(path: str, name: str, given: Json, *, seconds: float, netns: int = -1) -> Json:
    """Have the daemon at `path` answer a call; `netns` is a descriptor that goes with it.

    Raises AwayError, and the CNIError that the daemon answers.
    """
    until = time.monotonic() + seconds
    request = {"version": rpc.VERSION, "call": name, **given}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(min(seconds, _CONNECT_SECONDS))
            sock.connect(path)
            _refuse_stranger(sock, path)
            _send(sock, rpc.encode(request), netns)
            answer = _receive(sock, path, until)
    except TimeoutError:
        raise AwayError(path, "it does not answer in time") from None
    except OSError as error:
        raise AwayError(path, error.strerror or str(error)) from None
    failure = answer.get("error")
    if isinstance(failure, dict):
        raise CNIError(int(failure.get("code", Code.INTERNAL)), str(failure.get("msg")))
    found = answer.get("answer")
    return found if isinstance(found, dict) else {}


def queue_release(path: str, req: Request, log: Callable[[str], object]) -> None:
    """Have the next daemon release the attachment's lease; a failure is only logged.

    The daemon also notices by itself that a container is gone, only later.
    """
    import hashlib

    directory = releases_of(path)
    if not os.path.isdir(os.path.dirname(path)):
        return  # there never was a daemon, so there is no lease
    try:
        make_private_directory(directory)
        told = wire.encode_line(key_of(req))
        name = f"{directory}/{hashlib.sha256(told).hexdigest()[:32]}"  # one, however many DELs
        new = f"{name}.{os.getpid()}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, told)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, name)
    except OSError as error:
        log(f"cannot note in '{directory}' that {req.containerid} is gone: {error.strerror}")


def releases_of(path: str) -> str:
    """Return the directory of the releases that wait for the daemon with the socket `path`."""
    return path + _RELEASES


def _refuse_stranger(sock: socket.socket, path: str) -> None:
    """Raise AwayError unless a process of this node's root listens: it could give any address.

    So DEL goes on as without a daemon: a stranger keeps no container from being removed.
    """
    from plugins.dhcp import peer

    stranger = peer.stranger(sock)
    if stranger:
        why = f"{stranger} listens there; only a daemon of this node's root is believed"
        raise AwayError(path, why)


def _send(sock: socket.socket, data: bytes, netns: int) -> None:
    rights = []
    if netns >= 0:
        rights.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, netns.to_bytes(4, byteorder)))
    sent = sock.sendmsg([data], rights)
    if data[sent:]:
        sock.sendall(data[sent:])


def _receive(sock: socket.socket, path: str, until: float) -> Json:
    data = b""
    length = rpc.HEAD_BYTES
    while len(data) < length:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        part = sock.recv(1 << 16)
        if not part:
            raise AwayError(path, "it ended before it answered")
        data += part
        if len(data) >= rpc.HEAD_BYTES:
            try:
                length = rpc.HEAD_BYTES + rpc.length_in(data)
            except ValueError:
                raise AwayError(
                    path, "another program is there, maybe the reference's daemon"
                ) from None
    return wire.decode(data[rpc.HEAD_BYTES : length])
