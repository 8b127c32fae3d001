"""Calls as container runtimes make them, from calls/*.json, with real namespaces.

Each file is one container's life: steps of calls that are made at the same time. In it, BIN is
the directory of the plugins, NETNS the container's namespace, `the result of ADD` what the last
ADD printed; <mac> and <veth> stand for what is random.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compare import mask
from tests.e2e.node import Done, Node, pid_path
from tests.machine import Json

pytestmark = pytest.mark.both_edges
STORIES = sorted((Path(__file__).parent / "calls").glob("*.json"))


class Story:
    """One container's life, in progress."""

    def __init__(self, node: Node, path: Path) -> None:
        self.node = node
        self.told: Json = json.loads(path.read_text())
        self.result: Any = None
        if self.told["container"] == "process":
            self.netns = pid_path(node.process())
        else:
            # Runtimes name it through the link.
            self.netns = node.container(self.told["container"]).replace("/run/", "/var/run/", 1)

    def play(self, step: list[Json]) -> None:
        """Make the calls of a step at the same time, and compare what each printed."""
        if any("before" in call for call in step):
            self.node.command("ip", "netns", "delete", self.told["container"])
        with ThreadPoolExecutor(len(step)) as pool:
            replies = list(pool.map(self.call, step))
        for call, reply in zip(step, replies, strict=True):
            assert reply.returncode == 0, f"{call['what']}: {reply.stdout}{reply.stderr}"
            printed = json.loads(mask(reply.stdout) or '""')
            told = self.fill(call["stdout"])
            assert masked(printed) == masked(told), call["what"]
            if call["plugin"] == "bridge" and call["environ"]["CNI_COMMAND"] == "ADD":
                self.result = json.loads(reply.stdout)

    def call(self, call: Json) -> Done:
        """Run a plugin with just the variables that the runtime sets."""
        variables = [f"{key}={value}" for key, value in self.fill(call["environ"]).items()]
        program = self.node.bin_dir / call["plugin"]
        stdin = json.dumps(self.fill(call["stdin"]))
        return self.node.run("env", "-i", *variables, program, stdin=stdin)

    def fill(self, value: Any) -> Any:
        """Return `value` with what stands for something else replaced."""
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if value == "the result of ADD":
            return self.result
        if isinstance(value, str):
            return value.replace("BIN", str(self.node.bin_dir)).replace("NETNS", self.netns)
        return value


def masked(value: Any) -> Any:
    """Return `value` with every MAC masked, a chosen one too: its place is another test's."""
    return json.loads(mask(json.dumps(value)))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(node: Node, path: Path) -> None:
    """Every call succeeds, prints what the runtime expects, and after the last nothing is left."""
    story = Story(node, path)

    for step in story.told["steps"]:
        story.play(step)

    assert node.traces(story.told["bridge"]) == {}


def test_chosen_mac(node: Node) -> None:
    """podman's MAC in CNI_ARGS is the interface's, and so is its address."""
    story = Story(node, next(path for path in STORIES if path.stem == "podman"))

    for step in story.told["steps"][:2]:
        story.play(step)

    link = node.link(story.netns, "eth0")
    assert link is not None
    assert link["address"] == "02:00:00:00:00:77"
    assert node.addresses(story.netns, "eth0")[0] == "10.80.0.77/24"


def test_pods_at_once(node: Node) -> None:
    """Ten pods are set up and torn down at the same time, loopback and network of each at once."""
    path = next(path for path in STORIES if path.stem == "containerd")
    story = Story(node, path)
    add, delete = story.told["steps"][:2]
    pods = [(f"{number:064x}", node.container(f"pod{number}")) for number in range(10)]

    def calls(step: list[Json], containerid: str, netns: str) -> list[Json]:
        own = {"CNI_CONTAINERID": containerid, "CNI_NETNS": netns}
        return [{**call, "environ": {**call["environ"], **own}} for call in step]

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(story.call, [c for pod in pods for c in calls(add, *pod)]))
        results = [json.loads(reply.stdout) for reply in added]
        deleted = list(pool.map(story.call, [c for pod in pods for c in calls(delete, *pod)]))

    assert {reply.returncode for reply in added + deleted} == {0}
    networks = [result for result in results if result["interfaces"][0]["name"] != "lo"]
    assert len({ip["address"] for result in networks for ip in result["ips"]}) == 2 * len(pods)
    assert node.traces("cbr0") == {}


def test_descriptors_of_the_runtime(node: Node) -> None:
    """A plugin works when the runtime has closed stderr, and does not confuse its own files."""
    path = next(path for path in STORIES if path.stem == "cnitool")
    story = Story(node, path)
    call = story.told["steps"][1][0]
    variables = [f"{key}={value}" for key, value in story.fill(call["environ"]).items()]

    reply = node.run(
        "env",
        "-i",
        *variables,
        "/bin/sh",
        "-c",
        'exec "$0" 2>&-',
        os.fspath(node.bin_dir / "bridge"),
        stdin=json.dumps(call["stdin"]),
    )

    assert reply.returncode == 0
    assert json.loads(reply.stdout)["ips"][0]["address"] == "10.79.0.2/24"
