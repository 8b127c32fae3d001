"""The hashes that the suite uses, without OpenSSL: loading that takes 2 ms."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# By the version, not by what can be imported: each import that fails takes 20 to 60 microseconds.


def sha256(data: bytes = b"") -> "Any":
    """Return a SHA-256 of `data`."""
    if sys.version_info >= (3, 12):
        from _sha2 import sha256
    else:
        from _sha256 import sha256
    return sha256(data)


def sha512(data: bytes = b"") -> "Any":
    """Return a SHA-512 of `data`."""
    if sys.version_info >= (3, 12):
        from _sha2 import sha512
    else:
        from _sha512 import sha512
    return sha512(data)
