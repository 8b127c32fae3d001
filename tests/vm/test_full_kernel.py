"""Run the tests marked full_kernel under kernels that have all that they need.

In `make test` under a kernel in user mode; in the long target under two of them, on both edges, and
what they lack, with the tests marked everywhere, in virtual machines with two kernels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.scope import ALL, turn

ROOT = Path(__file__).resolve().parents[2]
# Tests of a minute or more there: only in the long target.
SLOW = {
    ROOT / "tests/faults/test_chains.py",
    ROOT / "tests/kernel/test_persistent_failures.py",
}
# Tests of half a minute there: one of these each day, all in the long target.
DAILY = [
    ROOT / "tests/agent/test_clock.py",
    ROOT / "tests/faults/test_storm.py",
    ROOT / "tests/kernel/test_clock.py",
]
LEFT_OUT = set() if ALL else SLOW | set(DAILY) - {DAILY[turn() % len(DAILY)]}
LIMIT = 3000  # seconds for all tests of one machine
PROVISIONING = 300  # seconds


@dataclass(frozen=True)
class Kernel:
    """A kernel, and which tests run under it."""

    program: str  # the module that starts it
    series: str
    marks: str
    # Before any test, make sure that the kernel has what the tests are there for, and loads it
    # when it is asked for.
    tables: str
    is_selinux: bool = False

    def __str__(self) -> str:
        """Return the name of the test under this kernel."""
        name = f"{self.program.removeprefix('tests.vm.')}-{self.series}"
        return f"{name}-selinux" if self.is_selinux else name

    @property
    def command(self) -> list[str]:
        """The command that runs another in the machine, without its options."""
        words = [sys.executable, "-m", self.program, "--kernel", self.series]
        return [*words, "--append", "security=selinux"] if self.is_selinux else words

    @property
    def files(self) -> list[str]:
        """The files that have such tests: to read all others takes minutes there."""
        names = {name for name in re.split(r" and .*| or ", self.marks) if name}
        mark = re.compile(rf"\bmark\.({'|'.join(names)})\b")
        return [
            str(path.relative_to(ROOT))
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if mark.search(path.read_text()) and path not in LEFT_OUT
        ]


_FEW_TABLES = "add table bridge first"


def user_mode(series: str) -> Kernel:
    """Return a kernel that computes as fast as this one, and lacks some of it."""
    marks = "full_kernel and not emulated_machine and not selinux"
    if series == "6.1":
        marks += " and not later_user_mode"
    return Kernel("tests.vm.user_mode", series, marks, _FEW_TABLES)


def selinux(series: str) -> Kernel:
    """Return a kernel in user mode that enforces the policy selinux.cil."""
    return Kernel("tests.vm.user_mode", series, "selinux", _FEW_TABLES, is_selinux=True)


def emulated(series: str) -> Kernel:
    """Return a kernel that lacks nothing, in a machine that is twenty times slower."""
    tables = """
table inet first {
    chain source { type nat hook postrouting priority srcnat; masquerade; }
    chain local { type filter hook input priority filter; fib daddr type local accept; }
}
"""
    return Kernel("tests.vm.boot", f"{series}-cloud", "emulated_machine or everywhere", tables)


SERIES = ("6.1", "6.12")
EACH = [make(series) for make in (user_mode, selinux, emulated) for series in SERIES]
KERNELS = EACH if ALL else [user_mode("6.12"), selinux("6.12")]
POLICY = ROOT / "tests/vm/selinux.cil"

GUEST = """
set -ex
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
ip netns add first
ip -n first link add name bridge type bridge vlan_filtering 1
ip -n first link add name dummy type dummy
ip -n first link add link dummy name vlan type vlan id 5
ip -n first link add link dummy name ipvlan type ipvlan
ip -n first link add name vrf type vrf table 5
ip -n first link add name veth type veth peer name peer
ip netns exec first nft -f - <<END
$tables
END
ip netns del first
if [ -n "$policy" ]; then
    mount -t selinuxfs selinux /sys/fs/selinux
    cat "$policy" >/sys/fs/selinux/load
    echo 1 >/sys/fs/selinux/enforce
fi
exec "$@"
"""


def pytest_command(kernel: Kernel, *options: str) -> list[str]:
    """Return the command that runs the marked tests; it loads no plugin that nobody needs."""
    command = ["env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", sys.executable, "-m", "pytest"]
    command += ["-p", "pytest_timeout", "-p", "tests.vm.patience", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "--import-mode=importlib", "-m", kernel.marks]
    if not ALL:
        command += ["-k", "not [engine"]  # what an engine adds does not depend on the kernel
    return [*command, *options, *kernel.files]


def inner_command(kernel: Kernel, report: Path) -> list[str]:
    """Return the command to run in the machine."""
    # Not beside the temporary folders of this process, which would be cleared away.
    options = ["-v", "--durations=10", f"--junitxml={report}", "--basetemp=/dev/shm/pytest"]
    words = pytest_command(kernel, *options)
    policy = report.parent / "policy" if kernel.is_selinux else ""
    variables = [f"tables={kernel.tables}", f"policy={policy}"]
    return ["env", *variables, "sh", "-c", GUEST, "sh", *words]


def compile_policy(folder: Path) -> None:
    """Write `folder`/policy, as the kernel reads it."""
    words = ["secilc", "-c", "33", "-f", "/dev/null", "-o", str(folder / "policy"), str(POLICY)]
    subprocess.run(words, timeout=60, check=True)


def compile_tests(kernel: Kernel) -> None:
    """Have pytest compile the tests here, where it takes a second; the machine sees the result."""
    words = pytest_command(kernel, "--collect-only", "-q")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_inside(kernel: Kernel, folder: Path) -> str:
    """Run the marked tests under a kernel; the folder gets the report. Return the output."""
    command = [*kernel.command, "--timeout", str(LIMIT), "--writable", str(folder)]
    command += ["--", *inner_command(kernel, folder / "report.xml")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=LIMIT + PROVISIONING,
        check=False,
    )
    return f"{done.stdout}exit status {done.returncode}\n"


def read_report(report: Path) -> tuple[list[str], list[str]]:
    """Return the names of the tests that passed, and what became of the others."""
    passed, others = [], []
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        found = [part for part in case if part.tag in ("failure", "error", "skipped")]
        if not found:
            passed.append(name)
        for part in found:
            text = part.text or part.get("message", "")
            others.append(f"--- {part.tag} inside: {name}\n{text}")
    return passed, others


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.timeout(LIMIT + PROVISIONING + 20)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_full_kernel(
    kernel: Kernel, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """All marked tests run and pass under the kernel."""
    compile_tests(kernel)
    if kernel.is_selinux:
        compile_policy(tmp_path)
    output = run_inside(kernel, tmp_path)
    report = tmp_path / "report.xml"
    if not report.exists():
        pytest.fail(f"no report of tests in {kernel}:\n{output[-5000:]}", pytrace=False)
    passed, others = read_report(report)
    record_property("passed_inside", passed)
    if others:
        pytest.fail("\n".join(others), pytrace=False)
    if not passed or not output.endswith("exit status 0\n"):
        pytest.fail(f"{len(passed)} tests passed, but:\n{output[-5000:]}", pytrace=False)
