"""iperf3: the throughput of one TCP connection from one namespace to another."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from bench.columns import BenchError

_READY_SECONDS = 10.0
_RUN_SECONDS = 60.0


@contextmanager
def serving(netns: str) -> Iterator[None]:
    """Run an iperf3 server in a namespace of `ip netns`. Raises BenchError."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*_inside(netns), "--server", "--forceflush"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + _READY_SECONDS
            while b"listening" not in (said := os.pread(log.fileno(), 4096, 0)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"iperf3 does not listen: {said.decode().strip()}")
                time.sleep(0.01)
            yield
        finally:
            process.kill()
            process.wait()


def gbit_per_second(netns: str, address: str, megabytes: int, *options: str) -> float:
    """Return the rate at which the server at `address` receives from a namespace, in Gbit/s.

    Raises BenchError.
    """
    words = [*_inside(netns), "--json", "--client", address, "--bytes", f"{megabytes}M", *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False)
    found = json.loads(done.stdout or "{}")
    if done.returncode or "error" in found:
        raise BenchError(f"iperf3 failed: {found.get('error', done.stderr.strip())}")
    return float(found["end"]["sum_received"]["bits_per_second"]) / 1e9


def _inside(netns: str) -> list[str]:
    return [*_ahead(), "ip", "netns", "exec", netns, "iperf3"]


@cache
def _ahead() -> list[str]:
    """Return the command prefix for real-time priority, if permitted: other processes disturb."""
    first = ["chrt", "--fifo", "1"]
    allowed = subprocess.run([*first, "true"], capture_output=True, check=False).returncode == 0
    return first if allowed else []
