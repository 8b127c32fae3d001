"""Show which tests passed inside the virtual machines."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List them, as each machine counts as one test."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            inside = dict(report.user_properties).get("passed_inside")
            if inside is not None:
                terminalreporter.section(f"{report.nodeid}: inside, {len(inside)} passed")
                terminalreporter.write_line("\n".join(inside))
