"""Failures of a node as a whole: power loss, reboot, a full disk, a clock that was set."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.rig import DATA_DIR, STATE_DIR, Rig

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_HOUR = 3600.0
_PAGE = 4096


def reboot(rig: Rig) -> None:
    """Take from the node what a reboot takes: namespaces, interfaces, rules, files in /run.

    Leases stay. Since the kernel goes on, they are made older than its boot instead.
    """
    for name in rig.containers():
        rig.end(name)
    for name in ("br0", *rig.node.traces("br0").get("links", ())):
        rig.node.run("ip", "link", "delete", name)
    rig.node.command("nft", "flush", "ruleset")
    lose_state(rig)
    change_boot_id(rig)
    before = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - _HOUR
    set_times(rig, before, DATA_DIR)


def lose_state(rig: Rig) -> None:
    """Empty /run of what plugins keep there."""
    rig.node.command("rm", "-rf", f"{STATE_DIR}/attachments", f"{STATE_DIR}/indexes")


def change_boot_id(rig: Rig) -> None:
    """Give the node another boot id than it had."""
    file = rig.node.path(f"/run/boot-{uuid.uuid4()}")
    file.write_text(f"{uuid.uuid4()}\n")
    rig.node.command("mount", "--bind", f"/run/{file.name}", _BOOT_ID)


def set_times(rig: Rig, moment: float, *roots: str) -> None:
    """Give files of the node this time, in seconds since the epoch: the clock was set."""
    for root in roots:
        for name in rig.files(root):
            os.utime(rig.node.path(name), (moment, moment))


def cut(path: Path, *, to: float) -> None:
    """Cut a file to that part of its length, as a power loss does to what was just written."""
    os.truncate(path, int(path.stat().st_size * to))


@contextmanager
def small_disk(rig: Rig, directory: str, *, files: int) -> Iterator[Path]:
    """Have `directory` on a disk of its own, for so many files; yield it, empty.

    It is gone at the end, with what is on it.
    """
    rig.node.command("mkdir", "-p", directory)
    options = f"size=1m,nr_inodes={files + 1},mode=700"
    rig.node.command("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
    try:
        yield rig.node.path(directory)
    finally:
        rig.node.command("umount", directory)


def enlarge(rig: Rig, directory: str) -> None:
    """Have room for some more files on the small disk of `directory`."""
    rig.node.command("mount", "-o", "remount,nr_inodes=100", directory)


def fill(directory: Path, *, spare_pages: int) -> Path:
    """Fill the disk of `directory` by one file but for so many pages; return the file."""
    ballast = directory / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(_PAGE)) == _PAGE:
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() // _PAGE - spare_pages) * _PAGE)
    return ballast
