"""What CNI-FORWARD is known to hold, so that an ADD need not list it and a DEL need not search it.

A rule has a handle, and a record has the handles of its rules. A small file for each IP version
notes how much the chain is in use, all of it known: as long as the kernel says the same, neither a
rule nor a jump has come or gone by another program. Otherwise the chain is listed once and all
records are read. Calls hold the lock over all records.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.spec import wire
from cni_common.spec.errors import CNIError
from plugins.firewall import cni_forward
from plugins.firewall.cni_forward import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cni_common.node.host import Host
    from cni_common.spec.names import Address
    from plugins.firewall.filter_tables import NftFilter

_FEW = 16  # rules and jumps: so short a chain may be listed, to see whether it can go
_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Known:
    """The state of the chain after the last change."""

    chain: int = 0  # its handle
    use: int = 0  # rules in it, and jumps to it
    admins: Sequence[str] = ()  # administrators' chains to which it jumps
    found: Sequence[str] = ()  # addresses in rules that no record holds by a handle


def admit(
    host: Host,
    table: NftFilter,
    addresses: Collection[Address],
    *,
    admin: str,
    held: Callable[[], Collection[int]],
) -> list[int]:
    """Accept packets from and to `addresses`; return the handles of the rules made.

    `held` returns the handles in all records. Raises CNIError, NetlinkError.
    """
    known, usage = _read(host, table.version), table.usage(ALLOWED)
    is_usual = (usage[0] and usage == (known.chain, known.use) and admin in known.admins) and not {
        str(one) for one in addresses
    } & set(known.found)
    if is_usual:
        handles = cni_forward.append(table, addresses)
        _write(
            host,
            table.version,
            _Known(known.chain, known.use + len(handles), known.admins, known.found),
        )
        return handles
    _forget(host, table.version)
    table.held = held()
    handles = cni_forward.admit(table, addresses, admin)
    table.held = {*table.held, *handles}
    before = table.usage(ALLOWED)
    admins, found = cni_forward.unheld(table, {*known.admins, admin})
    if before == table.usage(ALLOWED):
        _write(host, table.version, _Known(*before, admins, found))
    return handles


def withdraw(
    host: Host,
    table: NftFilter,
    addresses: Collection[Address],
    *,
    admin: str,
    handles: Sequence[int],
) -> bool:
    """Remove rules by their handles; return False if they are not all there as they were made.

    Raises CNIError, NetlinkError.
    """
    lines = list(cni_forward.lines_of(addresses))
    if len(lines) != len(handles) or not all(
        table.is_rule(ALLOWED, handle, line) for handle, line in zip(handles, lines, strict=True)
    ):
        return False
    known, usage = _read(host, table.version), table.usage(ALLOWED)
    table.delete_rules(ALLOWED, handles)
    left = usage[1] - len(handles)
    if left <= _FEW:
        _forget(host, table.version)
        cni_forward.remove_if_unused(table, admin)
        if table.usage(ALLOWED) != (usage[0], left):
            return True
    if usage == (known.chain, known.use):
        _write(host, table.version, _Known(known.chain, left, known.admins, known.found))
    return True


def forget(host: Host) -> None:
    """Have the next ADD list the chains: rules were changed in another way."""
    for version in (4, 6):
        _forget(host, version)


def _path(host: Host, version: int) -> str:
    return f"{os.path.dirname(host.records.directory)}/firewall-ipv{version}"


def _read(host: Host, version: int) -> _Known:
    """Return what is known, nothing where the file is not there or is damaged."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(_path(host, version), flags)
    except OSError:
        return _Known()
    try:
        data = wire.decode(os.read(fd, _BYTES_MAX))
        return _Known(**{name: data[name] for name in _Known.__match_args__})
    except (CNIError, OSError, KeyError):
        return _Known()
    finally:
        os.close(fd)


def _write(host: Host, version: int, known: _Known) -> None:
    """Note what is known. A file cut short is as good as none."""
    line = wire.encode_line({name: getattr(known, name) for name in _Known.__match_args__})
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        _forget(host, version)
        fd = os.open(_path(host, version), flags, 0o600)
    except OSError:
        return
    try:
        os.write(fd, line)
    except OSError:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _forget(host: Host, version: int) -> None:
    path = _path(host, version)
    try:
        os.unlink(path)
    except OSError:
        if os.path.isfile(path):  # it would be believed
            raise
