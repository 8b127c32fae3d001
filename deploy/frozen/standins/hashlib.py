"""The hashes that the suite uses, without OpenSSL: loading that takes 2 ms."""

try:  # Python 3.12 and newer
    from _sha2 import sha256, sha512  # type: ignore[import-not-found]
except ImportError:
    from _sha256 import sha256  # type: ignore[import-not-found]
    from _sha512 import sha512  # type: ignore[import-not-found]

__all__ = ["sha256", "sha512"]
