"""Wake-ups, pauses, paces and settings of the agent."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api import Pace
from agent.program import run
from agent.settings import Settings, parser, settings_of, with_files
from agent.wake import Wake
from agent.watch import BackOff
from cni_common.kernel.cgroups import _hierarchies
from tests.machine import ROOT


def test_causes_are_gathered() -> None:
    """A storm of wake-ups is one round, which knows the causes; more than 32 are "others"."""
    wake = Wake(settle_seconds=0)
    for number in range(1000):
        wake(f"cause {number}")

    causes = wake.wait(60)

    assert causes is not None
    assert len(causes) == 33
    assert "others" in causes
    assert wake.wait(0) == frozenset()


def test_wakes_a_waiting_loop() -> None:
    """A cause that comes while the loop waits ends the wait, and so does the end."""
    wake = Wake(settle_seconds=0.01)
    found: list[frozenset[str] | None] = []
    thread = threading.Thread(target=lambda: found.extend([wake.wait(60), wake.wait(60)]))
    thread.start()

    wake("nodes")
    while not found and thread.is_alive():
        wake("nodes")
    wake.stop()
    thread.join(60)

    assert found[0] == frozenset({"nodes"})
    assert wake.wait(60) is None


@given(st.floats(0.1, 10), st.floats(10, 100), st.integers(1, 20))
def test_back_off(least: float, most: float, steps: int) -> None:
    """Pauses grow from the least to the most, cut by a half at most; then they begin anew."""
    back_off = BackOff(least, most)

    pauses = [back_off.next() for _ in range(steps)]

    for number, pause in enumerate(pauses):
        longest = min(least * 2**number, most)
        assert longest / 2 <= pause <= longest
    back_off.reset()
    assert back_off.next() <= least


def test_pace() -> None:
    """A burst goes through at once; after that each step waits for its turn."""
    now, slept = [0.0], list[float]()
    pace = Pace(3, 2.0, now=lambda: now[0], sleep=slept.append)

    for _ in range(4):
        pace.wait()

    assert slept == [0.5]
    assert not pace.try_step()
    now[0] += 1.0
    assert (pace.try_step(), pace.try_step()) == (True, False)


def _settings(*words: str, **environ: str) -> Settings:
    return settings_of(parser(environ).parse_args(words), environ, Path("/beside"))


def test_settings_of_the_environment() -> None:
    """Each flag has a variable; a flag wins over it, and an empty variable counts as none."""
    found = _settings(
        "--mode",
        "vxlan",
        NODE_NAME="node-1",
        PYCNI_MODE="direct",
        PYCNI_API_SERVER="192.0.2.1:6443",
        PYCNI_INSTALL="false",
        PYCNI_UNMASQUERADED="10.0.0.0/8, fd00::/8",
        PYCNI_LISTEN="",
        KUBERNETES_SERVICE_HOST="fd00::1",
    )

    assert (found.node, found.network.mode, found.dist) == ("node-1", "vxlan", None)
    assert (found.access.server, found.access.host) == ("192.0.2.1:6443", "fd00::1")
    assert [str(one) for one in found.network.unmasqueraded] == ["10.0.0.0/8", "fd00::/8"]
    assert found.listen == ("127.0.0.1", 9632)


def test_defaults() -> None:
    """Without flags the agent installs what is beside it."""
    found = _settings()

    assert (found.dist, str(found.bin_dir)) == (Path("/beside"), "/opt/cni/bin")
    assert found.choice.path == Path("/etc/cni/net.d/10-pycni.conflist")
    assert _settings("--listen", "none").listen is None
    assert _settings("--listen", "[::]:80").listen == ("::", 80)


@pytest.mark.parametrize(
    "words",
    [
        ("--mode", "flannel"),
        ("--node-name", "Not A Node"),
        ("--install", "maybe"),
        ("--vni", "0"),
        ("--vxlan-port", "65536"),
        ("--unmasqueraded", "10.0.0.1/8"),
        ("--listen", "localhost:80"),
        ("--listen", "127.0.0.1:http"),
        ("--conf-name", "10-pycni.txt"),
        ("--conf-name", "../x.conflist"),
        ("--bin-dir", "bin"),
        ("restart",),
    ],
)
def test_wrong_settings(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value ends the program with status 2, and names flag or value."""
    with pytest.raises(SystemExit) as caught:
        _settings(*words)

    assert caught.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_wrong_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value of a variable is refused as that of its flag."""
    with pytest.raises(SystemExit):
        _settings(PYCNI_MODE="flannel")

    assert "--mode" in capsys.readouterr().err


def test_settings_of_files(tmp_path: Path) -> None:
    """A file stands for a variable that is not set; other files are nobody's settings."""
    (tmp_path / "PYCNI_MODE").write_text("vxlan\n")
    (tmp_path / "PYCNI_VNI").write_text("7")
    (tmp_path / "NODE_NAME").write_text("node-2")
    (tmp_path / "..data").mkdir()  # as the kubelet has it

    found = _settings(**with_files({"PYCNI_SETTINGS": str(tmp_path), "PYCNI_VNI": "9"}))

    assert (found.network.mode, found.network.vni, found.node) == ("vxlan", 9, "")
    assert with_files({"PYCNI_MODE": "direct"}) == {"PYCNI_MODE": "direct"}


@pytest.mark.parametrize("value", [b"\xff", b"x" * 5000], ids=["no text", "too long"])
def test_unreadable_settings(
    value: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file that is no setting, or no directory, ends the program with its path and status 2."""
    (tmp_path / "PYCNI_MODE").write_bytes(value)

    assert run((), {"PYCNI_SETTINGS": str(tmp_path)}) == 2
    assert run((), {"PYCNI_SETTINGS": str(tmp_path / "missing")}) == 2
    told = capfd.readouterr()
    assert "PYCNI_MODE" in told.out + told.err
    assert f"{tmp_path}/missing" in told.out + told.err


def test_hierarchies() -> None:
    """Control groups of both versions are found by their mounts, not by one of a group below."""
    lines = [
        "25 30 0:23 / /sys rw shared:7 - sysfs sysfs rw",
        "31 25 0:26 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate",
        "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        "34 25 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
        "35 34 0:30 /kubelet /sys/fs/cgroup/systemd/kubelet rw - cgroup cgroup rw,name=systemd",
    ]

    assert _hierarchies(lines) == {
        frozenset(): "/sys/fs/cgroup/unified",
        frozenset({"cpu", "cpuacct"}): "/sys/fs/cgroup/cpu,cpuacct",
        frozenset({"name=systemd"}): "/sys/fs/cgroup/systemd",
    }


_LARGE = ("httpx2", "lightkube", "msgspec", "prometheus_client", "pyroute2", "yaml")


@pytest.mark.starts_process
def test_the_head_start_is_one() -> None:
    """The code before it loads neither the API's client nor the metrics: they take as long."""
    modules = "agent.program, agent.settings, agent.logs, agent.engine, agent.head_start"
    script = f"import sys, {modules}; print(*{{*{_LARGE}}} & {{*sys.modules}})"
    words = [sys.executable, "-c", script]

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == []
