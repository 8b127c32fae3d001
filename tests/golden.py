"""The answers of the Go plugins to fixed inputs: tests/golden/<name>.json.

`make golden` writes the files, by running the plugins. `make test` compares ours with the files;
with PYCNI_TEST_ALL=1 the plugins run beside ours, and the files must say the same. With
`PYTEST_ADDOPTS='-k …' make golden` the answers of tests that do not run stay as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from typing import Any

from tests.scope import ALL

DIRECTORY = Path(__file__).with_name("golden")
_RENEW = os.environ.get("PYCNI_TEST_GOLDEN") == "renew"  # noqa: TID251 - set by `make golden`


class Golden:
    """The answers of one file."""

    def __init__(self, name: str, *, is_selection: bool = False) -> None:
        """With a selection of the tests, a new file keeps the answers of all others."""
        self._path = DIRECTORY / f"{name}.json"
        self._answers: dict[str, Any] = {}
        if self._path.exists() and (is_selection or not _RENEW):
            self._answers = json.loads(self._path.read_text())

    def answer(self, key: str, run: Callable[[], Any]) -> Any:
        """Return what the Go plugin answers to an input of that name, as JSON has it.

        `run` asks the plugin, where the file's answer is to be compared or written.
        """
        if _RENEW:
            self._answers[key] = run()
        answer = self._answers.get(key)
        assert answer is not None, f"{self._path.name} has no {key!r}: make golden"
        if ALL and not _RENEW:
            now = json.loads(json.dumps(run()))
            changes = "\n".join(unified_diff(_lines(answer), _lines(now), "file", "now", n=0))
            assert now == answer, f"{self._path.name}, {key}: make golden\n{changes}"
        return json.loads(json.dumps(answer))

    def save(self) -> None:
        """Write the file, if that is what the tests run for."""
        if _RENEW:
            DIRECTORY.mkdir(exist_ok=True)
            text = "\n".join(_lines(self._answers))
            self._path.write_text(f"{text}\n")


def _lines(answer: object) -> list[str]:
    return json.dumps(answer, indent=1, sort_keys=True).splitlines()
