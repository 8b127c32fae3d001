"""Network namespaces as handles. The calling thread never stays in another namespace.

The bundle's `_setns` enters a namespace to open a socket or files. A throwaway thread does all that
takes longer, and everything where that module is missing.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
from functools import cache, cached_property
from sys import byteorder
from typing import TYPE_CHECKING

from cni_common.spec.errors import CNIError, Code

if TYPE_CHECKING:
    import ctypes
    import socket
    from collections.abc import Callable, Container, Mapping
    from typing import TypeVar

    from cni_common.kernel.netlink import Channel
    from cni_common.kernel.rtnetlink import Netlink

    T = TypeVar("T")
    Opener = Callable[[str, int], int]  # with the signature of os.open

OWN = "/proc/thread-self/ns/net"
CLONE_NEWNET = 0x40000000  # linux/sched.h
NS_GET_USERNS, NS_GET_NSTYPE = 0xB701, 0xB703  # linux/nsfs.h
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of linux/proc_ns.h: sees every process
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SYSCTL_BYTES_MAX = 4096
_FILES_MAX = 16  # of one visit, as in deploy/frozen/setns.c
SO_NETNS_COOKIE = 71  # asm-generic/socket.h
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12  # linux/netlink.h
_NO_ENTRY = "cannot enter the network namespace"  # as deploy/frozen/setns.c says it


class NetNS:
    """An open network namespace.

    `path` is the runtime's path of it. Sockets opened inside stay inside; they and the handle are
    closed together. Only the thread that opened the handle may use it.
    """

    def __init__(self, path: str, fd: int = -1) -> None:
        """Open the namespace at `path`, or take over its descriptor `fd`. Raises CNIError 8."""
        self.path = path
        self.fd = _checked(fd, path) if fd >= 0 else _open(path)
        self._channels: list[Channel] = []
        self._successor: socket.socket | None = None

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` inside the namespace, in a throwaway thread, and return its result.

        No signal interrupts it. Raises the function's exception.
        """
        # A thread is in its process's own namespace already.
        try:
            return _run_inside(-1 if self.path == OWN else self.fd, function)
        except OSError as error:
            raise self._told(error) from None

    def open_file(self, path: str, flags: int) -> int:
        """Open `path` inside the namespace, to which a file of /proc/sys/net stays bound.

        So does /dev/net/tun. Raises OSError.
        """
        if self.path == OWN:
            return os.open(path, flags)
        (fd,) = self._open_files([path], flags)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), path)
        return fd

    def _open_files(self, paths: list[str], flags: int) -> list[int]:
        """Open up to _FILES_MAX files by one visit; return descriptors, or an errno below zero.

        Raises OSError where the namespace cannot be entered.
        """
        try:
            opened: list[int] = _open_files(self.fd, paths, flags)
        except OSError as error:
            raise self._told(error) from None
        return opened

    def open_socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """Return a socket inside, which stays there; the caller closes it."""
        import socket

        if self.path == OWN:
            return socket.socket(family, kind, protocol)
        try:
            fd = _open_socket(self.fd, family, kind, protocol)
        except OSError as error:
            raise self._told(error) from None
        return socket.socket(family, kind, protocol, fileno=fd)

    def _told(self, error: OSError) -> OSError:
        """Return `error`, with the namespace's name if that could not be entered."""
        if not (error.strerror or "").startswith(_NO_ENTRY):
            return error
        why = os.strerror(error.errno or 0)
        if error.errno == errno.EPERM:
            why += "; it belongs to a user namespace in which the plugin has no rights"
        return OSError(error.errno, f"cannot enter network namespace '{self.path}': {why}")

    @cached_property
    def netlink(self) -> Netlink:
        """rtnetlink in this namespace."""
        from cni_common.kernel.rtnetlink import Netlink

        return Netlink(self.channel(NETLINK_ROUTE))

    @cached_property
    def netfilter(self) -> Channel:
        """A channel to nfnetlink in this namespace."""
        return self.channel(NETLINK_NETFILTER)

    def channel(self, protocol: int, groups: int = 0) -> Channel:
        """Return a new netlink channel inside, closed with the namespace."""
        import socket

        from cni_common.kernel.netlink import Channel

        sock = self.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        sock.bind((0, groups))
        channel = Channel(sock)
        self._channels.append(channel)
        return channel

    def release(self, channel: Channel) -> None:
        """Leave closing `channel` to the caller."""
        self._channels = [one for one in self._channels if one.sock is not channel.sock]

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Return the sysctl `name` (path below /proc/sys); with `value`, set it to that first.

        Nothing is written if it has the value already: /proc/sys may be read-only. Only for sysctls
        of net/ipv4 and net/ipv6, which are bound to the namespace where the file was opened; some
        of other protocols use the namespace of the writing thread. Raises OSError.
        """
        return self._sysctl(self.open_file, name, value)

    def sysctl_is_read_only(self, name: str) -> bool:
        """Tell whether a sysctl, as `sysctl` has it, cannot be set. Raises OSError."""
        try:
            os.close(self.open_file(f"/proc/sys/{name}", os.O_WRONLY))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            return True
        return False

    def sysctls(self, values: Mapping[str, str], unseen: Container[str] = ()) -> dict[str, OSError]:
        """Set several sysctls as `sysctl` does, and return the failures, by name.

        Names in `unseen` are written without reading them first, and opened by one visit; none may
        be of a sysctl whose write waits for the RTNL lock (forwarding, disable_ipv6).
        """
        blind = [name for name in values if name in unseen][:_FILES_MAX]
        try:
            opened = dict(zip(blind, self._open_sysctls(blind), strict=True))
        except OSError as error:  # the namespace cannot be entered
            return dict.fromkeys(values, error)
        failures = {}
        try:
            for name, value in values.items():
                try:
                    if name not in opened or not _could_write(opened.pop(name), value):
                        self._sysctl(self.open_file, name, value)
                except OSError as error:
                    failures[name] = error
        finally:
            for fd in opened.values():
                if fd >= 0:
                    os.close(fd)
        return failures

    def _open_sysctls(self, names: list[str]) -> list[int]:
        """Open sysctls to write them, by one visit. Raises OSError."""
        paths = [f"/proc/sys/{name}" for name in names]
        if self.path == OWN:
            return _each_opened(paths, os.O_WRONLY)
        return self._open_files(paths, os.O_WRONLY) if paths else []

    def sysctl_here(self, name: str, value: str | None) -> str:
        """Read or set any sysctl as `sysctl` does, for a caller inside the namespace."""
        return self._sysctl(os.open, name, value)

    def _sysctl(self, opener: Opener, name: str, value: str | None) -> str:
        """Read or set a sysctl as `sysctl` does."""
        path = f"/proc/sys/{name}"
        fd = opener(path, os.O_RDONLY)
        try:
            current = os.read(fd, _SYSCTL_BYTES_MAX).decode().strip()
        finally:
            os.close(fd)
        if value is None or current == value:
            return current
        _write(opener(path, os.O_WRONLY), value)
        return value

    def legacy_tables(self, version: int) -> list[str]:
        """Return the iptables-legacy tables in use here, for an IP version.

        A list that cannot be read counts as empty. Such a file belongs to the root that made the
        namespace, which the plugin's user namespace may not have (`unshare -Urn`, rootlesskit).
        """
        path = f"/proc/thread-self/net/{'ip' if version == 4 else 'ip6'}_tables_names"
        try:
            fd = self.open_file(path, os.O_RDONLY)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return []
        with open(fd, encoding="ascii") as file:
            return file.read().split()

    def interfaces(self) -> list[str]:
        """Return the names of all interfaces, by /proc: for where netlink fails. Raises OSError."""
        with open(self.open_file("/proc/thread-self/net/dev", os.O_RDONLY), "rb") as file:
            return [os.fsdecode(line.partition(b":")[0].strip()) for line in file if b":" in line]

    def is_same(self, other: NetNS) -> bool:
        """Tell whether both handles are of one namespace."""
        return os.path.samestat(os.fstat(self.fd), os.fstat(other.fd))

    def is_foreign(self) -> bool:
        """Tell whether another user namespace than this process's owns it. Raises OSError."""
        try:
            owner = fcntl.ioctl(self.fd, NS_GET_USERNS)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return error.errno == errno.EPERM  # others: a kernel that has no user namespaces
        try:
            return not os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        finally:
            os.close(owner)

    @cached_property
    def identity(self) -> str:
        """An identity that is unique in this boot: inode, and cookie if the kernel has one."""
        if self._channels:  # a socket inside tells it without entering
            return _identity(self.fd, self._channels[0].sock)
        import socket

        with self.open_socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0) as sock:
            return _identity(self.fd, sock)

    def tidy(self) -> None:
        """Close everything opened except the channels of `netlink` and `netfilter`."""
        opened = self.__dict__
        kept = [opened["netlink"].channel] if "netlink" in opened else []
        kept += [opened["netfilter"]] if "netfilter" in opened else []
        for channel in self._channels:
            if channel not in kept:
                channel.close()
        self._channels = kept

    def leave_to(self, successor: socket.socket) -> None:
        """Have a process at the other end of a stream wait for what closing this handle waits for.

        The handle closes the stream. The other process need not read it.
        """
        if self._successor:
            self._successor.close()
        self._successor = successor

    def _hand_over(self, successor: socket.socket) -> None:
        """Leave the last close of nfnetlink's socket to the successor: a message there holds it.

        It waits until nftables has freed what was deleted (nft_rcv_nl_event), a grace period.
        """
        import socket

        if "netfilter" in self.__dict__:
            fd = self.netfilter.sock.fileno().to_bytes(4, byteorder)  # cmsg(3): of type int
            try:  # noqa: SIM105 - contextlib takes each start 4 ms
                successor.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)])
            except OSError:
                pass  # the successor has ended
        successor.close()

    def close(self) -> None:
        """Close the handle and everything opened through it."""
        if self._successor:
            self._hand_over(self._successor)
            self._successor = None
        for channel in self._channels:
            channel.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _write(fd: int, value: str) -> None:
    """Write a sysctl, and close its descriptor. Raises OSError."""
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _could_write(fd: int, value: str) -> bool:
    """Write a sysctl, and close its descriptor `fd`; return False where another way is to be tried.

    That is where it is read-only, and where there were too few descriptors for all at once. `fd` is
    an errno below zero where the file could not be opened. Raises OSError.
    """
    try:
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        _write(fd, value)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENFILE):
            raise
        return False
    return True


