"""`pycni` alone, where its answer cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from commands import summary, view
from plugins import load


def test_undelivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a closed pipe is the OSError that the program answers in a line."""

    def fail(_text: str, **_keys: str) -> None:
        raise view.UndeliveredError(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(summary, "STATE_DIR", str(tmp_path))
    monkeypatch.setattr(summary, "_rows", lambda _host: [("network", "a")])
    monkeypatch.setattr(view, "write_text", fail)

    with pytest.raises(OSError, match="No space left"):
        summary.write(load)
