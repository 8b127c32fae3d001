"""`pycni metrics` on a pretend host, read by Prometheus' own client library."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import Metrics
from commands import DONE, FAILED
from plugins.dhcp.conf import DEFAULT_SOCKET
from tests.kernel.test_commands import age, asked, config, dead, pycni
from tests.waits import wait_until

if TYPE_CHECKING:
    from tests.machine import Machine

pytestmark = pytest.mark.without_engine("the commands know nothing of it")


def page(machine: Machine) -> dict[str, dict[str, float]]:
    """Return the samples by name, and by their labels in one text."""
    done = pycni(machine, "metrics")
    assert done.returncode == DONE, done.stderr
    return read(done.stdout)


def read(text: str) -> dict[str, dict[str, float]]:
    """Return the samples of a page."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            assert labels not in found.setdefault(one.name, {}), "a sample is there twice"
            found[one.name][labels] = one.value
    return found


def test_the_agent_shows_the_same_of_calls(machine: Machine) -> None:
    """/metrics of the agent has what this command counts of calls, and calls at work."""
    machine.ok("bridge", "ADD", config(machine), machine.container())
    families = ("requests_total", "request_duration_seconds_count", "inflight")
    names = [f"pycni_{one}" for one in families]

    def shown() -> dict[str, dict[str, float]]:
        metrics = Metrics(Path(machine.data_dir, machine.name), machine.state_dir)
        return read(metrics.text().decode())

    wait_until(lambda: "pycni_requests_total" in shown(), "no call is counted")
    found, theirs = page(machine), shown()
    for name in names:
        assert theirs[name] == found[name]
    assert theirs["pycni_inflight"] == {"": 0}
    assert list(theirs["pycni_requests_total"].values()) == [1]


def test_the_node(machine: Machine) -> None:
    """Attachments, addresses, leftovers, and what is missing; no name of a pod or container."""
    conf = config(machine)
    (subnet,) = (one["subnet"] for one in conf["ipam"]["ranges"][0])
    netns = machine.container()
    machine.ok("bridge", "ADD", conf, netns, containerid="box-one")
    dead(machine, conf, "dead")

    found = page(machine)

    assert found["pycni_attachments"] == {
        f"network={machine.name},state=alive": 1,
        f"network={machine.name},state=gone": 1,
    }
    assert found["pycni_ipam_addresses"] == {
        f"range={subnet},state=used": 2,
        f"range={subnet},state=free": 251,
    }
    assert found["pycni_ipam_leak_candidates"] == {"": 1}
    assert found["pycni_leftovers"]["kind=lease"] == 1
    assert found["pycni_missing_objects"] == {"": 0}
    assert found["pycni_engine_up"] == {"": 0}
    assert "pycni_build_info" in found
    machine.do(machine.host, "nft delete table inet pycni")
    assert page(machine)["pycni_missing_objects"][""] > 0
    text = pycni(machine, "metrics").stdout
    assert not any(word in text for word in ("box-one", "dead", netns))


def test_calls(machine: Machine) -> None:
    """Calls are counted by verb, plugin and code, with their durations and steps."""
    conf, netns = config(machine), machine.container()
    machine.ok("bridge", "ADD", conf, netns)
    machine.refused("bridge", "ADD", {**conf, "vlan": 5000}, netns, containerid="c2")
    machine.ok("bridge", "DEL", conf, netns)

    def counted() -> dict[str, float]:
        return page(machine).get("pycni_requests_total", {})

    wait_until(lambda: len(counted()) == 3, "not all calls are counted")
    assert counted() == {
        "code=0,plugin=bridge,verb=ADD": 1,
        "code=7,plugin=bridge,verb=ADD": 1,
        "code=0,plugin=bridge,verb=DEL": 1,
    }
    found = page(machine)
    assert found["pycni_request_duration_seconds_count"]["plugin=bridge,verb=ADD"] == 2
    assert found["pycni_step_duration_seconds_sum"]["step=netlink"] > 0