def _each_opened(paths: list[str], flags: int) -> list[int]:
    """Open files; return a descriptor for each, or an errno below zero."""
    found = []
    for path in paths:
        try:
            found.append(os.open(path, flags))
        except OSError as error:
            found.append(-(error.errno or errno.EIO))
    return found


def identity(path: str) -> str:
    """Return the identity of the network namespace at `path`, "" if there is none."""
    try:
        netns = NetNS(path)
    except CNIError:
        return ""
    try:
        return netns.identity
    finally:
        netns.close()


def is_unique(identity: str) -> bool:
    """Tell whether no later namespace can get this identity: before Linux 5.14 one can."""
    return not identity.endswith(":0")  # the cookie


@cache
def pid_namespace() -> int:
    """Return the inode of this process's PID namespace, 0 if /proc does not tell."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _open(path: str) -> int:
    try:
        # Not blocking: the path may be a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            raise  # the error does not prove that the namespace is gone
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CNIError(
            Code.INVALID_NETNS, f"cannot open network namespace '{path}': {reason}"
        ) from None
    return _checked(fd, path)


def _checked(fd: int, path: str) -> int:
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        os.close(fd)
        raise CNIError(Code.INVALID_NETNS, f"'{path}' is not a network namespace")
    return fd


def _identity(fd: int, sock: socket.socket) -> str:
    status = os.fstat(fd)
    # The kernel reuses the inode number for another namespace as soon as this one is gone.
    return f"{status.st_dev}:{status.st_ino}:{_cookie(sock)}"


def _cookie(sock: socket.socket) -> int:
    """Return the cookie of a socket's namespace, 0 before Linux 5.14 (SO_NETNS_COOKIE)."""
    import socket

    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), byteorder)
    except OSError:
        return 0


