"""A pretend host on which a chosen operation fails, or kills, or is preceded by something else.

Counted are netlink messages (reads included; an nftables transaction is one), visits to a
namespace, sysctls, attachment records, portmap's owners of ports, tap's requests to the TUN driver
and host-local's disk operations.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from cni_common.kernel.netlink import Channel, Message, NetlinkError
from cni_common.kernel.netns import NETLINK_NETFILTER, NetNS
from cni_common.node import journal, record
from cni_common.node.record import Record, Records
from cni_common.spec.errors import CNIError, Code
from cni_common.spec.names import Address
from plugins.host_local import allocate, store
from plugins.portmap import claims
from plugins.tap import tun
from tests.machine import Machine, TestHost

KILLED = 9  # exit status of a process that a Fault ended
INJECTED = "injected failure"
_CODES = (errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EIO, errno.EBUSY)


class Terminated(BaseException):
    """The exception that the executable raises for SIGTERM."""


@dataclass
class Fault:
    """The event at operation number `at`, counted from 1; 0: none."""

    at: int = 0
    lasting: bool = False  # every later operation fails too
    kill: bool = False  # the process ends instead
    terminate: bool = False  # Terminated is raised instead
    code: int = 0  # errno; 0: it depends on `at`
    looks: bool = False  # files of /proc that are read count too
    text: str = INJECTED
    only: Callable[[str], bool] = lambda _what: True  # which operations are counted
    act: Callable[[], object] | None = None  # what happens just before, and nothing fails
    done: list[str] = field(default_factory=list)

    @property
    def happened(self) -> bool:
        """Tell whether there was an operation number `at`."""
        return 0 < self.at <= len(self.done)

    @property
    def what(self) -> str:
        """The operation that failed."""
        return self.done[self.at - 1]

    @property
    def rest(self) -> list[str]:
        """The operations from the one on that failed."""
        return self.done[self.at - 1 :]

    def is_due(self, what: str) -> bool:
        """Count an operation; tell whether it is to fail."""
        if not self.only(what):
            return False
        self.done.append(what)
        due = self.happened and (self.lasting or len(self.done) == self.at)
        if due and self.act:
            self.act()
            return False
        return due

    def error(self) -> OSError:
        """Return the failure; does not return where it is another than an OSError."""
        if self.kill:
            os._exit(KILLED)
        if self.terminate:
            raise Terminated
        return OSError(self.code or _CODES[self.at % len(_CODES)], self.text)

    def visit(self, what: str) -> None:
        """Count an operation and fail if it is due."""
        if self.is_due(what):
            raise self.error()


class FaultyHost(TestHost):
    """A pretend host with a Fault."""

    fault: Fault

    def make_netns(self, path: str, fd: int) -> NetNS:
        """Return a namespace whose every use is counted."""
        if self.fault.is_due("open namespace"):
            raise CNIError(Code.INVALID_NETNS, str(self.fault.error()))
        netns = _FaultyNetNS(path, fd)
        netns.fault = self.fault
        return netns


@contextmanager
def faulty(machine: Machine, fault: Fault) -> Iterator[FaultyHost]:
    """Give a Host of `machine` with the fault, which host-local's store has meanwhile too."""
    host = machine.make_host(FaultyHost)
    assert isinstance(host, FaultyHost)
    host.fault = fault
    host.records = _FaultyRecords(machine.state_dir, fault)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "append", _faulty_append(fault))
        patch.setattr(allocate, "Store", _faulty_store(fault))
        patch.setattr(claims, "_Slots", _faulty_slots(fault))
        patch.setattr(tun, "_ioctl", _faulty_ioctl(fault))
        yield host


class _FaultyNetNS(NetNS):
    fault: Fault

    def run(self, function: Callable[[], Any]) -> Any:
        self.fault.visit(f"run {function.__qualname__}")
        return super().run(function)

    def open_socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        self.fault.visit("open socket")
        return super().open_socket(family, kind, protocol)

    def open_file(self, path: str, flags: int) -> int:
        if self.fault.looks and "tables_names" in path:
            self.fault.visit(f"open {path}")
        return super().open_file(path, flags)

    def _sysctl(self, opener: Any, name: str, value: str | None) -> str:
        self.fault.visit(f"sysctl {name}")
        return super()._sysctl(opener, name, value)

    def sysctls(self, values: Mapping[str, str], unseen: Container[str] = ()) -> dict[str, OSError]:
        failures: dict[str, OSError] = {}
        for name in values:
            try:
                if name in unseen:  # others come to `_sysctl`
                    self.fault.visit(f"sysctl {name}")
            except OSError as error:
                failures[name] = error
        others = {name: value for name, value in values.items() if name not in failures}
        return {**failures, **super().sysctls(others, unseen)}

    def channel(self, protocol: int, groups: int = 0) -> Channel:
        plain = super().channel(protocol, groups)
        channel = _FaultyChannel(plain.sock)
        channel.fault, channel.is_atomic = self.fault, protocol == NETLINK_NETFILTER
        return channel


