"""All network namespaces of the node, and the addresses in them.

Any user of the node can make a namespace, and do anything in it. A look at all namespaces therefore
spends limited time and memory on each one, fails because of none, and believes only addresses in
namespaces that root has made.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from cni_common.kernel.netns import NetNS, identity
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni_common.node.host import Host
    from cni_common.spec.names import Address

_MOUNTED = ("/run/netns", "/var/run/netns", "/run/docker/netns")  # root alone can mount there
# Limits of one namespace. An IPVS proxy has an address for each of its services.
_SECONDS = 2.0
_ADDRESSES_MAX = 1 << 16


def reachable() -> dict[str, str]:
    """Return one path to every visible network namespace, by its identity.

    Reads /proc, /run/netns and docker's directory; the path is of one of the latter if possible.
    The main thread of a process may have ended before others, or another thread may be in another
    namespace: all threads are read, except those of this process, which visit other namespaces.
    Raises OSError.
    """
    inodes: dict[tuple[int, int], str] = {}
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    of_processes = (f"/proc/{process}/ns/net" for process in processes)
    # Threads last, as they come and go faster than their namespaces.
    for path in (*_mounted_namespaces(), *of_processes, *_namespaces_of_threads(processes)):
        try:
            status = os.stat(path)
        except OSError:
            continue  # the path is gone, or the thread has ended
        inodes.setdefault((status.st_dev, status.st_ino), path)
    found = {identity(path): path for path in inodes.values()}
    found.pop("", None)  # the path is gone, or is no namespace
    return found


def find(path: str, wanted: str) -> NetNS | None:
    """Return the namespace with the identity `wanted`: at `path`, or wherever it is reachable.

    None if it is not found. Raises OSError.
    """
    found = _opened(path, wanted)
    if found is None and wanted:
        found = _opened(reachable().get(wanted, ""), wanted)
    return found


def addresses_in_use(host: Host) -> frozenset[Address]:
    """Return every address in every namespace that counts. Slow. Raises OSError."""
    return addresses_in(reachable().values(), host.log)


def addresses_in(paths: Iterable[str], log: Callable[[str], object]) -> frozenset[Address]:
    """Return every address in those namespaces at `paths` that count, see `_counts`.

    Of a namespace that changes all the time, or has very many addresses, those read within the
    limits count; `log` gets its path. Raises OSError.
    """
    found: set[Address] = set()
    for path in paths:
        try:
            netns = NetNS(path)
        except CNIError:
            continue  # it went away
        try:
            if _counts(netns):
                problem = _read(netns, found)
                if problem:
                    log(f"not all addresses in network namespace '{path}' were seen: {problem}")
        finally:
            netns.close()
    return frozenset(found)


def _counts(netns: NetNS) -> bool:
    """Tell whether an address in a namespace proves that a container has it.

    In a namespace of another user namespace it was set by any local user, and proves nothing; but
    root mounts those of pods that have a user namespace, as runtimes do.
    """
    return not netns.path.startswith("/proc/") or not netns.is_foreign()


def _read(netns: NetNS, found: set[Address]) -> str:
    """Add the addresses in a namespace to `found`; return the reason if some may be missing."""
    try:
        until, at_most = time.monotonic() + _SECONDS, len(found) + _ADDRESSES_MAX
        return netns.netlink.sample_addresses(found, until=until, at_most=at_most)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # that is no namespace's doing
        return error.strerror or str(error)


def _mounted_namespaces() -> Iterator[str]:
    for directory in _MOUNTED:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            yield f"{directory}/{name}"


def _namespaces_of_threads(processes: list[str]) -> Iterator[str]:
    for process in processes:
        try:
            threads = os.listdir(f"/proc/{process}/task")
        except OSError:
            continue  # it has ended
        for thread in threads:
            if thread != process and int(process) != os.getpid():
                yield f"/proc/{process}/task/{thread}/ns/net"


def _opened(path: str, wanted: str) -> NetNS | None:
    try:
        netns = NetNS(path)
    except CNIError:
        return None
    if netns.identity == wanted:
        return netns
    netns.close()
    return None
