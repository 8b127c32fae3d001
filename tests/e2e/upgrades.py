"""Installing another version, and clients that notice whether a change fails them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

from tests.e2e.node import Node, network, single
from tests.machine import ROOT, error_of
from tests.other_build import version_behind

CONFIG = single(network("1.1.0", ["10.9.0.0/24"]))


def install(build: Path, place: Path, engine: str = "none") -> None:
    """Run the installation, of which no call leaves an engine behind unless that is asked for."""
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DIST": str(build), "ENGINE": engine}
    environ["SHARE_DIR"] = "none"
    words = [sys.executable, "-S", "-m", "agent.install", "install"]
    environ["CNI_BIN_DIR"] = str(place)
    subprocess.run(words, cwd=ROOT, env=environ, check=True, timeout=60)


def uninstall(place: Path) -> None:
    """Run the uninstallation."""
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_BIN_DIR": str(place)}
    environ["SHARE_DIR"] = "none"
    words = [sys.executable, "-S", "-m", "agent.install", "uninstall"]
    subprocess.run(words, cwd=ROOT, env=environ, check=True, timeout=60)


class Clients:
    """Three that attach and detach a container each, without a pause."""

    def __init__(self, node: Node, bin_dir: Path) -> None:
        self.failures: list[str] = []
        self._served = [0] * 3
        self._answers = [""] * 3  # the last result of each
        self._node, self._bin_dir = node, str(bin_dir)
        self._enough = threading.Event()
        netns = [node.container(f"c{number}") for number in range(len(self._served))]
        self._threads = [threading.Thread(target=self._work, args=a) for a in enumerate(netns)]

    def _work(self, number: int, netns: str) -> None:
        execute = partial(self._node.execute, bin_dir=self._bin_dir, containerid=f"client{number}")
        while not self._enough.is_set():
            for command in ("ADD", "DEL"):
                done = execute("bridge", command, CONFIG, netns)
                if done.returncode:
                    self.failures.append(done.stdout + done.stderr)
                self._answers[number] = done.stdout or self._answers[number]  # a DEL has none
            self._served[number] += 1

    def wait_for_more(self) -> set[str]:
        """Wait until each has been served some more times; return the versions that did last."""
        goal, deadline = [count + 4 for count in self._served], time.monotonic() + 60
        while any(count < due for count, due in zip(self._served, goal, strict=True)):
            assert time.monotonic() < deadline, (self._served, self.failures)
            time.sleep(0.01)
        return {version_behind(answer) for answer in self._answers}

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()


def version_of_engine(node: Node, launcher: Path, alone: Path) -> str:
    """Return the version of the engine that serves a launcher; without one it could not answer."""
    alone.mkdir()
    shutil.copy(launcher, alone)
    done = node.execute(launcher.name, "ADD", {}, "/run/netns/none", bin_dir=str(alone))
    assert error_of(done.stdout)["msg"] == "missing network name"
    return version_behind(done.stdout)
