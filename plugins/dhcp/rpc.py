"""The protocol of plugin and daemon: one request and one answer for each connection.

A message is a JSON object behind its length, four bytes in network byte order. A request has
`version`, `call` and what the call needs; ALLOCATE brings the container's namespace, an open
descriptor (SCM_RIGHTS). The answer has `version` and either `answer` or `error`. Each side ignores
keys that it does not know; a change that would be misunderstood gets a new version, and a daemon
serves all versions from 1 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_common.spec import wire

if TYPE_CHECKING:
    from cni_common.spec.wire import Json

VERSION = 1
ALLOCATE, RELEASE, CHECK, COLLECT, STATUS = "allocate", "release", "check", "collect", "status"
# Like ALLOCATE, for the IP versions in `family`. A daemon that does not know it refuses it: by
# another key of ALLOCATE it would give an address of the wrong version.
ALLOCATE_FAMILY = "allocate family"
HEAD_BYTES = 4
MESSAGE_BYTES_MAX = 1 << 20  # a GC names all attachments of a node


def encode(message: Json) -> bytes:
    """Return a message with its length. Raises ValueError when it is too long."""
    data = wire.encode_line(message)
    return encode_length(len(data)) + data


def encode_length(length: int) -> bytes:
    """Return the first bytes of a message. Raises ValueError when that is too long."""
    if length > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {length} bytes, of which {MESSAGE_BYTES_MAX} are possible")
    return length.to_bytes(HEAD_BYTES, "big")


def length_in(head: bytes) -> int:
    """Return the length of the message that begins so. Raises ValueError."""
    length = int.from_bytes(head[:HEAD_BYTES], "big")
    if length > MESSAGE_BYTES_MAX:
        raise ValueError("it speaks another protocol")
    return length
