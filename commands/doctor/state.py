"""Checks the plugins' state on this node: room on the disk, locks, leftovers, clock."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from commands import grouped, held, missing
from commands.audit import Audit
from commands.doctor.lines import ERROR, OK, WARNING, Line
from commands.first_seen import FirstSeen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commands.doctor.lines import Patient

_ROOM, _LITTLE_ROOM = 1 << 20, 64 << 20  # bytes; a lease has a block, a record some hundred bytes
_INODES, _FEW_INODES = 16, 1024
_LOCK_SECONDS = 60  # the longest call takes half of it
_YEAR = 2024  # before which a clock was never set
_AHEAD_SECONDS = 300


def room(patient: Patient) -> Iterator[Line]:
    """Say how much room there is where leases and records are."""
    for path in (patient.options.data_dir, patient.host.state_dir):
        place = path
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        found = os.statvfs(place)
        free, inodes = found.f_bavail * found.f_frsize, found.f_favail
        has_inodes = found.f_files > 0  # btrfs counts none
        text = f"{free >> 20} MiB free" + (f", {inodes} inodes" if has_inodes else "")
        remedy = f"make room on the file system of {place}"
        if free < _ROOM or (has_inodes and inodes < _INODES):
            yield Line(ERROR, path, f"{text}: ADD fails", remedy)
        elif free < _LITTLE_ROOM or (has_inodes and inodes < _FEW_INODES):
            yield Line(WARNING, path, text, remedy)
        else:
            yield Line(OK, path, text)


def locks(patient: Patient) -> Iterator[Line]:
    """Report calls that hold a lock for longer than any call takes."""
    roots = (patient.options.data_dir, held.records(patient.host.state_dir))
    ours = dict(held.files(roots))
    holders = []
    for number, pid in held.locks():
        age = _age(pid)
        if number in ours and age > _LOCK_SECONDS:
            holders.append((ours[number], pid, age))
    for path, pid, age in holders:
        yield Line(
            WARNING,
            path,
            f"process {pid}, started {age:.0f} s ago, holds the lock: calls for it wait or fail",
            f"see what it waits for: cat /proc/{pid}/stack; kill {pid} has it roll back",
        )
    if not holders:
        yield Line(OK, "locks", "no call holds one for longer than a call takes")


def _age(pid: int) -> float:
    """Return for how many seconds a process has run, 0 for one that is gone or unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def leftovers(patient: Patient) -> Iterator[Line]:
    """Count what dead containers have left, and what living ones lack."""
    host, options = patient.host, patient.options
    audit = Audit(host, options.data_dir, FirstSeen(host.state_dir))
    findings = audit.findings()
    lacking = missing.of(audit.node, host, options.data_dir)
    if findings:
        text = grouped.counted(findings)
        yield Line(WARNING, "leftovers", text, "pycni audit; pycni reclaim")
    else:
        yield Line(OK, "leftovers", "none")
    if lacking:
        anew = "only a start of their containers anew makes them"
        what = anew if all(one.final for one in lacking) else "pycni repair --all"
        remedy = f"{what}; pycni audit shows them"
        yield Line(ERROR, "missing objects", grouped.lacked(lacking), remedy)
    else:
        yield Line(OK, "missing objects", "none")


def clock(patient: Patient) -> Iterator[Line]:
    """Check the clock, by which leases of an earlier boot are known."""
    now = time.time()
    ahead = [
        (changed, path)
        for path in _dated(patient)
        if (changed := _changed(path)) > now + _AHEAD_SECONDS
    ]
    remedy = "start chrony or systemd-timesyncd"
    if time.gmtime(now).tm_year < _YEAR:
        yield Line(ERROR, "clock", f"says {_day(now)}: it was never set", remedy)
    elif ahead:
        changed, path = max(ahead)
        text = f"is behind: it says {_day(now)}, and {path} was changed at {_day(changed)}"
        yield Line(WARNING, "clock", text, remedy)
    else:
        yield Line(OK, "clock", _day(now))


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _dated(patient: Patient) -> Iterator[str]:
    """Yield the files that calls date: records and leases."""
    yield from _entries(held.records(patient.host.state_dir))
    yield from (one.file for one in patient.node.tenancies)


def _entries(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [one.path for one in entries]
    except OSError:
        return []


def _changed(path: str) -> float:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