def _run_inside(fd: int, function: Callable[[], T]) -> T:
    outcome: list[T] = []
    failure: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def enter() -> None:
        try:
            if fd >= 0:
                _setns(fd)
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again below, by the caller
            failure.append(error)
        finally:
            done.release()

    _thread.start_new_thread(enter, ())
    try:
        done.acquire()
    except BaseException:  # a signal handler raised: let the thread finish with `fd` first
        done.acquire()
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        try:
            os.setns(fd, CLONE_NEWNET)
        except OSError as error:
            raise OSError(error.errno, f"{_NO_ENTRY}: {error.strerror}") from None
        return
    import ctypes

    if _libc().setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"{_NO_ENTRY}: {os.strerror(code)}")


@cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _open_files_by_thread(fd: int, paths: list[str], flags: int) -> list[int]:
    return _run_inside(fd, lambda: _each_opened(paths, flags))


def _open_socket_by_thread(fd: int, family: int, kind: int, protocol: int) -> int:
    import socket

    return _run_inside(fd, lambda: socket.socket(family, kind, protocol).detach())


try:
    from _setns import open_files as _open_files
    from _setns import open_socket as _open_socket
except ImportError:  # compiled for the bundle only
    _open_files, _open_socket = _open_files_by_thread, _open_socket_by_thread
