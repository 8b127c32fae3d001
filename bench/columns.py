"""The columns: the reference, one-shot and engine, called side by side on one host.

All are in one network namespace. Each has mounts of its own, so each has its own files below
/run/pycni and /var/lib/cni, and only those of the engine's column have the engine's socket.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cni_common.node.journal import make_directory

ROOT = Path(__file__).resolve().parents[1]
SOCKET = "/run/pycni/engine.sock"
_READY_SECONDS = 20.0
_PAUSE_SECONDS = 0.002  # an engine's work after its answer belongs to that call
_CFLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
# Mounts that are visible nowhere else, then the driver instead of the shell.
_MOUNTS = """
mount -t tmpfs -o mode=700 tmpfs /run/pycni
mount -t tmpfs -o mode=755 tmpfs /var/lib/cni
echo mounted
exec "$0"
"""


class BenchError(Exception):
    """A measurement that cannot be made."""


@dataclass(frozen=True)
class Call:
    """One start of a program, with its complete environment."""

    program: Path
    environ: Mapping[str, str]
    stdin: str = ""
    arguments: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the call in the form of bench/driver.c."""
        fields = [f"p{self.program}", *(f"a{argument}" for argument in self.arguments)]
        fields += [f"e{name}={value}" for name, value in self.environ.items()]
        return "\t".join([*fields, f"i{self.stdin}"]) + "\n"


@dataclass(frozen=True)
class Outcome:
    """The cost of a call: wall time, CPU and peak memory, its children included."""

    wall_ms: float
    cpu_ms: float
    peak_mb: float
    status: int
    output: str


@dataclass(frozen=True)
class Batch:
    """The cost of calls that were started side by side."""

    outcomes: Sequence[Outcome]
    wall_ms: float
    engine_ms: float  # CPU of the engine during the calls


def compiled(name: str, directory: Path) -> Path:
    """Return the program of bench/<name>.c, built into `directory`."""
    program = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["cc", *_CFLAGS, "-static", "-o", program, source], check=True)
    return program


class Column:
    """One way to run plugins: a bin directory seen through mounts of its own."""

    def __init__(self, name: str, bin_dir: Path, driver: Path) -> None:
        self.name = name
        self.bin_dir = bin_dir
        self._engine: subprocess.Popen[bytes] | None = None
        make_directory("/run/pycni", 0o700)
        self._driver = subprocess.Popen(
            ["unshare", "--mount", "--", "sh", "-ec", _MOUNTS, str(driver)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self._driver.stdout is not None
        if self._driver.stdout.readline() != "mounted\n":  # before an engine opens its socket
            raise BenchError("cannot mount anything here: run it in tests/in-sandbox")

    def close(self) -> None:
        """End the driver, and the engine if there is one."""
        if self._engine:
            self._engine.terminate()
            try:
                self._engine.wait(_READY_SECONDS)
            except subprocess.TimeoutExpired:
                self._engine.kill()
                self._engine.wait()
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.close()
        self._driver.stdout.close()
        self._driver.wait()

    def path(self, name: str) -> Path:
        """Return the path of a column's file, as seen from this process."""
        return Path(f"/proc/{self._driver.pid}/root{name}")

    def run(self, calls: Sequence[Call], *, must_succeed: bool = True) -> Batch:
        """Run calls side by side. Raises BenchError if a call fails that must not."""
        before = self._engine_cpu()
        assert self._driver.stdin is not None
        self._driver.stdin.write("".join(call.line() for call in calls) + "\n")
        self._driver.stdin.flush()
        outcomes = [_outcome(self._line()) for _ in calls]
        wall_ms = int(self._line()) / 1e6
        time.sleep(_PAUSE_SECONDS)
        after = self._engine_cpu()
        # Processes that have ended meanwhile have no clock any more.
        engine_ms = sum(ms - before.get(pid, 0.0) for pid, ms in after.items())
        if must_succeed:
            for call, outcome in zip(calls, outcomes, strict=True):
                self._refuse_failure(call, outcome)
            served = any(call.environ.get("CNI_COMMAND") in ("ADD", "DEL") for call in calls)
            if self._engine and served and engine_ms <= 0:
                raise BenchError("the engine did not serve the calls: one-shot was measured")
        return Batch(outcomes, wall_ms, engine_ms)

    def _refuse_failure(self, call: Call, outcome: Outcome) -> None:
        if outcome.status:
            command = call.environ.get("CNI_COMMAND", "")
            raise BenchError(
                f"{self.name}: {call.program.name} {command} ended with status"
                f" {outcome.status}: {outcome.output.strip()}"
            )

    def start_engine(self) -> None:
        """Start `pycni engine`; return when it accepts. Raises BenchError if it does not."""
        program = self.bin_dir / "pycni"
        if not program.exists():
            raise BenchError(f"there is no {program.name} in the bin directory")
        self._engine = subprocess.Popen(
            ["nsenter", f"--mount=/proc/{self._driver.pid}/ns/mnt", "--", program, "engine"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.defpath},
        )
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._engine.poll() is not None:
                raise BenchError(f"'pycni engine' ended with status {self._engine.returncode}")
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(str(self.path(SOCKET)))
                except OSError:
                    time.sleep(0.02)
                else:
                    return
        raise BenchError(f"'pycni engine' did not accept within {_READY_SECONDS:g} s")

    def engine_peak_mb(self) -> float:
        """Return the peak memory of the engine's largest process."""
        return max((_peak_mb(pid) for pid in self._engine_pids()), default=0.0)

    def _engine_pids(self) -> list[int]:
        return descendants(self._engine.pid) if self._engine else []

    def _engine_cpu(self) -> dict[int, float]:
        return {pid: _cpu_ms(pid) for pid in self._engine_pids()}

    def _line(self) -> str:
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        if not line:
            raise BenchError(f"{self.name}: the driver ended, with status {self._driver.wait()}")
        return line.removesuffix("\n")


class Floor:
    """bench/floor.c on a bridge, kept running."""

    def __init__(self, program: Path, bridge: str) -> None:
        self._process = subprocess.Popen(
            [program, bridge], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        """End the program."""
        self._process.communicate()

    def ms(self, *words: str) -> float:
        """Return the time of one request in ms. Raises BenchError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the floor's program ended")
        return int(line) / 1e6


def default_bin_dir() -> Path:
    """Return the directory of `make dist`, else that of this checkout's scripts."""
    made = ROOT / "dist" / "bin"
    return made if made.exists() else ROOT / ".tools" / "cni"


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (parent := _parent(entry)):
            children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def sh(command: str) -> None:
    """Run a command, words separated by spaces, on the simulated host; it must succeed."""
    words = command.split()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise BenchError(f"'{command}' failed: {done.stderr.strip()}")


def empty(directory: Path) -> None:
    """Empty a directory, except for the engine's socket."""
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != Path(SOCKET).name:
            entry.unlink()


def _outcome(line: str) -> Outcome:
    wall, cpu, peak, status, output = line.split("\t", 4)
    return Outcome(int(wall) / 1e6, int(cpu) / 1e3, int(peak) / 1024, int(status), output)


def _parent(pid: str) -> int:
    try:
        return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has ended


def _cpu_ms(pid: int) -> float:
    """Return the CPU time of a process, its ended threads included, by its own clock."""
    try:
        return time.clock_gettime((~pid << 3) | 2) * 1000  # CPUCLOCK_SCHED, posix-timers.h
    except OSError:
        return 0.0


def _peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0
