"""The agent on a node: what it makes, in which order, what it brings back, what it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni_common.spec.names import VERSION
from plugins import TYPES
from tests.agent.host import BINS, LIST, OTHER, OWN4, RANGES, STATE, AgentHost, member
from tests.machine import DIST, ROOT, TOOLS, error_of
from tests.waits import wait_until

pytestmark = pytest.mark.timeout(300)
OWN = member("a", 1, *RANGES)


@pytest.fixture
def ready(host: AgentHost) -> AgentHost:
    """The same with an agent that is ready."""
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()
    return host


def test_a_node_becomes_ready(ready: AgentHost) -> None:
    """Plugins, engine, routes, masquerading, and then the list, by which a pod gets addresses."""
    assert {path.name for path in ready.path(BINS).iterdir()} == {*TYPES, "pycni", ".pycni"}
    assert ready.engine()
    routes = ready.node.command("ip", "route", "show", "10.244.2.0/24")
    assert "via 192.0.2.12" in routes
    assert "pycni-agent" in ready.node.command("nft", "list", "tables")
    assert ready.list()["cniVersion"] == "1.1.0"  # the runtime reads it
    assert ready.ipam()["ranges"] == [[{"subnet": one}] for one in RANGES]

    ready.node.container("c1")
    done = ready.call("ADD", "c1")

    assert done.returncode == 0, done.stdout
    assert {ip["address"] for ip in json.loads(done.stdout)["ips"]} == {
        "10.244.1.2/24",
        "fd00:10:244:1::2/64",
    }
    assert ready.metric('pycni_ipam_addresses{range="10.244.1.0/24",state="used"}') == 1.0
    order = [one["message"].split()[0] for one in ready.log()]
    assert order.index("build") < order.index("wrote")
    assert order.index("starting") < order.index("wrote")
    assert order.index("masquerading") < order.index("wrote")
    assert [order.count(one) for one in ("build", "starting")] == [1, 1]


def test_the_list_follows_the_uplink(ready: AgentHost) -> None:
    """A smaller MTU of the uplink is in the list for the next pod, less what a tunnel adds."""
    before = ready.list()["plugins"][0]["mtu"]

    ready.node.command("ip", "link", "set", "uplink", "mtu", "1440")

    wait_until(lambda: ready.list()["plugins"][0]["mtu"] == before - 60, "the list does not follow")
    ready.node.container("c1")
    done = ready.call("ADD", "c1")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["interfaces"][1]["mtu"] == before - 60


def test_nothing_without_a_range(host: AgentHost) -> None:
    """A node without a podCIDR gets no list, and /readyz says what it waits for."""
    host.remember(member("a", 1), OTHER)
    host.start()

    wait_until(lambda: "no podCIDR" in host.get("/readyz")[1], "nothing is said of podCIDRs")

    assert host.get("/readyz")[0] == 503
    assert host.get("/healthz")[0] == 200
    assert not host.path(LIST).exists()


def test_without_any_state_it_waits(host: AgentHost) -> None:
    """Without a server and without a state there is no cluster: plugins come, the list does not."""
    host.start()

    wait_until(lambda: "never been reached" in host.get("/readyz")[1], "nothing is said of it")
    wait_until(host.engine, "the engine does not wait for the API server")

    assert not host.path(LIST).exists()


def test_stop_is_not_uninstall(ready: AgentHost) -> None:
    """SIGTERM ends the agent and changes nothing: pods start and end without it."""
    text, engine = ready.path(LIST).read_bytes(), ready.engine()
    listings = (("ip", "route"), ("nft", "-s", "list", "ruleset"))
    before = [ready.node.command(*one) for one in listings]
    ready.node.container("c1")

    assert ready.stop() == 0

    assert ready.path(LIST).read_bytes() == text
    assert ready.engine() == engine
    assert [ready.node.command(*one) for one in listings] == before
    assert ready.call("ADD", "c1").returncode == 0
    assert ready.call("DEL", "c1").returncode == 0


def test_a_restart_writes_nothing(ready: AgentHost) -> None:
    """The same list once more would have containerd reload; plugins and engine stay, too."""
    files = [ready.path(LIST), ready.path(f"{BINS}/ptp"), ready.path(f"{STATE}/cluster.json")]
    before, engine = [file.stat() for file in files], ready.engine()
    ready.kill()

    ready.start()
    ready.wait_ready()

    assert [file.stat().st_ino for file in files] == [one.st_ino for one in before]
    assert [file.stat().st_mtime_ns for file in files] == [one.st_mtime_ns for one in before]
    assert ready.engine() == engine


def test_what_others_take_away_comes_back(ready: AgentHost) -> None:
    """The list, a plugin, a replaced plugin, the engine: each is repaired and counted."""
    repairs = 'pycni_drift_repairs_total{object="%s"}'
    text = ready.path(LIST).read_bytes()
    ready.path(LIST).unlink()
    wait_until(ready.path(LIST).exists, "the list does not come back")
    assert ready.path(LIST).read_bytes() == text

    launcher = ready.path(f"{BINS}/bridge").read_bytes()
    ready.path(f"{BINS}/bridge").unlink()
    wait_until(ready.path(f"{BINS}/bridge").exists, "the plugin does not come back")
    wait_until(lambda: ready.metric(repairs % "install") == 1, "the repair is not counted")
    ready.path(f"{BINS}/new").write_text("theirs")
    ready.path(f"{BINS}/new").rename(ready.path(f"{BINS}/bridge"))
    wait_until(
        lambda: ready.path(f"{BINS}/bridge").read_bytes() == launcher, "the plugin is not ours"
    )
    assert ready.path(f"{BINS}/.pycni/replaced/bridge").read_text() == "theirs"

    engine = ready.engine()
    ready.node.command("kill", "-KILL", str(engine))
    wait_until(lambda: ready.engine() not in (0, engine), "the engine does not come back")
    ready.wait_ready()
    assert ready.metric(repairs % "configuration") == 1
    assert ready.metric(repairs % "engine") == 1


def test_overlap(host: AgentHost) -> None:
    """While two nodes have one range new pods are refused with the reason; old ones can end."""
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()
    for name in ("c1", "c2"):
        host.node.container(name)
    assert host.call("ADD", "c1").returncode == 0
    host.stop()

    host.remember(OWN, OTHER, member("c", 3, "10.244.0.0/16"))
    host.start()
    wait_until(lambda: "closed" in host.ipam(), "the range is not closed")
    refused, status, deleted = (
        host.call(*one) for one in (("ADD", "c2"), ("STATUS", "c2"), ("DEL", "c1"))
    )

    error = error_of(refused.stdout)
    assert error["code"] == 11
    assert "podCIDR 10.244.1.0/24 of node a overlaps 10.244.0.0/16 of node c" in error["msg"]
    assert status.returncode == 0, "a node that is not ready loses its pods"
    assert deleted.returncode == 0, deleted.stdout
    wait_until(lambda: host.metric("pycni_pod_cidr_overlaps") == 1, "the overlap is not counted")
    assert any("new pods are refused" in one["message"] for one in host.log())

    host.stop()
    host.remember(OWN, OTHER)
    host.start()
    wait_until(lambda: "closed" not in host.ipam(), "the range stays closed")
    assert host.call("ADD", "c2").returncode == 0


def test_pods_of_another_plugin(host: AgentHost) -> None:
    """Pods on a bridge beside new ones on links of their own: that is said until they are gone."""
    host.remember(OWN, OTHER)
    host.start("--interface", "bridge")
    host.wait_ready()
    for name in ("c1", "c2"):
        host.node.container(name)
    assert host.call("ADD", "c1").returncode == 0
    host.stop()

    host.start("--interface", "ptp")
    host.wait_ready()
    words = "pods of this node were attached by the plugin bridge, and do not reach those of ptp"
    wait_until(
        lambda: any(one["message"].startswith(words) for one in host.log()), "nothing is said of it"
    )
    assert host.call("ADD", "c2").returncode == 0
    assert host.call("DEL", "c1").returncode == 0
    host.node.delete_container("c1")
    host.path(LIST).unlink()  # for a round

    wait_until(
        lambda: any(
            one["message"] == "no longer" and one["problem"].startswith(words) for one in host.log()
        ),
        "it is said for ever",
    )


def test_another_list_comes_first(host: AgentHost) -> None:
    """A list of others whose name comes first stays, and is named."""
    host.path("/etc/cni/net.d").mkdir(parents=True, exist_ok=True)
    other = host.path("/etc/cni/net.d/05-other.conflist")
    other.write_text("{}")
    host.remember(OWN, OTHER)
    host.start()
    host.wait_ready()

    wait_until(lambda: host.metric('pycni_agent_problems{part="conflict"}') == 1, "no conflict")
    assert other.read_text() == "{}"
    other.unlink()
    wait_until(lambda: host.metric('pycni_agent_problems{part="conflict"}') == 0, "still there")


def test_read_only_host(host: AgentHost) -> None:
    """With --install false nothing is installed, and without plugins there is no list."""
    host.remember(OWN, OTHER)
    host.start("--install", "false", "--engine", "false")

    wait_until(lambda: "has no plugins of ours" in host.get("/readyz")[1], "nothing is said of it")

    assert not host.path(BINS).exists()
    assert not host.path(LIST).exists()


def test_read_only_host_with_plugins(host: AgentHost) -> None:
    """With plugins in the node's image the agent writes the list, and leaves their directory."""
    found = {"CNI_BIN_DIR": BINS, "DIST": str(DIST), "ENGINE": "none", "SHARE_DIR": "none"}
    done = host.node.run(
        *(sys.executable, "-m", "agent.install", "install"), env={**found, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    host.node.command("mount", "--bind", "-o", "ro", BINS, BINS)
    before = {file: file.lstat().st_ctime_ns for file in host.path(BINS).rglob("*")}
    host.remember(OWN, OTHER)

    host.start("--install", "false")
    host.wait_ready()
    host.node.container("c1")
    done = host.call("ADD", "c1")

    assert done.returncode == 0, done.stdout
    assert host.engine()
    assert host.metric('pycni_agent_problems{part="install"}') == 0
    assert {file: file.lstat().st_ctime_ns for file in host.path(BINS).rglob("*")} == before


@pytest.mark.parametrize("firewall", [True, False])
def test_the_whole_list(host: AgentHost, firewall: bool) -> None:
    """Each plugin of the list serves a pod, and DEL leaves nothing; firewall lets it through."""
    node, outside = host.node, host.node.container("outside")
    node.command("ip", "link", "set", "beyond", "netns", "outside")
    node.command("ip", "address", "add", "192.0.2.2/24", "dev", "beyond", netns=outside)
    node.command("ip", "link", "set", "beyond", "up", netns=outside)
    node.command("iptables", "-P", "FORWARD", "DROP")
    host.remember(OWN, OTHER)
    host.start("--firewall", str(firewall).lower())
    host.wait_ready()
    types = [one["type"] for one in host.list()["plugins"]]
    netns, before = node.container("c1"), node.traces()
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    rates = {"ingressRate": 10**9, "ingressBurst": 10**8, "egressRate": 10**9, "egressBurst": 10**8}
    environ = {
        "CNI_PATH": BINS,
        "CAP_ARGS": json.dumps({"portMappings": [port], "bandwidth": rates}),
    }

    node.ok("add", "pycni", netns, **environ)
    reaches = node.reaches if firewall else node.is_cut_off
    reached, during = reaches(netns, "192.0.2.2"), node.traces()
    node.ok("del", "pycni", netns, **environ)

    assert types == ["ptp", "portmap", "bandwidth", *(["firewall"] if firewall else [])]
    assert reached
    added = "\n".join({*during["firewall"]} - {*before["firewall"]})
    assert ("10.244.1.2" in added, "8080" in added) == (True, True)
    assert node.traces() == before


def test_frozen(frozen: Path) -> None:
    """The program of `make agent` does the same without any Python on the node."""
    host = AgentHost(frozen)
    try:
        host.remember(OWN, OTHER)
        host.start()
        host.wait_ready()
        engine = host.engine()

        assert host.stop() == 0

        assert engine == host.engine() != 0
        assert host.uninstall().returncode == 0
        assert not host.path(LIST).exists()
    finally:
        host.close()


def test_the_bundle_says_where_the_agent_is() -> None:
    """`pycni agent` of the plugins' bundle does not have it; from the sources it runs."""
    bundled, sources = (
        subprocess.run(
            [program, "agent", "--version"], capture_output=True, text=True, timeout=60, check=False
        )
        for program in (DIST / "pycni", TOOLS / "cni/pycni")
    )

    assert bundled.returncode == 1
    assert "dist/agent/pycni-agent" in bundled.stderr
    assert (sources.returncode, sources.stdout.strip()) == (0, VERSION), sources.stderr


class TestUninstall:
    """`pycni agent uninstall`."""

    def test_refuses_while_pods_use_it(self, ready: AgentHost) -> None:
        """With an attachment all stays; --force goes on."""
        ready.node.container("c1")
        assert ready.call("ADD", "c1").returncode == 0
        ready.stop()

        done = ready.uninstall()
        forced = ready.uninstall("--force")

        assert (done.returncode, forced.returncode) == (4, 0)
        assert "drain the node first" in done.stderr
        assert "c1" in forced.stderr

    def test_refuses_over_a_pod_that_comes_meanwhile(self, ready: AgentHost) -> None:
        """A call that the runtime began before the list went: the list comes back."""
        ready.node.container("c1")
        found = ready.list()
        path = ready.path(LIST)
        text = path.read_text()
        ready.stop()
        with ThreadPoolExecutor() as threads:
            pending = threads.submit(ready.uninstall)
            wait_until(lambda: not path.exists(), "the list does not go")

            assert ready.call("ADD", "c1", found).returncode == 0

            assert pending.result().returncode == 4
        assert path.read_text() == text
        assert ready.path(f"{BINS}/ptp").exists()

    def test_killed_before_it_has_looked_again(self, ready: AgentHost) -> None:
        """The next try puts the list back and refuses, as a pod has come meanwhile."""
        ready.node.container("c1")
        found, text = ready.list(), ready.path(LIST).read_text()
        ready.stop()
        with subprocess.Popen(ready.words("uninstall"), stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: not ready.path(LIST).exists(), "the list does not go")
            for pid in ready.children_of(process.pid):
                os.kill(pid, signal.SIGKILL)
        assert not ready.path(LIST).exists()
        assert process.returncode != 0, "it has ended before it was killed"
        assert ready.call("ADD", "c1", found).returncode == 0

        assert ready.uninstall().returncode == 4

        assert ready.path(LIST).read_text() == text
        assert ready.call("DEL", "c1").returncode == 0
        assert ready.uninstall().returncode == 0
        assert list(ready.path("/etc/cni/net.d").iterdir()) == []

    def test_refuses_over_a_damaged_record(self, ready: AgentHost) -> None:
        """A record that cannot be read may be a living pod's, and so may those behind one."""
        record = ready.path("/run/pycni/attachments/ptp-damaged")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.parent.chmod(0o700)
        ready.stop()

        told = []
        for text in ("", "\0\n", '{"format": 99}\n'):
            record.write_text(text)
            told.append(ready.uninstall())

        assert [one.returncode for one in told] == [4, 4, 1]
        assert all("ptp-damaged" in one.stderr for one in told)
        assert ready.path(f"{BINS}/ptp").exists()

    def test_removes_what_is_ours(self, ready: AgentHost) -> None:
        """After it the node is as before, with what others have beside it."""
        ready.path("/etc/cni/net.d/20-other.conflist").write_text("{}")
        ready.path(f"{BINS}/other").write_text("other")
        ready.node.command("nft", "add", "table", "inet", "theirs")
        ready.node.command("ip", "route", "add", "203.0.113.0/24", "via", OWN4)
        ready.node.container("c1")
        assert ready.call("ADD", "c1").returncode == 0
        assert ready.call("DEL", "c1").returncode == 0
        engine = ready.engine()
        assert ready.stop() == 0

        done = ready.uninstall()

        assert done.returncode == 0, done.stderr
        assert [one.name for one in ready.path(BINS).iterdir()] == ["other"]
        assert [one.name for one in ready.path("/etc/cni/net.d").iterdir()] == ["20-other.conflist"]
        assert not ready.path(STATE).exists()
        assert engine
        assert not ready.engine()
        assert ready.node.command("nft", "list", "tables").split() == ["table", "inet", "theirs"]
        assert "203.0.113.0/24" in ready.node.command("ip", "route")
        assert "proto 112" not in ready.node.command("ip", "route")
        assert "pycni" not in ready.node.command("ip", "-br", "link")

    def test_removes_its_bridge(self, host: AgentHost) -> None:
        """Without pods the bridge goes, and with it the route to the range; with ports it stays."""
        host.remember(OWN, OTHER)
        host.start("--interface", "bridge")
        host.wait_ready()
        host.node.container("c1")
        assert host.call("ADD", "c1").returncode == 0
        assert host.ipam_directory().exists()
        assert host.stop() == 0

        forced = host.uninstall("--force")
        assert forced.returncode == 0, forced.stderr
        assert "'pycni0' stays, as it has ports (1): veth" in forced.stderr
        assert "addresses have leases, which stay" in forced.stderr
        assert host.node.link("", "pycni0")
        host.remember(OWN, OTHER)
        host.start("--interface", "bridge")
        host.wait_ready()
        assert host.call("DEL", "c1").returncode == 0
        assert host.stop() == 0

        done = host.uninstall()

        assert done.returncode == 0, done.stderr
        assert not host.node.link("", "pycni0")
        assert not host.ipam_directory().exists()
        assert "10.244.1.0/24" not in host.node.command("ip", "route")

    def test_twice(self, ready: AgentHost) -> None:
        """There is nothing left to do for a second one."""
        ready.stop()

        assert [ready.uninstall().returncode for _ in range(2)] == [0, 0]
