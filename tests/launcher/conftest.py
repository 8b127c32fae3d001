"""Fixtures of the tests of the frozen program and of its installation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy import freeze
from deploy.interpreter.place import find
from tests.machine import DIST


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of `make dist`, in a place of this test process's own."""
    freeze.make(DIST, find())
    place = tmp_path_factory.mktemp("dist") / "bin"
    shutil.copytree(DIST / ".pycni", place / ".pycni")
    launchers = next((place / ".pycni").iterdir()) / "launcher"
    for file in DIST.iterdir():
        if file.is_file():
            (place / file.name).hardlink_to(launchers / file.name)
    return place
