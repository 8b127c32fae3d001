"""`make bench` works: every experiment that is quick, once."""

import subprocess
import sys
from pathlib import Path

from bench import report
from bench.experiments import SLOW, experiments
from bench.samples import COLUMNS, ONE_SHOT, REFERENCE, Report
from tests.machine import ROOT


def test_quick_run(tmp_path: Path) -> None:
    """Each experiment yields rows in which reference and one-shot have taken some time.

    How long is asserted nowhere; the engine's column is there, or the reason why it is not.
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
    quick = {name for name in experiments() if name not in SLOW}
    assert quick == {row.key.partition(".")[0] for row in found.rows}
    for row in found.rows:
        columns = {column for column in row.samples if min(row.samples[column]) > 0}
        assert columns >= {REFERENCE, ONE_SHOT}, row.key
        assert columns | set(found.missing) >= set(COLUMNS) - {"floor"}, row.key
    assert {"ADD, warm", "DEL, warm", "ADD, one process a call"} <= set(found.profile)
    assert (tmp_path / report.PAGE).read_text() == report.page(found)
