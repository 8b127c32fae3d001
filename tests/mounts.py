"""Mounts of the tests: a namespace at a path, made and detached as runtimes and `ip netns` do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waits import GENEROUS


def bind(source: str, path: Path) -> None:
    """Mount what is at a path, such as a network namespace, at another one, which is made."""
    path.touch()
    subprocess.run(["mount", "--bind", source, str(path)], check=True, timeout=GENEROUS)


def detach(path: str | Path) -> None:
    """Take a mount away, also while another call looks into it: a plain umount(2) says EBUSY."""
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=GENEROUS)


@contextmanager
def mounted(path: Path, netns: str) -> Iterator[str]:
    """Give a path at which a namespace is mounted; afterwards mount and file are gone."""
    bind(netns, path)
    try:
        yield str(path)
    finally:
        detach(path)
        path.unlink()
