"""What the plugins keep on this node: engine, room on the disk, locks, leftovers, clock."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from cni_common.serve.cli import ENGINE_SOCKET
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


def engine(_patient: Patient) -> Iterator[Line]:
    """Say whether the engine answers."""
    if not os.path.exists(ENGINE_SOCKET):
        yield Line(OK, "engine", "does not run; the plugins start by themselves, more slowly")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(1)
        try:
            client.connect(ENGINE_SOCKET)
        except OSError as error:
            if isinstance(error, ConnectionRefusedError):
                text, remedy = (
                    "its socket is there, and nobody listens",
                    "systemctl restart pycni-engine",
                )
            else:
                text, remedy = (
                    f"does not answer: {error.strerror or error}",
                    "journalctl -u pycni-engine",
                )
            yield Line(WARNING, "engine", text, remedy)
            return
    yield Line(OK, "engine", "listens")


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
        text = grouped.of_missing(lacking)
        yield Line(ERROR, "missing objects", text, "pycni audit shows them")
    else:
        yield Line(OK, "missing objects", "none")


def clock(patient: Patient) -> Iterator[Line]:
    """Judge the clock, by which leases of an earlier boot are known."""
    now = time.time()
    ahead = [one.path for one in _records(patient) if one.stat().st_mtime > now + _AHEAD_SECONDS]
    if time.gmtime(now).tm_year < _YEAR:
        text = f"says {time.strftime('%Y-%m-%d', time.gmtime(now))}: it was never set"
        yield Line(ERROR, "clock", text, "start chrony or systemd-timesyncd")
    elif ahead:
        text = f"was set back: {len(ahead)} records are of the future, the first {ahead[0]}"
        yield Line(WARNING, "clock", text, "start chrony or systemd-timesyncd")
    else:
        yield Line(OK, "clock", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)))


def _records(patient: Patient) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(os.path.join(patient.host.state_dir, "attachments")) as entries:
            return list(entries)
    except OSError:
        return []
