"""Sysctls of a network namespace: allowed names and values, and former values."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cni_common.kernel.netns import NetNS

ALLOWLIST = "/etc/cni/tuning/allowlist.conf"
# Allowed without that file: all sysctls that kernels keep per namespace.
DEFAULT_ALLOWED = (
    *("net/bridge/", "net/core/", "net/ipv4/", "net/ipv6/", "net/mpls/", "net/mptcp/"),
    *("net/netfilter/", "net/sctp/", "net/smc/", "net/unix/", "net/vrf/"),
)
# Namespaces show these, although neighbours are in one table of the whole host.
_SHARED = tuple(
    f"net/{family}/neigh/default/gc_{name}"
    for family in ("ipv4", "ipv6")
    for name in ("interval", "thresh1", "thresh2", "thresh3")
)
_ALLOWLIST_BYTES_MAX = 1 << 20
_NAME_MAX, _VALUE_MAX = 255, 1024  # characters


def path_of(key: str, ifname: str) -> str:
    """Return the path below /proc/sys of a sysctl. Raises CNIError 7.

    Dots and slashes separate, but if a slash comes first, dots do not; the first `IFNAME` stands
    for the interface. No name leads outside of net/ (CVE-2022-0811).
    """
    first = next((mark for mark in key if mark in "./"), "")
    parts = key.split("/") if first == "/" else key.replace(".", "/").split("/")
    for number, part in enumerate(parts):
        if "IFNAME" in part:
            parts[number] = part.replace("IFNAME", ifname, 1)
            break
    plain = all(
        part not in ("", ".", "..") and part.isprintable() and " " not in part for part in parts
    )
    if not plain or len(parts) < 2 or parts[0] != "net" or len(key) > _NAME_MAX:
        raise CNIError(
            Code.INVALID_CONFIG,
            f"invalid net sysctl key: {key[:_NAME_MAX]!r}; it must be such as net.core.somaxconn or"
            " net.ipv4.conf.IFNAME.arp_notify",
        )
    return "/".join(parts)


def check_value(key: str, value: str) -> str:
    """Return `value` if it is one printable line of at most 1024 characters. Raises CNIError 7."""
    if not value.strip() or len(value) > _VALUE_MAX or not value.replace("\t", " ").isprintable():
        raise CNIError(
            Code.INVALID_CONFIG,
            f"the value of sysctl {key} is {value[:80]!r}; it must be one line of 1 to"
            f" {_VALUE_MAX} characters",
        )
    return value


def check_allowed(paths: Mapping[str, str]) -> None:
    """Raise CNIError 7 unless the sysctls `paths`, with their keys as written, may be set.

    The node's list is that of the reference: one regular expression per line, of which one must
    match somewhere in the key. Raises CNIError 5 if the list cannot be read.
    """
    patterns = _allowlist()
    if patterns is None:
        for path, key in paths.items():
            if not path.startswith(DEFAULT_ALLOWED) or path in _SHARED:
                raise CNIError(
                    Code.INVALID_CONFIG,
                    f"sysctl {key} is not one that a namespace has of its own; set it on the host,"
                    f" or allow it in {ALLOWLIST}",
                )
        return
    for key in paths.values():
        if not any(matches(key) for matches in patterns):
            raise CNIError(
                Code.INVALID_CONFIG, f"sysctl {key} is not allowed: no line of {ALLOWLIST} matches"
            )


def read(container: NetNS, paths: Iterable[str]) -> dict[str, str | None]:
    """Return the values of sysctls, None for an unreadable one. Raises CNIError, OSError."""

    def look() -> dict[str, str | None]:
        return {path: _read_here(container, path) for path in paths}

    return container.run(look)


def read_all(container: NetNS, paths: Iterable[str]) -> dict[str, str | None]:
    """Return the values of sysctls, None for one that is gone or unreadable."""

    def look() -> dict[str, str | None]:
        return {path: _value_or_none(container, path) for path in paths}

    return container.run(look)


def write(container: NetNS, values: Mapping[str, str], before: Mapping[str, object]) -> None:
    """Set sysctls; `before` has the values of the readable ones. Raises CNIError."""

    def change() -> None:
        for path, value in values.items():
            try:
                if before.get(path) is None:
                    _write_here(path, value)
                else:
                    container.sysctl_here(path, value)
            except OSError as error:
                raise CNIError(
                    Code.INTERNAL,
                    f"cannot set sysctl {path} to {value!r}: {error.strerror}",
                ) from None

    container.run(change)


def restore(
    container: NetNS, before: Mapping[str, str | None], after: Mapping[str, str | None]
) -> None:
    """Restore the values of `before`, except of sysctls that differ from `after` by now.

    Raises CNIError that names all sysctls that could not be restored.
    """

    def change() -> list[str]:
        failures = []
        for path, value in before.items():
            try:
                if value is not None and _is_as_left(container, path, after):
                    container.sysctl_here(path, value)
            except OSError as error:
                if error.errno != errno.ENOENT:  # the sysctl is gone with its interface
                    failures.append(f"{path}: {error.strerror}")
        return failures

    failures = container.run(change)
    if failures:
        raise CNIError(Code.INTERNAL, f"cannot restore sysctl {', '.join(failures)}")


def is_same(one: str | None, other: str | None) -> bool:
    """Tell whether two texts are the same value; the kernel separates numbers by tabs."""
    return (one or "").split() == (other or "").split()


def _is_as_left(container: NetNS, path: str, after: Mapping[str, str | None]) -> bool:
    # Without a recorded value, ADD did not set the sysctl.
    return path not in after or is_same(container.sysctl_here(path, None), after[path])


def _read_here(container: NetNS, path: str) -> str | None:
    try:
        return container.sysctl_here(path, None)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise CNIError(
                Code.INVALID_CONFIG,
                f"there is no sysctl {path} in '{container.path}': the kernel has no such, or keeps"
                " it for the whole host; set it there",
            ) from None
        if _is_unreadable(path):
            return None
        raise CNIError(Code.INTERNAL, f"cannot read sysctl {path}: {error.strerror}") from None


def _value_or_none(container: NetNS, path: str) -> str | None:
    try:
        return container.sysctl_here(path, None)
    except OSError:
        return None


def _is_unreadable(path: str) -> bool:
    """Tell whether a sysctl is write-only, or unreadable before it is set."""
    return path.endswith("/stable_secret") or not os.stat(f"/proc/sys/{path}").st_mode & 0o400


def _write_here(path: str, value: str) -> None:
    fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _allowlist() -> list[Callable[[str], object]] | None:
    """Return what tells of each line of the node's list whether it matches, None without a list."""
    try:
        fd = os.open(ALLOWLIST, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    import re

    try:
        data = os.read(fd, _ALLOWLIST_BYTES_MAX)
    finally:
        os.close(fd)
    found: list[Callable[[str], object]] = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(re.compile(line.strip()).search)
        except re.error as error:
            raise CNIError(
                Code.IO_FAILURE, f"{ALLOWLIST}, line {number}: {error}; correct it"
            ) from None
    return found
