"""`make bench` works: every experiment that is quick, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import report
from bench.experiments import SLOW, experiments, lacks
from bench.samples import ENGINE, NETAVARK, ONE_SHOT, REFERENCE, Report
from tests.machine import ROOT


def test_quick_run(tmp_path: Path) -> None:
    """Each experiment yields rows in which reference, one-shot and engine have taken some time.

    The interpreter alone is a row of one-shot. How long is asserted nowhere.
    """
    done = subprocess.run(
        [
            *(ROOT / "tests" / "in-sandbox", sys.executable, "-m", "bench", "--quick"),
            *("--rounds", "1", "--no-verdict", "--output", tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = Report.from_json((tmp_path / report.JSON).read_text())
    quick = {name for name in experiments() if name not in SLOW and not lacks(name)}
    assert quick == {row.key.partition(".")[0] for row in found.rows}
    for row in found.rows:
        columns = {column for column in row.samples if min(row.samples[column]) > 0}
        alone = row.key.startswith("interpreter")
        wanted = {ONE_SHOT} if alone else {REFERENCE, ONE_SHOT, ENGINE}
        assert columns >= wanted, row.key
    assert found.missing.keys() <= {NETAVARK}  # Debian 11 does not have it
    assert {"ADD, warm", "DEL, warm", "ADD, one process a call", "ADD, by the engine"} <= set(
        found.profile
    )
    assert (tmp_path / report.PAGE).read_text() == report.page(found)
