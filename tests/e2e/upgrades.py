"""Another build, its installation, and clients that notice whether a change fails them."""

import shutil
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

from tests.e2e.node import Node, network, single
from tests.machine import DIST, ROOT

CONFIG = single(network("1.1.0", ["10.9.0.0/24"]))


def make_other_build(place: Path) -> None:
    """Make what `make dist` makes of other sources: programs and launchers of another build."""
    shutil.copytree(DIST, place)
    (bundle,) = (place / ".pycni").iterdir()
    bundle = bundle.rename(bundle.with_name("0.0.1-0123456789ab"))
    launcher = bundle / "launcher"
    launcher.unlink()
    variables = {
        "OUTPUT": launcher,
        "BUILD": bundle.name,
        "BUNDLE": f".pycni/{bundle.name}/pycni",
    }
    words = [f"{name}={value}" for name, value in variables.items()]
    subprocess.run(["make", "--silent", "-C", "launcher", *words], cwd=ROOT, check=True)
    for file in place.iterdir():
        if file.is_file():
            file.unlink()
            file.hardlink_to(launcher)


def install(build: Path, place: Path) -> None:
    """Run the installation."""
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DIST": str(build)}
    words = [str(ROOT / "deploy/install.sh"), "install"]
    subprocess.run(words, env={**environ, "CNI_BIN_DIR": str(place)}, check=True, timeout=60)


class Clients:
    """Three that attach and detach a container each, without a pause."""

    def __init__(self, node: Node, bin_dir: Path) -> None:
        self.failures: list[str] = []
        self._served = [0] * 3
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
            self._served[number] += 1

    def wait_for_more(self) -> None:
        """Wait until each has been served some more times."""
        goal, deadline = [count + 4 for count in self._served], time.monotonic() + 60
        while any(count < due for count, due in zip(self._served, goal, strict=True)):
            assert time.monotonic() < deadline, (self._served, self.failures)
            time.sleep(0.01)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()
