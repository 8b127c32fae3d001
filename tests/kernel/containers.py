"""Processes that live in network namespaces of their own."""

from __future__ import annotations

import subprocess


class Container:
    """A namespace that lives as long as the one process in it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    @property
    def netns(self) -> str:
        """The path of the namespace."""
        return f"/proc/{self.process.pid}/ns/net"

    def end(self) -> None:
        """End the process and with it the namespace."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
