"""The engine as it is installed: its command, its units, and what it needs over time."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_common.spec.names import VERSION
from tests.e2e.node import Node, node_with
from tests.e2e.upgrades import CONFIG, Clients, install, version_of_engine
from tests.machine import DIST, ROOT
from tests.other_build import OTHER_VERSION
from tests.scope import ALL
from tests.waits import wait_until

ACTIVATE = ("systemd-socket-activate", "--seqpacket")
UNITS = ("pycni-engine.service", "pycni-engine.socket")
# A launcher waits two seconds for an engine that begins: on a busy machine it imports for longer.
PATIENCE_SECONDS = 1.9


@pytest.fixture
def host() -> Iterator[Node]:
    """A node whose launchers have the frozen program, and no engine."""
    with node_with(DIST) as node:
        yield node


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--add-seconds", "x"], ["--frob"]])
def test_options_that_make_no_sense(host: Node, arguments: list[str]) -> None:
    """Wrong options are told in a line, with exit status 2."""
    done = host.run(DIST / "pycni", "engine", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("pycni")
    assert "error: " in done.stderr.splitlines()[-1]


def test_not_root(host: Node) -> None:
    """A user other than root is refused."""
    host.command("cp", "-a", str(DIST), "/run/bin")  # the checkout may be where others cannot go
    done = host.run("setpriv", "--reuid=65534", "--clear-groups", "/run/bin/pycni", "engine")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pycni engine: needs root: it makes network interfaces\n"


def test_a_place_where_no_socket_can_be(host: Node) -> None:
    """When the socket cannot be made, the reason and the path are told."""
    host.command("touch", "/run/pycni")

    done = host.run(DIST / "pycni", "engine")

    assert done.returncode == 1
    assert done.stderr.startswith("pycni engine: Not a directory '/run/pycni")
    assert done.stderr.count("\n") == 1


def test_units(tmp_path: Path) -> None:
    """systemd has nothing to say against the units."""
    for name in UNITS:
        text = (ROOT / "deploy" / name).read_text().replace("/opt/cni/bin", str(DIST))
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_socket_activation(host: Node, launchers: Path) -> None:
    """The first launcher that comes to systemd's socket starts the engine, which serves it."""
    host.command("mkdir", "-m", "700", "/run/pycni")
    socket = "/run/pycni/engine.sock"
    log = host.path("/run/activation.log")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            host.entered(*ACTIVATE, "--listen", socket, DIST / "pycni", "engine"), stderr=stderr
        )
    try:
        while b"Listening on" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        begun = time.monotonic()

        done = host.execute("bridge", "ADD", CONFIG, host.container(), bin_dir=str(launchers))

        was_late = time.monotonic() - begun > PATIENCE_SECONDS
        # Said once all workers are there.
        wait_until(lambda: "wait for requests" in log.read_text(), log.read_text)
        if done.returncode and was_late:
            done = host.execute("bridge", "ADD", CONFIG, host.container(), bin_dir=str(launchers))
        assert done.returncode == 0, done.stdout + log.read_text()
    finally:
        process.kill()  # systemd-socket-activate has become the engine's supervisor
        process.wait()


@pytest.mark.timeout(600)
def test_an_upgrade_under_load(host: Node, other_dist: Path, tmp_path: Path) -> None:
    """While containers come and go another version is installed, started, and left again."""
    place = tmp_path / "bin"
    install(DIST, place)
    host.start_engine(wrap=lambda *_words: (place / "pycni", "engine"))

    with Clients(host, place) as clients:
        for old, new, build in (
            (VERSION, OTHER_VERSION, other_dist),
            (OTHER_VERSION, VERSION, DIST),
        ):
            assert clients.wait_for_more() == {old}
            install(build, place)
            # Launchers of one build, an engine of the other.
            assert clients.wait_for_more() == {new}
            assert host.command(str(place / "pycni"), "version").split()[:2] == ["version", new]
            host.start_engine(wrap=lambda *_words: (place / "pycni", "engine"))
            assert version_of_engine(host, place / "bridge", tmp_path / new) == new
        assert clients.wait_for_more() == {VERSION}

    assert clients.failures == []
    assert host.traces("br0") == {}


def rss_kib(node: Node, pid: str) -> int:
    """Return the memory of a process, KiB."""
    text = node.command("cat", f"/proc/{pid}/smaps_rollup")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))


ROUNDS = 495 if ALL else 95  # of 20 requests


@pytest.mark.timeout(1500)
def test_memory_does_not_grow(host: Node, launchers: Path) -> None:
    """After 2,000 requests, or 10,000, a worker has a tenth more memory than after 100 at most."""
    host.start_engine("--workers", "1", "--requests", "20000")
    supervisor = host.command("pgrep", "-o", "-f", "pycni engine").strip()
    worker = host.command("pgrep", "-P", supervisor).strip()
    netns = host.container()

    def load(rounds: int) -> int:
        environ = {
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(launchers),
        }
        words = ["sh", "-c", LOAD_SCRIPT, "load", str(launchers), str(rounds), json.dumps(CONFIG)]
        done = host.run(*words, env=environ, seconds=1400)
        assert done.stdout == "", done.stdout[:500]
        return rss_kib(host, worker)

    after_100 = load(5)
    after_all = load(ROUNDS)

    assert host.command("pgrep", "-P", supervisor).strip() == worker
    assert after_all <= after_100 * 1.1


# 20 requests a round: of all commands, some refused; only what is unexpected is printed.
LOAD_SCRIPT = """
bin=$1 rounds=$2 config=$3
call() {  # expected status, command, plugin
    printf %s "$config" | CNI_COMMAND=$2 "$bin/$3" >/dev/null 2>&1
    status=$?
    [ $status = $1 ] || echo "$2 of $3 ended with $status"
}
while [ $rounds -gt 0 ]; do
    rounds=$((rounds - 1))
    call 0 ADD bridge
    call 1 ADD bridge
    call 1 CHECK bridge
    call 0 DEL bridge
    call 0 STATUS bridge
    for again in 1 2 3; do
        call 0 ADD loopback
        call 0 STATUS host-local
        call 0 ADD host-local
        call 1 ADD host-local
        call 0 DEL host-local
    done
done
"""
