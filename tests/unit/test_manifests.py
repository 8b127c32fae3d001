"""deploy/kubernetes: one truth in several files, and what they say of other files is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy import manifests
from deploy.image import build

BASE, FOLDER = manifests.BASE, manifests.FOLDER
OVERLAYS = sorted(FOLDER.glob("overlays/*/kustomization.yaml"))
PAGE = build.ROOT / "docs" / "kubernetes.md"
DAEMONSET = (BASE / "daemonset.yaml").read_text()
UNINSTALL = (FOLDER / "uninstall.yaml").read_text()


def test_one_file_is_the_base() -> None:
    """`make manifests` was run after the last change of the base."""
    assert manifests.FILE.read_text() == manifests.render()


def test_base_names_all_its_files() -> None:
    """No file of the base is left out."""
    there = {path for path in BASE.iterdir() if path.name != "kustomization.yaml"}

    assert set(manifests.resources()) == there


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.parent.name)
def test_overlay(overlay: Path) -> None:
    """An overlay changes a setting that the base has, and makes new agents; the page names it."""
    text = overlay.read_text()
    settings = (BASE / "settings.yaml").read_text()
    (changed,) = re.findall(r" data: \{ (\w+): ", text)

    assert f"\n  {changed}: " in settings
    assert f"pycni/overlay: {overlay.parent.name} " in text
    assert f"`{overlay.parent.name}`" in PAGE.read_text()


@pytest.mark.parametrize("text", [DAEMONSET, UNINSTALL], ids=["agent", "uninstall"])
def test_image(text: str) -> None:
    """The manifests name the image that `make image` makes."""
    assert re.findall(r"image: (\S+)", text) == [build.NAME]


def test_each_right_on_the_node_has_a_reason() -> None:
    """Each capability and each mount has a comment."""
    lines = DAEMONSET.splitlines()
    capabilities = [line for line in lines if re.match(r" +- [A-Z_]+\b", line)]
    mounts = [line for line in lines if "mountPath" in line]

    assert len(capabilities) >= 10
    assert len(mounts) >= 4
    assert [line for line in [*capabilities, *mounts] if " # " not in line] == []


def test_uninstall_has_no_right_that_the_agent_lacks() -> None:
    """It undoes what the agent has done, from the same places."""
    (line,) = re.findall(r"add: \[(.*)\]", UNINSTALL)
    (block,) = re.findall(r"add:\n((?:.*- [A-Z_]+.*\n|.*# .*\n)+)", DAEMONSET)

    assert set(line.split(", ")) <= set(re.findall(r"- ([A-Z_]+)", block))
    for path in re.findall(r"hostPath: \{ path: (\S+),", UNINSTALL):
        assert path in DAEMONSET


def test_page_commands_name_files_that_are_there() -> None:
    """Each path of the repository that the page has is there."""
    for name in re.findall(r"(?:deploy|docs)/[\w./-]+\.(?:yaml|md)", PAGE.read_text()):
        assert (build.ROOT / name).exists(), name
