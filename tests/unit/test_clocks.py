"""Which modules look at the clock that people set: nothing is judged by it without a reason."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.machine import ROOT

PACKAGES = ("agent", "cni_common", "commands", "plugins")
_SHOWN = "only shows it"
_GRACE = "a grace time of files: what went too early was seen twice, is locked, or is made again"
REASONS = {
    "agent/logs.py": _SHOWN,
    "agent/reports.py": _SHOWN,
    "cni_common/node/lifecycle.py": _SHOWN,
    "cni_common/node/spans.py": _SHOWN,
    "cni_common/serve/status.py": _SHOWN,
    "commands/doctor/state.py": "judges that clock",
    "cni_common/node/plugin_files.py": "a file too young to be known by its times is read again",
    "cni_common/node/record.py": _GRACE,
    "commands/leftovers.py": _GRACE,
    "commands/node.py": _GRACE,
    "plugins/host_local/lease.py": _GRACE,
    "plugins/host_local/capacity.py": "dates of leases; tests/kernel/test_host_local_clock.py",
    "plugins/host_local/index/file.py": "dates of leases; tests/kernel/test_host_local_clock.py",
    "plugins/portmap/parts.py": _SHOWN,
}
CALLS = {
    "time.time",
    "time.time_ns",
    "time_ns",
    "datetime.now",
    "datetime.utcnow",
    "time.localtime",
}


def reads_it(path: Path) -> bool:
    """Tell whether a module asks for the time of the wall."""
    called = (
        one.func for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.Call)
    )
    return any(ast.unparse(one) in CALLS for one in called)


def test_each_has_a_reason() -> None:
    """A wait, a pause, an age in memory is by the monotonic clock, or by that since the boot."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found = {str(path.relative_to(ROOT)) for path in files if reads_it(path)}

    assert found == REASONS.keys()
