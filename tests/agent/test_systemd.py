"""A node with a package's units, on which systemd runs the engine, and an agent beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_common.spec.names import VERSION
from tests.agent.host import BINS, OTHER, RANGES, AgentHost, member
from tests.e2e.systemd import SystemdNode, systemd_node
from tests.e2e.test_unit import SERVICE, SOCKET, main_pid, make, served_by_the_engine, status
from tests.e2e.upgrades import Clients
from tests.machine import DIST
from tests.other_build import OTHER_VERSION
from tests.waits import wait_until

pytestmark = pytest.mark.timeout(600)
OWN = member("a", 1, *RANGES)
SOCK = "/run/pycni/engine.sock"


@pytest.fixture
def systemd() -> Iterator[SystemdNode]:
    """A node whose process 1 is systemd, without plugins yet."""
    with systemd_node() as node:
        yield node


@pytest.fixture
def host(systemd: SystemdNode) -> Iterator[AgentHost]:
    """The same with what an agent needs; none was started."""
    made = AgentHost(node=systemd)
    made.remember(OWN, OTHER)
    yield made
    made.close()


def build_of(dist: Path) -> str:
    """Return the build in a bin directory."""
    (found,) = (path.name for path in (dist / ".pycni").iterdir())
    return found


def await_engine(node: SystemdNode, build: str) -> None:
    """Wait until an engine of this build serves, and systemd's it is."""
    wait_until(
        lambda: (found := status(node)).get("build") == build and found["pid"] == main_pid(node),
        lambda: f"no engine of systemd's of {build}: {status(node)}, {node.journal(SERVICE)}",
    )


def problems(host: AgentHost) -> list[str]:
    """Return what the agent has said of engines that was wrong."""
    return [one["message"] for one in host.log() if one.get("part") == "engine"]


def test_one_engine(systemd: SystemdNode, host: AgentHost) -> None:
    """The agent finds systemd's engine of its own build, starts none, and leaves it behind."""
    make(systemd, "install", engine="systemd")
    await_engine(systemd, build_of(DIST))
    pid, sock = main_pid(systemd), systemd.path(SOCK).stat().st_ino

    host.start()
    host.wait_ready()
    host.node.container("c1")
    added, deleted = (host.call(verb, "c1") for verb in ("ADD", "DEL"))
    host.stop()
    done = host.uninstall()

    assert (added.returncode, deleted.returncode) == (0, 0), added.stdout + deleted.stdout
    assert done.returncode == 0, done.stderr
    assert "keeps build" in done.stderr
    assert (main_pid(systemd), systemd.path(SOCK).stat().st_ino) == (pid, sock)
    assert not systemd.path("/run/pycni/engine.lock").exists()  # no engine of the agent's was there
    assert problems(host) == []
    served_by_the_engine(systemd, "/run/netns/c1")


def test_a_socket_alone(systemd: SystemdNode, host: AgentHost) -> None:
    """systemd has the socket, and no engine yet: the agent's question has it start one."""
    make(systemd, "install", engine="systemd")
    systemd.command("systemctl", "stop", SERVICE)
    assert systemd.property(SOCKET, "ActiveState") == "active"

    host.start()
    host.wait_ready()

    await_engine(systemd, build_of(DIST))
    assert problems(host) == []
    assert not systemd.path("/run/pycni/engine.lock").exists()


def test_the_agent_has_another_build(
    systemd: SystemdNode, host: AgentHost, other_dist: Path
) -> None:
    """The agent's build is everybody's while the agent is there, and the package's after it.

    systemd's engine follows, also after a restart by hand and an upgrade of the package. No call
    fails.
    """
    make(systemd, "install", other_dist, engine="systemd")
    await_engine(systemd, build_of(other_dist))
    with Clients(systemd, Path(BINS)) as clients:
        assert clients.wait_for_more() == {OTHER_VERSION}

        host.start()
        host.wait_ready()
        await_engine(systemd, build_of(DIST))
        assert clients.wait_for_more() == {VERSION}
        systemd.command("systemctl", "restart", SERVICE)
        await_engine(systemd, build_of(DIST))
        make(systemd, "install", other_dist)  # as an upgrade of the package does
        wait_until(
            lambda: f"build    {build_of(DIST)}" in systemd.command(f"{BINS}/pycni", "version"),
            "the agent's plugins do not come back",
        )
        await_engine(systemd, build_of(DIST))
        assert clients.wait_for_more() == {VERSION}

        host.stop()
        done = host.uninstall("--force")  # the clients are of another network
        await_engine(systemd, build_of(other_dist))
        assert clients.wait_for_more() == {OTHER_VERSION}

    assert done.returncode == 0, done.stderr
    assert clients.failures == []
    assert problems(host) == []
    assert "Failed" not in systemd.journal(SERVICE)
    served_by_the_engine(systemd, "/run/netns/c0")


def test_the_package_comes_and_goes(
    systemd: SystemdNode, host: AgentHost, other_dist: Path
) -> None:
    """systemd takes the agent's socket, whose engine ends; the agent has one again after it."""
    host.start()
    host.wait_ready()
    first = host.engine()
    assert first
    with Clients(systemd, Path(BINS)) as clients:
        make(systemd, "install", other_dist, engine="systemd")
        await_engine(systemd, build_of(DIST))
        wait_until(lambda: not host.engine(), "the agent's engine does not end")
        assert not systemd.path(f"/proc/{first}").exists()
        host.wait_ready()
        clients.wait_for_more()

        make(systemd, "uninstall")
        wait_until(host.engine, "the agent starts no engine")
        host.wait_ready()
        assert status(systemd)["build"] == build_of(DIST)
        assert clients.wait_for_more() == {VERSION}

    assert clients.failures == []
    assert systemd.property(SERVICE, "ActiveState") == "inactive"
    assert not systemd.path(f"/etc/systemd/system/{SOCKET}").exists()


def test_systemd_has_given_up(systemd: SystemdNode, host: AgentHost) -> None:
    """Where systemd's socket has failed the agent's engine serves, until systemd's is mended."""
    make(systemd, "install", engine="systemd")
    await_engine(systemd, build_of(DIST))

    def has_given_up() -> bool:
        systemd.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", SERVICE)
        return systemd.property(SOCKET, "ActiveState") == "failed"

    wait_until(has_given_up, "systemd does not give up")

    host.start()
    host.wait_ready()
    assert host.engine()
    systemd.command("systemctl", "reset-failed", SERVICE, SOCKET)
    systemd.command("systemctl", "restart", SERVICE)

    await_engine(systemd, build_of(DIST))
    wait_until(lambda: not host.engine(), "two engines serve")
    host.wait_ready()


def test_a_unit_of_another_directory(
    systemd: SystemdNode, host: AgentHost, other_dist: Path
) -> None:
    """An engine that the agent's plugins cannot replace stays as it is, and the agent says so."""
    make(systemd, "install", other_dist, engine="systemd")
    systemd.command("mv", BINS, "/opt/elsewhere")
    unit = systemd.path(f"/etc/systemd/system/{SERVICE}")
    unit.write_text(unit.read_text().replace(BINS, "/opt/elsewhere"))
    systemd.command("systemctl", "daemon-reload")
    systemd.command("systemctl", "restart", SERVICE)
    pid = main_pid(systemd)

    host.start()
    host.wait_ready()
    host.node.container("c1")

    assert host.call("ADD", "c1").returncode == 0
    wait_until(lambda: problems(host), "nothing is said of the other engine")
    assert f"systemd runs an engine of build {build_of(other_dist)}" in problems(host)[0]
    assert main_pid(systemd) == pid