def test_addresses(machine: Machine) -> None:
    """An ADD that finds no address is counted, and a lease that reclaim has released."""
    conf = config(machine)
    (one,) = conf["ipam"]["ranges"][0]
    first = f"{one['subnet'].rpartition('.')[0]}.9"
    one |= {"rangeStart": first, "rangeEnd": first}
    dead(machine, conf, "dead")
    machine.refused("bridge", "ADD", conf, machine.container(), containerid="c2")

    def counted() -> float:
        return page(machine)["pycni_ipam_exhausted_total"][""]

    wait_until(lambda: counted() == 1, "the refused ADD is not counted")
    assert counted() == 1
    none = dict.fromkeys(("reason=ADD", "reason=DEL", "reason=GC", "reason=reclaim"), 0)
    assert page(machine)["pycni_ipam_released_total"] == none
    for _ in range(2):
        age(machine)
        pycni(machine, "reclaim")
    assert page(machine)["pycni_ipam_released_total"] == {**none, "reason=reclaim": 1}


def test_released(machine: Machine) -> None:
    """Each lease counts once: by DEL, by GC, and by an ADD that takes back what it has done."""
    conf, netns = config(machine), machine.container()
    host_local = {**conf, "type": "host-local"}
    dead(machine, conf, "dead")
    for containerid in ("c1", "c2"):
        machine.ok("host-local", "ADD", host_local, netns, containerid=containerid)
    for _ in range(2):
        machine.ok("host-local", "DEL", host_local, netns, containerid="c1")
    machine.ok("bridge", "ADD", conf, netns, containerid="c4")
    machine.ok("bridge", "DEL", conf, netns, containerid="c4")
    lost = {**conf["ipam"], "routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]}
    machine.refused("bridge", "ADD", {**conf, "ipam": lost}, netns, containerid="c5")
    valid = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    age(machine)
    machine.ok("host-local", "GC", {**host_local, "cniVersion": "1.1.0", **valid})

    def counted() -> dict[str, float]:
        return page(machine)["pycni_ipam_released_total"]

    wait_until(lambda: counted()["reason=GC"] > 0, "what GC has released is not counted")
    assert counted() == {"reason=ADD": 1, "reason=DEL": 2, "reason=GC": 1, "reason=reclaim": 0}


def test_inflight(machine: Machine) -> None:
    """An attachment counts once, for as long as a call holds one of its records or several."""
    machine.ok("bridge", "ADD", config(machine), machine.container())
    paths = list(Path(machine.state_dir, "attachments").iterdir())

    assert page(machine)["pycni_inflight"] == {"": 0}
    with ExitStack() as stack:
        for path in paths:
            fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_EX)
        assert page(machine)["pycni_inflight"] == {"": 1}
    assert len(paths) == 2


def test_delete_queue(machine: Machine) -> None:
    """A DEL that waits for the daemon of dhcp, which is away, is counted until it is done."""
    queue = Path(f"{DEFAULT_SOCKET}.releases")
    queue.parent.mkdir(exist_ok=True)
    before = page(machine)["pycni_delete_queue_length"][""]
    conf = {"cniVersion": "1.1.0", "name": machine.name, "type": "macvlan"}

    machine.ok("dhcp", "DEL", {**conf, "ipam": {"type": "dhcp"}}, "")

    assert page(machine)["pycni_delete_queue_length"] == {"": before + 1}
    for path in queue.iterdir():
        path.unlink()
    assert page(machine)["pycni_delete_queue_length"] == {"": 0}


def test_textfile(machine: Machine, tmp_path: Path) -> None:
    """The file is whole at each moment, readable by all, and nothing else is left beside it."""
    machine.ok("bridge", "ADD", config(machine), machine.container())
    path = tmp_path / "pycni.prom"
    path.write_text("old")
    before = path.stat().st_ino

    done = pycni(machine, "metrics", "--textfile", str(path))

    assert (done.returncode, done.stdout) == (DONE, "")
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o644
    assert "pycni_ipam_addresses" in read(path.read_text())
    assert [one for one in os.listdir(tmp_path) if one.startswith(".")] == []
    refused = pycni(machine, "metrics", "--textfile", str(tmp_path / "no" / "where"))
    assert (refused.returncode, refused.stderr.count("\n")) == (FAILED, 1)


def test_json(machine: Machine) -> None:
    """The same for programs."""
    machine.ok("bridge", "ADD", config(machine), machine.container())

    found = {one["name"]: one for one in asked(machine, "metrics")["metrics"]}

    assert found["pycni_attachments"]["type"] == "gauge"
    (sample,) = found["pycni_attachments"]["samples"]
    assert (sample["labels"]["state"], sample["value"]) == ("alive", 1)
