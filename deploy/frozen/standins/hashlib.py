"""The hashes that the suite uses, without OpenSSL: loading that takes 2 ms."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def sha256(data: bytes = b"") -> "Any":
    """Return a SHA-256 of `data`."""
    try:
        from _sha2 import sha256  # Python 3.12
    except ImportError:
        from _sha256 import sha256
    return sha256(data)


def sha512(data: bytes = b"") -> "Any":
    """Return a SHA-512 of `data`."""
    try:
        from _sha2 import sha512  # Python 3.12
    except ImportError:
        from _sha512 import sha512
    return sha512(data)
