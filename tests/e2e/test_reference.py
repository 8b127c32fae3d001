"""The same calls to the Go reference plugins and to ours, on two equal nodes.

Replies, interfaces, addresses, routes, sysctls, files and firewall are compared after ADD, and
the leftovers after DEL. Each difference is named by its heading in docs/differences.md. The results
of the Go plugins stand in tests/golden/reference.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import compare
from tests.e2e.cases import CASES, EVERYWHERE, NEWEST_VERSION, SOMEWHERE, Case
from tests.e2e.node import Done, node_with
from tests.golden import Golden
from tests.machine import REFERENCE_BIN, ROOT, Json

# One of each plugin is a contract: an engine that serves it does the same.
CONTRACTS = {
    "dual-1.1.0",
    "masquerade-iptables",
    "ptp-dual-1.1.0",
    "macvlan-dual-1.1.0",
    "host-device-dual-1.1.0",
    "tap-dual-1.1.0",
    "host-local-1.1.0",
    "static-1.1.0",
    "loopback-1.1.0",
    "tuning-all-keys",
    "bandwidth-1.1.0",
    "firewall-1.1.0",
}
NAMES = [
    pytest.param(name, marks=[pytest.mark.both_edges] if name in CONTRACTS else [])
    for name in CASES
]
# The kernel itself detects no duplicates.
NO_DAD = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"


@dataclass(frozen=True)
class Life:
    """An attachment's life: replies and states of a node, by command, and the state before."""

    tables: Mapping[str, compare.Table]
    before: compare.Table
    plain: compare.Table

    def brief(self) -> dict[str, list[str]]:
        """Return the rows that the plugin has to do with, as lines."""
        return {
            command: compare.brief(table, self.before, self.plain)
            for command, table in self.tables.items()
        }

    def differences(self, theirs: Mapping[str, Sequence[str]]) -> list[str]:
        """Return what differs from another life, which is told by `brief`."""
        found = []
        for command, table in self.tables.items():
            other = compare.complete(theirs[command], table, self.before, self.plain)
            found += [f"{command}: {line}" for line in compare.differences(other, table)]
        return found


def life(bin_dir: Path, case: Case) -> Life:
    """Have ADD, CHECK and DEL called on a node of its own."""
    with node_with(bin_dir) as node:
        netns = node.container("c1")
        node.command("sh", "-ec", f"{NO_DAD}; {case.prepare}")
        before = compare.state_of(node, netns)

        def call(command: str, previous: Json | None = None) -> Done:
            return node.execute(
                case.plugin,
                command,
                {**case.config, **({"prevResult": previous} if previous is not None else {})},
                netns,
                args=case.args,
                path=f"{bin_dir}:{REFERENCE_BIN}",
                ifname=case.ifname,
            )

        def seen(done: Done) -> compare.Table:
            return compare.table_of(done, node) | compare.state_of(node, netns)

        added = call("ADD")
        tables = {"ADD": seen(added)}
        if case.config.get("cniVersion", "") >= "0.4.0":
            checked = call("CHECK", json.loads(added.stdout or "{}"))
            tables["CHECK"] = {"exit status": str(checked.returncode)}
        tables["DEL"] = seen(call("DEL"))
        return Life(tables, before, compare.plain_link(node))


@pytest.mark.rotating(4)
@pytest.mark.parametrize("name", NAMES)
def test_call(bin_dir: Path, golden: Golden, name: str) -> None:
    """ADD, CHECK and DEL reply and do the same on both nodes, but for what is documented."""
    case = CASES[name]
    theirs = golden.answer(name, lambda: life(REFERENCE_BIN, case).brief())

    seen = life(bin_dir, case).differences(theirs)

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
