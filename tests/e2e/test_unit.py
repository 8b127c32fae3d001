"""The engine's units, run by a systemd that is process 1 of a pretend host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_common.serve.worker import Settings
from tests.e2e.node import PATH, Done, network, single
from tests.e2e.systemd import SystemdNode, systemd_node
from tests.e2e.upgrades import CONFIG, Clients, install
from tests.machine import DIST, ROOT
from tests.other_build import OTHER_VERSION
from tests.runtimes.node import BIN, eventually

SERVICE, SOCKET = "pycni-engine.service", "pycni-engine.socket"
READY = f"engine: {Settings(build='').workers} workers wait for requests"
# Delegates to this plugin of the node, which waits until the test lets it go on.
SLOW = single(network("1.1.0", ["10.9.0.0/24"], ipam={"type": "slow", "subnet": "10.9.0.0/24"}))
SLOW_PLUGIN = f"""#!/bin/sh
touch /run/begun
until [ -e /run/go ] || [ "$CNI_COMMAND" = DEL ]; do sleep 0.05; done
exec {BIN}/host-local
"""
# Takes more memory than the engine's unit may have.
GREEDY_PLUGIN = f"""#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exec {BIN}/host-local
exec dd if=/dev/zero of=/dev/null bs=400M count=1
"""


@pytest.fixture
def host() -> Iterator[SystemdNode]:
    """A node with plugins and units installed as README.md says, none started."""
    with systemd_node() as node:
        install(DIST, node.path(BIN))
        for unit in (SERVICE, SOCKET):
            text = (ROOT / "deploy" / unit).read_text()
            node.path(f"/etc/systemd/system/{unit}").write_text(text)
        node.command("systemctl", "daemon-reload")
        yield node


@pytest.fixture
def engine(host: SystemdNode) -> SystemdNode:
    """The same node with an engine that waits for requests."""
    host.command("systemctl", "enable", "--now", SOCKET, SERVICE)
    wait_for_engine(host)
    return host


def wait_for_engine(node: SystemdNode, times: int = 1) -> None:
    """Wait until the journal has said so often that an engine is ready."""
    eventually(lambda: node.journal(SERVICE).count(READY) >= times, "an engine waits for requests")


def served(done: Done) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def served_by_the_engine(node: SystemdNode, netns: str) -> None:
    """Attach and detach a container while launchers have nothing that they could start."""
    programs = [*node.path(f"{BIN}/.pycni").glob("*/pycni")]
    away = [program.rename(program.with_name("away")) for program in programs]
    for command in ("ADD", "DEL"):
        served(node.execute("bridge", command, CONFIG, netns))
    for one, program in zip(away, programs, strict=True):
        one.rename(program)


def put_delegate(node: SystemdNode, text: str) -> None:
    plugin = node.path(f"{BIN}/slow")
    plugin.write_text(text)
    plugin.chmod(0o755)


def slow_add(node: SystemdNode, netns: str) -> subprocess.Popen[str]:
    """Start an ADD of a container, and return when its delegate waits."""
    put_delegate(node, SLOW_PLUGIN)
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "slow", "CNI_IFNAME": "eth0"}
    environ |= {"CNI_NETNS": netns, "CNI_PATH": BIN}
    config = node.path("/run/slow.json")
    config.write_text(json.dumps(SLOW))
    with config.open() as stdin:
        process = subprocess.Popen(
            node.entered(f"{BIN}/bridge"),
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": PATH, **environ},
        )
    eventually(node.path("/run/begun").exists, "the delegate waits")
    return process


def main_pid(node: SystemdNode) -> str:
    return node.property(SERVICE, "MainPID")


def kill_the_supervisor(node: SystemdNode) -> None:
    node.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", SERVICE)


@pytest.mark.everywhere
def test_the_first_request_starts_the_engine(host: SystemdNode) -> None:
    """The socket alone is started; a request starts the engine, which has those that follow."""
    host.command("systemctl", "enable", "--now", SOCKET)
    netns = host.container()
    assert host.property(SERVICE, "ActiveState") == "inactive"

    served(host.execute("bridge", "ADD", CONFIG, netns))

    assert host.property(SERVICE, "ActiveState") == "active"
    wait_for_engine(host)
    served(host.execute("bridge", "DEL", CONFIG, netns))
    served_by_the_engine(host, netns)
    assert host.traces("br0") == {}


def test_restarts_under_load(engine: SystemdNode) -> None:
    """While containers come and go the engine is restarted; nobody notices."""
    with Clients(engine, Path(BIN)) as clients:
        for _ in range(3):
            clients.wait_for_more()
            before = main_pid(engine)
            engine.command("systemctl", "restart", SERVICE)
            assert main_pid(engine) != before
        clients.wait_for_more()

    assert clients.failures == []
    assert engine.traces("br0") == {}
    assert "Failed" not in engine.journal(SERVICE)
    served_by_the_engine(engine, "/run/netns/c0")


def test_an_upgrade(engine: SystemdNode, other_dist: Path) -> None:
    """Another build is installed under load, and the engine restarted: then that serves."""
    with Clients(engine, Path(BIN)) as clients:
        install(other_dist, engine.path(BIN))
        assert clients.wait_for_more() == {OTHER_VERSION}
        engine.command("systemctl", "restart", SERVICE)
        assert clients.wait_for_more() == {OTHER_VERSION}

    wait_for_engine(engine, times=2)
    program = engine.command("readlink", f"/proc/{main_pid(engine)}/exe").strip()
    (build,) = (path.name for path in (other_dist / ".pycni").iterdir())
    assert program == f"{BIN}/.pycni/{build}/pycni"
    for old in engine.path(f"{BIN}/.pycni").glob("*/superseded"):
        (old.parent / "pycni").unlink()
    served_by_the_engine(engine, "/run/netns/c0")
    assert clients.failures == []


@pytest.mark.parametrize("units", [[SERVICE], [SOCKET, SERVICE]], ids=["service", "both"])
def test_stop_with_an_add_in_progress(engine: SystemdNode, units: list[str]) -> None:
    """The engine finishes what it has begun, its delegate included; others are served meanwhile."""
    adding = slow_add(engine, engine.container("slow"))
    supervisor = main_pid(engine)

    engine.command("systemctl", "stop", "--no-block", *units)
    eventually(
        lambda: engine.property(SERVICE, "ActiveState") == "deactivating", "the engine is to end"
    )
    netns = engine.container()
    for command in ("ADD", "DEL"):
        served(engine.execute("bridge", command, CONFIG, netns))
    assert adding.poll() is None
    engine.path("/run/go").touch()
    result, _ = adding.communicate(timeout=60)

    assert adding.returncode == 0, result
    assert json.loads(result)["ips"][0]["address"].startswith("10.9.0.")
    eventually(lambda: main_pid(engine) != supervisor, "the engine has ended")
    journal = engine.journal(SERVICE)
    assert "engine: ended" in journal
    assert "Deactivated successfully" in journal
    assert "Killing process" not in journal
    if SOCKET in units:
        assert engine.property(SERVICE, "ActiveState") == "inactive"
    served(engine.execute("bridge", "DEL", SLOW, "/run/netns/slow", containerid="slow"))
    assert engine.traces("br0") == {}


def test_the_supervisor_is_killed(engine: SystemdNode) -> None:
    """Calls at work fail in a way that can be retried; later ones are served as before."""
    adding = slow_add(engine, engine.container("slow"))

    kill_the_supervisor(engine)
    refusal, _ = adding.communicate(timeout=60)
    netns = engine.container()
    served(engine.execute("bridge", "ADD", CONFIG, netns))

    assert (adding.returncode, json.loads(refusal)["code"]) == (1, 11)
    wait_for_engine(engine, times=2)
    assert engine.property(SERVICE, "NRestarts") == "1"
    served(engine.execute("bridge", "DEL", CONFIG, netns))
    served(engine.execute("bridge", "DEL", SLOW, "/run/netns/slow", containerid="slow"))
    served_by_the_engine(engine, netns)
    assert engine.traces("br0") == {}


def test_an_engine_that_keeps_dying(engine: SystemdNode) -> None:
    """systemd gives up on it and its socket, so nobody waits there; a restart brings them back."""

    def has_given_up() -> bool:
        kill_the_supervisor(engine)
        return engine.property(SERVICE, "ActiveState") == "failed"

    eventually(has_given_up, "systemd gives up on the engine")
    netns = engine.container()

    assert engine.property(SOCKET, "Result") == "service-start-limit-hit"
    for command in ("ADD", "DEL"):
        served(engine.execute("bridge", command, CONFIG, netns))
    ready = engine.journal(SERVICE).count(READY)
    engine.command("systemctl", "reset-failed", SERVICE)
    engine.command("systemctl", "restart", SERVICE)
    wait_for_engine(engine, ready + 1)
    served_by_the_engine(engine, netns)
    assert engine.traces("br0") == {}


@pytest.mark.full_kernel
@pytest.mark.emulated_machine  # systemd
def test_a_delegate_that_takes_all_memory(engine: SystemdNode) -> None:
    """The kernel kills it, and that ADD fails, with nothing left; the engine goes on."""
    engine.command("systemctl", "set-property", "--runtime", SERVICE, "MemoryMax=300M")
    put_delegate(engine, GREEDY_PLUGIN)
    netns, supervisor = engine.container(), main_pid(engine)

    done = engine.execute("bridge", "ADD", SLOW, netns)

    assert done.returncode == 1
    assert "slow' failed with signal 9" in json.loads(done.stdout)["msg"]
    assert engine.traces("br0") == {}
    served_by_the_engine(engine, netns)
    assert main_pid(engine) == supervisor
    assert "killed by the OOM killer" in engine.journal(SERVICE)


def test_dhcp_daemon(host: SystemdNode) -> None:
    """The daemon of the plugin dhcp starts with its socket, and anew when it dies."""
    units = ("pycni-dhcp.socket", "pycni-dhcp.service")
    for unit in units:
        text = (ROOT / "deploy" / unit).read_text()
        host.path(f"/etc/systemd/system/{unit}").write_text(text)
    host.command("systemctl", "daemon-reload")
    host.command("systemctl", "enable", "--now", *units)
    config = {"cniVersion": "1.1.0", "name": "net", "type": "dhcp", "ipam": {"type": "dhcp"}}

    def answers() -> bool:
        return host.execute("dhcp", "STATUS", config).returncode == 0

    eventually(answers, "the daemon answers")
    host.command("systemctl", "kill", "--signal=KILL", units[1])
    eventually(answers, "the daemon answers again")
    assert host.command("systemctl", "show", "-P", "NRestarts", units[1]) == "1\n"
    assert host.journal(units[1]).count("serves at '/run/cni/dhcp.sock'") == 2


# --- by `make install` ---

# A runtime, as systemd runs it: it calls a plugin as it starts.
RUNTIME = """[Service]
Type=exec
KillMode=control-group
Environment=CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=lo
Environment=CNI_NETNS=/run/netns/c1 CNI_PATH=/opt/cni/bin
StandardInput=file:/run/loopback.json
ExecStart=/bin/sh -c '/opt/cni/bin/loopback && touch /run/called && exec sleep 300'
"""


def make(node: SystemdNode, word: str, build: Path = DIST, engine: str = "") -> str:
    """Install or uninstall on the node itself, and return what is said."""
    environ = {"DIST": str(build), "ENGINE": engine, "PYTHONDONTWRITEBYTECODE": "1"}
    environ["SHARE_DIR"] = "none"
    words = ("sh", "-c", 'cd "$1" && exec "$2" -S -m agent.install "$3"', "sh")
    done = node.run(*words, ROOT, sys.executable, word, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(node: SystemdNode) -> dict[str, str]:
    done = node.run(f"{BIN}/pycni", "engine", "--status")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


@pytest.mark.timeout(600)
def test_make_install(other_dist: Path) -> None:
    """It enables the units where systemd runs, restarts an upgraded engine, and removes them."""
    units = [Path("/etc/systemd/system") / name for name in (SERVICE, SOCKET)]
    with systemd_node() as node:
        told = make(node, "install")
        wait_for_engine(node)
        first, before = status(node), main_pid(node)
        make(node, "install", other_dist)
        wait_for_engine(node, times=2)
        second = status(node)
        make(node, "install", engine="none")
        third, kept = status(node), [node.path(str(unit)).exists() for unit in units]
        make(node, "install", engine="systemd")
        make(node, "uninstall")

        assert f"systemd runs the engine: {SERVICE}" in told
        assert (first["choice"], first["pid"]) == ("systemd", before)
        assert second["build"] != first["build"]
        assert second["pid"] != before
        assert (third, kept) == ({"choice": "none", "engine": "none serves"}, [False, False])
        assert [unit for unit in units if node.path(str(unit)).exists()] == []
        assert node.property(SERVICE, "ActiveState") == "inactive"
        assert list(node.path(BIN).iterdir()) == []


def test_another_choice_than_a_packages_units() -> None:
    """An installation without systemd's engine disables a package's units; the package has them."""
    place = Path("/usr/lib/systemd/system")
    with systemd_node() as node:
        for name in (SERVICE, SOCKET):
            node.command("cp", str(ROOT / "deploy" / name), str(place))
        make(node, "install", engine="none")
        node.command("systemctl", "enable", "--now", SOCKET, SERVICE)
        wait_for_engine(node)

        make(node, "install", engine="on-demand")

        assert node.property(SERVICE, "ActiveState") == "inactive"
        assert node.property(SOCKET, "UnitFileState") == "disabled"
        assert node.path(str(place / SERVICE)).exists()


def test_a_runtime_that_systemd_restarts() -> None:
    """The engine that its first call has left behind stays, as it is out of its control group."""
    with systemd_node() as node:
        make(node, "install", engine="on-demand")
        node.container()
        loopback = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
        node.path("/run/loopback.json").write_text(json.dumps(loopback))
        node.path("/etc/systemd/system/runtime.service").write_text(RUNTIME)
        node.command("systemctl", "daemon-reload")
        node.command("systemctl", "start", "runtime.service")
        eventually(node.path("/run/called").exists, "the runtime has called")
        eventually(lambda: "pid" in status(node), "the call has left an engine behind")
        before = status(node)
        runtime = node.property("runtime.service", "MainPID")

        node.command("systemctl", "restart", "runtime.service")

        assert node.property("runtime.service", "MainPID") != runtime
        assert "/systemd/pycni-engine" in before["groups"]
        assert "runtime.service" not in before["groups"]
        assert status(node)["pid"] == before["pid"]
        node.command("systemctl", "stop", "runtime.service")
        served_by_the_engine(node, "/run/netns/c1")
