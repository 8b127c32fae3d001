"""Run the tests marked full_kernel under kernels that have all that they need.

In `make test` under a kernel in user mode, which lacks some of it; in the long target in virtual
machines with two kernels, on both edges, and with the tests marked everywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.scope import ALL

ROOT = Path(__file__).resolve().parents[2]
MARKS = "full_kernel or everywhere" if ALL else "full_kernel and not emulated_machine"
# What takes a minute or more there, as systemd does to start: only in the long target.
SLOW = {
    ROOT / "tests/e2e/test_unit.py",
    ROOT / "tests/faults/test_chains.py",
    ROOT / "tests/kernel/test_persistent_failures.py",
}
EMULATED = ("-m", "tests.vm.boot", "--kernel")
USER_MODE = ("-m", "tests.vm.user_mode")
KERNELS = [(*EMULATED, "6.1-cloud"), (*EMULATED, "6.12-cloud")] if ALL else [USER_MODE]
LIMIT = 3000  # seconds for all tests of one machine
PROVISIONING = 300  # seconds

# Before any test, make sure that the kernel has what the tests are there for, and loads it when
# it is asked for.
TABLES = (
    """
table inet first {
    chain source { type nat hook postrouting priority srcnat; masquerade; }
    chain local { type filter hook input priority filter; fib daddr type local accept; }
}
"""
    if ALL
    else "add table bridge first"
)
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
exec "$@"
"""


def marked_files() -> list[str]:
    """Return the files that have such tests: to read all others takes minutes there."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    mark = re.compile(r"\bmark\.(full_kernel|everywhere)\b" if ALL else r"\bmark\.full_kernel\b")
    return [
        str(path.relative_to(ROOT))
        for path in found
        if mark.search(path.read_text()) and (ALL or path not in SLOW)
    ]


def pytest_command(*options: str) -> list[str]:
    """Return the command that runs the marked tests; it loads no plugin that nobody needs."""
    command = ["env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", sys.executable, "-m", "pytest"]
    command += ["-p", "pytest_timeout", "-p", "tests.vm.patience", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "--import-mode=importlib", "-m", MARKS]
    if not ALL:
        command += ["-k", "not [engine"]  # what an engine adds does not depend on the kernel
    return [*command, *options, *marked_files()]


def inner_command(report: Path) -> list[str]:
    """Return the command to run in the machine."""
    # Not beside the temporary folders of this process, which would be cleared away.
    options = ["-v", "--durations=10", f"--junitxml={report}", "--basetemp=/dev/shm/pytest"]
    return ["env", f"tables={TABLES}", "sh", "-c", GUEST, "sh", *pytest_command(*options)]


def compile_tests() -> None:
    """Have pytest compile the tests here, where it takes a second; the machine sees the result."""
    words = pytest_command("--collect-only", "-q")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_inside(kernel: Sequence[str], folder: Path) -> str:
    """Run the marked tests under a kernel; the folder gets the report. Return the output."""
    command = [sys.executable, *kernel, "--timeout", str(LIMIT)]
    command += ["--writable", str(folder), "--", *inner_command(folder / "report.xml")]
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
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda words: words[-1])
def test_full_kernel(
    kernel: Sequence[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """All marked tests run and pass under the kernel."""
    compile_tests()
    output = run_inside(kernel, tmp_path)
    report = tmp_path / "report.xml"
    if not report.exists():
        pytest.fail(f"no report of tests in {kernel[-1]}:\n{output[-5000:]}", pytrace=False)
    passed, others = read_report(report)
    record_property("passed_inside", passed)
    if others:
        pytest.fail("\n".join(others), pytrace=False)
    if not passed or not output.endswith("exit status 0\n"):
        pytest.fail(f"{len(passed)} tests passed, but:\n{output[-5000:]}", pytrace=False)