class _FaultyChannel(Channel):
    fault: Fault
    is_atomic: bool

    def exchange(
        self, messages: Sequence[Message], *, absent: Collection[int] = ()
    ) -> list[list[Any]]:
        due = self._due(messages[-1:] if self.is_atomic else messages)
        if not due:
            return super().exchange(messages, absent=absent)
        failure = self.fault.error()
        others = [message for message in messages if message not in due]
        if others and not self.is_atomic:
            with suppress(NetlinkError):  # a consequence
                super().exchange(others)
        raise _refusal(due[0], failure)

    def transact(self, begin: Message, messages: Sequence[Message], end: Message) -> list[Any]:
        due = self._due(messages[-1:])
        if due:
            raise _refusal(due[0], self.fault.error())
        return super().transact(begin, messages, end)

    def _due(self, counted: Sequence[Message]) -> list[Message]:
        if self.fault.kill or self.fault.terminate:  # before a send or after it, never inside
            counted = counted[:1]
        return [message for message in counted if self.fault.is_due(message.what)]


def _refusal(message: Message, failure: OSError) -> NetlinkError:
    error = NetlinkError(failure.errno or 0, f"{message.what}: {failure.strerror}")
    error.is_look = message.is_look
    return error


class _FaultyRecords(Records):
    def __init__(self, root: str, fault: Fault) -> None:
        super().__init__(root)
        self._fault = fault

    def begin(self, *args: Any) -> Record:
        self._fault.visit("create record")
        return super().begin(*args)

    def find(self, *args: Any, **kwargs: Any) -> Record | None:
        try:
            self._fault.visit("find record")
        except OSError as error:  # as open(2) fails: what it fails for decides
            error.filename = self.path_of(*args)
            raise
        return super().find(*args, **kwargs)

    def _opened(self, *args: Any, **kwargs: Any) -> Record:
        opened = _FaultyRecord(*args, **kwargs)
        opened.fault = self._fault
        self._open_records.append(opened)
        return opened


class _FaultyRecord(Record):
    fault: Fault

    def remove(self) -> None:
        self.fault.visit("remove record")
        super().remove()


def _faulty_append(fault: Fault) -> Callable[..., None]:
    append = journal.append

    def faulty_append(fd: int, line: bytes, *, is_whole: bool = False) -> None:
        if fault.is_due("write record"):
            os.write(fd, line[: len(line) // 2])  # as a full disk does
            raise fault.error()
        append(fd, line, is_whole=is_whole)

    return faulty_append


def _faulty_ioctl(fault: Fault) -> Callable[..., None]:
    ioctl = tun._ioctl

    def faulty_ioctl(fd: int, what: str, request: int, argument: bytes | int) -> None:
        if fault.is_due(what):
            raise NetlinkError(fault.error().errno or 0, f"{what}: {fault.text}")
        ioctl(fd, what, request, argument)

    return faulty_ioctl


def _faulty_slots(fault: Fault) -> type[claims._Slots]:
    class FaultySlots(claims._Slots):
        def write(self, span: claims.Span, slots: Sequence[bytes]) -> None:
            fault.visit("write owners of ports")
            super().write(span, slots)

    return FaultySlots


def _faulty_store(fault: Fault) -> type[store.Store]:
    class FaultyStore(store.Store):
        _opened: dict[int, str]  # what each descriptor leads to
        _for = ""  # the file that an operation is for in the end

        def disk(self, call: Any, *args: Any, **kwargs: Any) -> Any:
            self._opened = getattr(self, "_opened", {})
            names = [arg for arg in args if isinstance(arg, str)]
            name = names[-1] if names else self._opened.get(args[0], "directory")
            name = self._for or name
            if fault.is_due(f"disk {call.__name__} {name}"):
                if call is os.close and not fault.kill:
                    os.close(*args)
                raise fault.error()
            outcome = call(*args, **kwargs)
            if call is os.open:
                self._opened[outcome] = name
            return outcome

        def set_last_reserved(self, index: int, address: Address) -> None:
            self._for = f"last_reserved_ip.{index}"  # also while it is written under another name
            try:
                super().set_last_reserved(index, address)
            finally:
                self._for = ""

    return FaultyStore
