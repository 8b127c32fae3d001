"""The hashes that the suite uses, without OpenSSL: loading that takes 2 ms."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# By the version, not by what can be imported: each import that fails takes 20 to 60 microseconds.


def sha256(data: bytes = b"") -> "Any":
    """Return a SHA-256 of `data`."""
    if sys.version_info >= (3, 12):
        from _sha2 import sha256 as found
    else:
        from _sha256 import sha256 as found
    globals()["sha256"] = found  # the next call needs no import
    return found(data)


def sha512(data: bytes = b"") -> "Any":
    """Return a SHA-512 of `data`."""
    if sys.version_info >= (3, 12):
        from _sha2 import sha512 as found
    else:
        from _sha512 import sha512 as found
    globals()["sha512"] = found
    return found(data)
