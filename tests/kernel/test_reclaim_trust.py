"""`pycni reclaim` and the IPAM plugin that a record names: a record gives no right to run programs.

The plugin is executed only where root alone can have put it, and only if it is a plugin.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from commands import FAILED, FOUND
from tests.kernel.test_commands import age, end, kept, pycni
from tests.machine import Json, Machine

pytestmark = pytest.mark.without_engine(reason="the commands know nothing of it")

_PLUGIN = """#!/bin/sh
echo $CNI_COMMAND >> {notes}
cat >> {notes}
case $CNI_COMMAND in
    ADD) echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.9.0.7/24"}}]}}' ;;
    VERSION) echo '{answer}' ;;
esac
"""
_ANSWER = '{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}'


class Place:
    """A directory with an IPAM plugin that is none of ours, and a dead container of its."""

    def __init__(self, machine: Machine, tmp_path: Path) -> None:
        self.machine = machine
        self.notes = tmp_path / "notes"
        self.plugin = tmp_path / "cni/bin/other"
        self.plugin.parent.mkdir(parents=True)
        self.write(_ANSWER)
        config = machine.network(ipam={"type": "other"})
        container, ports = machine.container(), machine.ports()
        path = str(self.plugin.parent)
        machine.ok("bridge", "ADD", config, container, containerid="dead", path=path)
        end(machine, container, ports)
        self.notes.write_text("")
        age(machine)
        assert pycni(machine, "reclaim").returncode == FOUND
        age(machine)

    def write(self, answer: str) -> None:
        """Have the plugin print `answer` as its versions."""
        self.plugin.write_text(_PLUGIN.format(notes=self.notes, answer=answer))
        self.plugin.chmod(0o755)

    @property
    def records(self) -> list[str]:
        """The records that are left."""
        files: list[str] = kept(self.machine)["files"]
        return files


@pytest.fixture
def place(machine: Machine, tmp_path: Path) -> Place:
    """Give such a directory."""
    return Place(machine, tmp_path)


def test_a_plugin_of_root_is_executed(place: Place) -> None:
    """It gets the recorded configuration for its DEL, after it has said that it is a plugin."""
    done = pycni(place.machine, "reclaim")

    assert done.returncode == 0, done.stderr
    version, deletion, stdin = place.notes.read_text().split("\n", 2)
    config: Json = json.loads(stdin)
    assert (version, deletion, config["ipam"]) == ("VERSION", "DEL", {"type": "other"})
    assert place.records == []


@pytest.mark.parametrize("what", ["plugin", "directory", "directory above"])
def test_what_others_can_change_is_not(place: Place, what: str) -> None:
    """A plugin, or a directory above it, of another user: nothing runs, the message names it."""
    parents = (place.plugin, *place.plugin.parents)
    path = parents[["plugin", "directory", "directory above"].index(what)]
    os.chown(path, 1000, -1)

    done = pycni(place.machine, "reclaim")

    assert done.returncode == FAILED
    assert f"others than root can change it: '{path}'" in done.stderr
    assert place.notes.read_text() == ""
    assert len(place.records) == 1
    os.chown(path, 0, -1)
    assert pycni(place.machine, "reclaim").returncode == 0
    assert place.records == []


def test_another_program_is_not(place: Place) -> None:
    """A shell would take the configuration for commands: a program gets it if it knows VERSION."""
    place.write("")

    done = pycni(place.machine, "reclaim")

    assert done.returncode == FAILED
    assert f"'{place.plugin}', which a record names, is no CNI plugin" in done.stderr
    assert place.notes.read_text() == "VERSION\n"
