"""The same calls to the Go reference plugins and to ours, on two equal nodes.

Replies, interfaces, addresses, routes, sysctls, files and firewall are compared after ADD, and
what is left after DEL. Whatever differs is named by its heading in docs/differences.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import compare
from tests.e2e.cases import CASES, EVERYWHERE, NEWEST_VERSION, SOMEWHERE, Case
from tests.e2e.node import Done, Node, node_with
from tests.machine import REFERENCE_BIN, ROOT, Json


class Pair:
    """Two equal nodes, each with a container."""

    def __init__(self, nodes: tuple[Node, Node]) -> None:
        self.nodes = nodes
        (self.netns,) = {node.container("c1") for node in nodes}

    def prepare(self, commands: str) -> None:
        """Run shell commands on both nodes, where the kernel itself detects no duplicates."""
        no_dad = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"
        for node in self.nodes:
            node.command("sh", "-ec", f"{no_dad}; {commands}")

    def call(self, case: Case, command: str, *previous: Json) -> list[Done]:
        """Run one command on both."""
        return [
            node.execute(
                case.plugin,
                command,
                {**case.config, **({"prevResult": previous[number]} if previous else {})},
                self.netns,
                args=case.args,
                path=f"{node.bin_dir}:{REFERENCE_BIN}",
                ifname=case.ifname,
            )
            for number, node in enumerate(self.nodes)
        ]

    def reply_differences(self, replies: list[Done]) -> list[str]:
        """Return what differs between two replies."""
        tables = [
            compare.table_of(reply, node) for node, reply in zip(self.nodes, replies, strict=True)
        ]
        return compare.differences(*tables)

    def state_differences(self) -> list[str]:
        """Return what differs between the two nodes now."""
        return compare.differences(*(compare.state_of(node, self.netns) for node in self.nodes))


@pytest.fixture
def pair(bin_dir: Path) -> Iterator[Pair]:
    """The reference's node, then ours."""
    with node_with(REFERENCE_BIN) as theirs, node_with(bin_dir) as ours:
        yield Pair((theirs, ours))


@pytest.mark.parametrize("name", CASES)
def test_call(pair: Pair, name: str) -> None:
    """ADD, CHECK and DEL reply and do the same on both nodes, but for what is documented."""
    case = CASES[name]
    pair.prepare(case.prepare)

    added = pair.call(case, "ADD")
    seen = [f"ADD: {line}" for line in pair.reply_differences(added) + pair.state_differences()]
    if case.config.get("cniVersion", "") >= "0.4.0":
        results = [json.loads(reply.stdout or "{}") for reply in added]
        checked = pair.call(case, "CHECK", *results)
        seen += [f"CHECK: {line}" for line in pair.reply_differences(checked) if "exit" in line]
    deleted = pair.call(case, "DEL")
    seen += [f"DEL: {line}" for line in pair.reply_differences(deleted) + pair.state_differences()]

    rules = case.rules.items()
    explained = {line: [h for h, rule in rules if re.fullmatch(rule, line)] for line in seen}
    used = {heading for headings in explained.values() for heading in headings}
    lines = [line for line, headings in explained.items() if not headings]
    expected = case.rules if name == "dual-1.1.0" else case.differs
    lines += [f"{heading}: did not differ" for heading in expected if heading not in used]
    if lines:
        pytest.fail("\n".join(["reference -> ours", *lines[:40]]), pytrace=False)


@pytest.mark.parametrize("heading", [*EVERYWHERE, *NEWEST_VERSION, *SOMEWHERE])
def test_difference_is_documented(heading: str) -> None:
    """Every difference that a test tolerates has its row, by its subject."""
    text = (ROOT / "docs" / "differences.md").read_text()

    assert f"\n| {heading} | " in text
