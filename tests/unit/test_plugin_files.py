"""cni_common/node/plugin_files.py: executables recognised as ours, and opened with care."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cni_common.node.plugin_files import open_guarded, type_of
from tests.machine import ROOT

OPEN = os.open
IDENTITY = b"\x7fELF...\0pycni launcher 1.0-abc bridge\0..."
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")


class TestTypeOf:
    """The type that a launcher says."""

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (IDENTITY, "bridge"),
            (IDENTITY.replace(b"bridge", b""), "cnv-x"),
            (IDENTITY.replace(b"1.0-abc", b"1.0-abd"), ""),
            (IDENTITY.replace(b"1.0-abc", b"1.0-abcd"), ""),
            (b"#!/bin/sh\n", ""),
            (b"", ""),
            (bytes(1 << 18) + IDENTITY, ""),
        ],
        ids=["type", "named", "other-build", "longer-build", "script", "empty", "large"],
    )
    def test_files(self, tmp_path: Path, data: bytes, expected: str) -> None:
        """It is the type in the file, or the file's name; of another build or program none."""
        (tmp_path / "cnv-x").write_bytes(data)
        (tmp_path / "link").symlink_to("cnv-x")

        assert type_of(str(tmp_path / "cnv-x"), "1.0-abc") == expected
        assert type_of(str(tmp_path / "link"), "1.0-abc") == expected

    def test_the_launcher_says_it_in_these_words(self) -> None:
        """launcher.c has the text that is looked for."""
        source = (ROOT / "launcher/launcher.c").read_text()

        assert '#define IDENTITY "pycni launcher " BUILD " "\n' in source
        assert "identity[] = IDENTITY TYPE;" in source

    def test_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that has not changed is not read again; one that was replaced is."""
        path, opened = tmp_path / "plugin", list[str]()
        path.write_bytes(IDENTITY)
        now = time.time_ns() + 10**10  # files of this moment might change once more
        monkeypatch.setattr(time, "time_ns", lambda: now)

        def open_noted(path: str, flags: int) -> int:
            opened.append(path)
            return OPEN(path, flags)

        monkeypatch.setattr(os, "open", open_noted)

        assert [type_of(str(path), "1.0-abc") for _ in range(3)] == ["bridge"] * 3
        assert len(opened) == 1
        (tmp_path / "new").write_bytes(IDENTITY.replace(b"bridge", b"tuning"))
        os.replace(tmp_path / "new", path)
        assert type_of(str(path), "1.0-abc") == "tuning"

    def test_young_file_is_not_remembered(self, tmp_path: Path) -> None:
        """A change in the same tick of the clock, of the same size, would leave its times."""
        path = tmp_path / "plugin"
        path.write_bytes(IDENTITY)
        assert type_of(str(path), "1.0-abc") == "bridge"
        state = path.stat()
        path.write_bytes(IDENTITY.replace(b"bridge", b"tuning"))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

        assert type_of(str(path), "1.0-abc") == "tuning"

    def test_fifo(self, tmp_path: Path) -> None:
        """A FIFO is none, and nothing waits for its other end."""
        os.mkfifo(tmp_path / "bridge")

        assert type_of(str(tmp_path / "bridge"), "1.0-abc") == ""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """An executable below directories that root alone can change but for a sticky one."""
    (tmp_path / "opt/bin").mkdir(parents=True)
    plugin = tmp_path / "opt/bin/plugin"
    plugin.write_text("#!/bin/sh\n")
    for path in (tmp_path / "opt", tmp_path / "opt/bin", plugin):
        path.chmod(0o755)
    return plugin


CHANGES: dict[str, Callable[[Path], object]] = {
    "file of a user": lambda plugin: os.chown(plugin, 1000, 0),
    "file of a group": lambda plugin: plugin.chmod(0o775),
    "file for all": lambda plugin: plugin.chmod(0o757),
    "directory of a user": lambda plugin: os.chown(plugin.parent, 1000, 0),
    "directory of a group": lambda plugin: plugin.parent.chmod(0o775),
    "directory above of a user": lambda plugin: os.chown(plugin.parent.parent, 1000, 0),
    "directory above for all": lambda plugin: plugin.parent.parent.chmod(0o777),
}


@root_only
class TestOpenGuarded:
    """A file that root alone can have put there."""

    def test_is_opened(self, plugin: Path) -> None:
        """The descriptor leads to the file, which can be executed by it."""
        fd = open_guarded(str(plugin))

        assert os.path.samestat(os.fstat(fd), plugin.stat())
        os.close(fd)

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_others_can_change_it(self, plugin: Path, change: Callable[[Path], object]) -> None:
        """Wherever on the path others could have put it, it is refused, and the place is named."""
        change(plugin)

        with pytest.raises(PermissionError, match="others than root") as refusal:
            open_guarded(str(plugin))

        assert str(plugin).startswith(refusal.value.filename)

    def test_links_of_root(self, plugin: Path) -> None:
        """Links of root are followed, relative and absolute, to files and to directories."""
        opt = plugin.parent.parent
        (opt / "cni").symlink_to(plugin.parent)
        (opt / "cni2").symlink_to("./bin/../cni")
        (plugin.parent / "other").symlink_to("plugin")

        fd = open_guarded(str(opt / "cni2/other"))

        assert os.path.samestat(os.fstat(fd), plugin.stat())
        os.close(fd)

    def test_a_link_of_a_user(self, plugin: Path) -> None:
        """A link of another user is refused, although it leads to a file of root."""
        link = plugin.with_name("link")
        link.symlink_to("plugin")
        os.chown(link, 1000, 0, follow_symlinks=False)

        with pytest.raises(PermissionError, match="others than root") as refusal:
            open_guarded(str(link))

        assert refusal.value.filename == str(link)

    def test_a_link_into_a_directory_of_a_user(self, plugin: Path) -> None:
        """The target of a link of root is looked at likewise."""
        link = plugin.parent.parent / "link"
        link.symlink_to("bin/plugin")
        plugin.parent.chmod(0o777)

        with pytest.raises(PermissionError, match="others than root"):
            open_guarded(str(link))

    def test_links_in_a_circle(self, plugin: Path) -> None:
        """Links without an end are an error."""
        link = plugin.with_name("link")
        link.symlink_to("link")

        with pytest.raises(OSError, match="symbolic links"):
            open_guarded(str(link))

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("bin", "no regular file"), ("fifo", "no regular file"), ("missing", "No such file")],
    )
    def test_no_file(self, plugin: Path, name: str, reason: str) -> None:
        """A directory, a FIFO and nothing cannot be executed."""
        opt = plugin.parent.parent
        os.mkfifo(opt / "fifo", 0o755)
        before = len(os.listdir("/proc/self/fd"))

        with pytest.raises(OSError, match=reason):
            open_guarded(str(opt / name))

        assert len(os.listdir("/proc/self/fd")) == before

    def test_relative(self) -> None:
        """A relative path depends on the working directory, so it is refused."""
        with pytest.raises(PermissionError, match="absolute"):
            open_guarded("bin/plugin")
