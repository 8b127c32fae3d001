"""agent/install.py: what it puts where, what it leaves alone, and that nobody notices."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import engine_choice, install, owners, shell_files
from cni_common.kernel.link_deletion import SENDER
from cni_common.spec.names import VERSION
from plugins import TYPES
from tests.machine import ROOT, error_of
from tests.other_build import OTHER_VERSION, version_behind

pytestmark = pytest.mark.timeout(300)  # the first test may have to wait for a build

NAMES = {*TYPES, "pycni"}


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory in memory: the script syncs the file system that it installs to."""
    directory = Path("/run") / f"install-{uuid.uuid4().hex}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def _script(
    word: str, dist: Path, place: Path, engine: str = "none", share: str = "none"
) -> subprocess.CompletedProcess[str]:
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    environ = {"PATH": path, "DIST": str(dist), "DESTDIR": str(place), "CNI_BIN_DIR": "/bin"}
    environ["SHARE_DIR"] = share
    if engine:
        environ["ENGINE"] = engine
    return subprocess.run(
        [sys.executable, "-S", "-m", "agent.install", word],  # -S: without packages
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _install(dist: Path, place: Path, engine: str = "none") -> Path:
    done = _script("install", dist, place, engine)
    assert done.returncode == 0, done.stderr
    return place / "bin"


def _uninstall(dist: Path, place: Path) -> None:
    done = _script("uninstall", dist, place)
    assert done.returncode == 0, done.stderr


def _build(place: Path) -> str:
    return next((place / ".pycni").iterdir()).name


def _builds(installed: Path) -> set[str]:
    return {path.name for path in (installed / ".pycni").iterdir() if not path.is_symlink()}


def _bundle(installed: Path) -> Path:
    """Return the directory of the only build."""
    (launcher,) = installed.glob(".pycni/*/launcher")
    return launcher.parent


def _tree(place: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and contents of everything below a directory."""
    found = {}
    for path in place.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(place))] = (path.lstat().st_mode, text)
    return found


def _call(program: Path, command: str, stdin: str = "{}") -> subprocess.CompletedProcess[str]:
    environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0"}
    environ |= {"CNI_NETNS": "/run/netns/none", "CNI_PATH": str(program.parent)}
    return subprocess.run(
        [str(program)],
        input=stdin,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _answering(program: Path) -> str:
    """Return the version behind a launcher, by what it says to a configuration that is empty."""
    done = _call(program, "ADD")
    assert error_of(done.stdout)["msg"] == "missing network name"
    return version_behind(done.stdout)


def _told(installed: Path) -> str:
    """Return what `pycni version` says of version and build."""
    words = [str(installed / "pycni"), "version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    return f"{rows['version']} {rows['build']}"


def test_every_plugin_has_a_launcher(dist: Path, place: Path) -> None:
    """CNI_BIN_DIR below DESTDIR gets a launcher under each name, and nothing else."""
    installed = _install(dist, place)

    assert {path.name for path in installed.iterdir()} == {*NAMES, ".pycni"}
    assert {path.name for path in place.iterdir()} == {"bin"}


def test_completion_and_manual(dist: Path, place: Path) -> None:
    """They go below SHARE_DIR, readable by all, and go again; another's files there stay."""
    share = place / "usr/local/share"
    theirs = share / "zsh/site-functions/_pycni"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("#compdef pycni\n")
    previous = os.umask(0o077)  # noqa: TID251 - of this process, and put back
    try:
        done = _script("install", dist, place, share="")
    finally:
        os.umask(previous)  # noqa: TID251 - as above

    assert done.returncode == 0, done.stderr
    assert f"'{theirs}' is another's and stays" in done.stdout
    ours = {path for path in share.rglob("*") if path.is_file()} - {theirs}
    assert {str(path.relative_to(share)) for path in ours} == {
        "bash-completion/completions/pycni",
        "fish/vendor_completions.d/pycni.fish",
        "man/man1/pycni.1",
    }
    for path in ours:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    manual = (share / "man/man1/pycni.1").read_text()
    assert manual == (ROOT / "docs/man/pycni.1").read_text()
    assert _script("install", dist, place, share="").returncode == 0
    assert _script("uninstall", dist, place, share="").returncode == 0
    assert [path for path in share.rglob("*") if path.is_file()] == [theirs]
    assert not (share / "man").exists()


def test_modes_and_owner_are_fixed(dist: Path, place: Path) -> None:
    """Root owns all of it; programs have mode 0755 and other files 0644, with any umask."""
    previous = os.umask(0o077)  # noqa: TID251 - of this process, and put back
    try:
        installed = _install(dist, place)
    finally:
        os.umask(previous)  # noqa: TID251 - as above

    for path in (installed, *installed.rglob("*")):
        status = path.lstat()
        if path.is_symlink():  # the choice of the engine
            continue
        executable = path.is_dir() or path.name in {*NAMES, SENDER}
        assert (status.st_uid, status.st_gid) == (0, 0)
        assert stat.S_IMODE(status.st_mode) == (0o755 if executable else 0o644), path


def test_what_is_installed_works(dist: Path, place: Path) -> None:
    """An installed plugin answers, by its launcher and by the program behind it."""
    installed = _install(dist, place)

    version = _call(installed / "bridge", "VERSION")
    refused = _call(installed / "bridge", "ADD")

    assert (version.returncode, version.stderr) == (0, "")
    assert (refused.returncode, error_of(refused.stdout)["msg"]) == (1, "missing network name")


def test_the_plugins_are_links_into_the_store(dist: Path, place: Path) -> None:
    """Each plugin is a file of its own, which knows its type, and takes no room of its own."""
    installed = _install(dist, place)

    (launchers,) = (installed / ".pycni").glob("*/launcher")
    assert {path.name for path in launchers.iterdir()} == NAMES
    for name in NAMES:
        assert (installed / name).samefile(launchers / name)


def test_a_plugin_under_another_name_is_upgraded(dist: Path, other_dist: Path, place: Path) -> None:
    """An operator's link or copy of a launcher is of the new build too, and goes with it."""
    installed = _install(dist, place)
    (installed / "cnv-bridge").hardlink_to(installed / "bridge")
    shutil.copy(installed / "tuning", installed / "cnv-tuning")
    shutil.copy(installed / "vrf", installed / "cnv-vrf")

    _install(other_dist, place)

    (launchers,) = (other_dist / ".pycni").glob("*/launcher")
    for name in ("bridge", "tuning"):
        assert (installed / f"cnv-{name}").read_bytes() == (launchers / name).read_bytes()
    assert not (installed / "cnv-vrf").exists()  # a plugin that this build does not have
    _uninstall(other_dist, place)
    assert not installed.exists() or list(installed.iterdir()) == []


def test_a_build_with_one_launcher_for_all_is_replaced(dist: Path, place: Path) -> None:
    """The first builds had one: it is ours too, so it goes and is not saved as another vendor's."""
    installed = _install(dist, place)
    old = installed / ".pycni/0.1.0-0123456789ab"
    old.mkdir()
    (old / "launcher").write_text("one for all")
    for name in NAMES:
        (installed / name).unlink()
        (installed / name).hardlink_to(old / "launcher")

    _install(dist, place)

    assert not (installed / ".pycni/replaced").exists()
    assert _answering(installed / "bridge") == VERSION


def test_the_choice_of_the_engine(dist: Path, place: Path) -> None:
    """It is the text of one link: on demand unless chosen otherwise, and kept by an upgrade."""
    link = place / "bin/.pycni/engine"
    chosen = []
    for engine in ("", "none", "", "on-demand:60", "systemd"):
        _install(dist, place, engine)
        chosen.append(os.readlink(link))

    refused = _script("install", dist, place, "sometimes")
    no_time = _script("install", dist, place, "on-demand:0")

    assert chosen == ["on-demand", "none", "none", "on-demand:60", "systemd"]
    assert refused.returncode == 1
    assert "ENGINE is 'sometimes', not systemd, on-demand or none" in refused.stderr
    assert no_time.returncode == 1
    assert "ENGINE is 'on-demand:0'" in no_time.stderr
    assert "on-demand:SECONDS takes 1 to 99999, none is no engine" in no_time.stderr
    assert os.readlink(link) == "systemd"


def test_destdir_gets_no_units(dist: Path, place: Path) -> None:
    """With ENGINE=systemd no engine would serve, which the installation says, and then alone."""
    warned = _script("install", dist, place, "systemd").stdout
    other = _script("install", dist, place, "on-demand").stdout

    assert "DESTDIR gets no units" in warned
    assert "units" not in other
    assert {path.name for path in place.iterdir()} == {"bin"}


def test_uninstall_leaves_what_was_there(dist: Path, place: Path) -> None:
    """After both, everything is as it was, another's plugin of the same name too."""
    (place / "bin").mkdir()
    (place / "bin/bridge").write_text("#!/bin/sh\n")
    (place / "bin/bridge").chmod(0o755)
    (place / "bin/host-local").symlink_to("/usr/lib/cni/host-local")
    (place / "bin/other plugin").write_text("other")
    (place / "bin/.hidden").write_text("hidden")
    before = _tree(place)

    installed = _install(dist, place)
    replaced = _call(installed / "bridge", "VERSION")
    _uninstall(dist, place)

    assert '"1.1.0"' in replaced.stdout
    assert _tree(place) == before


def test_uninstall_leaves_what_came_later(dist: Path, place: Path) -> None:
    """Files that another package has put in place of ours, or beside them, stay."""
    installed = _install(dist, place)
    (installed / "bridge").unlink()
    (installed / "bridge").write_text("theirs")
    (installed / "cilium-cni").write_text("theirs")

    _uninstall(dist, place)

    assert {name: text for name, (_, text) in _tree(installed).items()} == {
        "bridge": b"theirs",
        "cilium-cni": b"theirs",
    }


def test_uninstall_brings_back_where_our_launcher_is_gone(dist: Path, place: Path) -> None:
    """An operator has removed ours: the only copy of another's plugin gets its name again."""
    (place / "bin").mkdir()
    (place / "bin/bridge").write_text("theirs")
    (place / "bin/ptp").symlink_to("/usr/lib/cni/ptp")
    before = _tree(place)
    installed = _install(dist, place)
    (installed / "bridge").unlink()
    (installed / "ptp").unlink()

    _uninstall(dist, place)

    assert _tree(place) == before


def test_an_uninstallation_that_was_killed_is_completed(
    dist: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a build goes with the next try."""
    installed = _install(dist, place)

    def be_killed(directory: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:  # where something must be there
            (directory / "launcher/bridge").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", be_killed)
        with pytest.raises(KeyboardInterrupt):
            install.uninstall(installed, str)

    _uninstall(dist, place)

    assert list(installed.iterdir()) == []


def test_an_uninstallation_without_plugins_takes_the_rest_away(dist: Path, place: Path) -> None:
    """Completion and manual page go, also where the one before ended after the plugins had gone."""
    assert _script("install", dist, place, share="").returncode == 0
    shutil.rmtree(place / "bin")

    done = _script("uninstall", dist, place, share="")

    assert (done.returncode, "nothing of ours" in done.stderr) == (1, True)
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_each_step_of_an_uninstallation_has_its_turn(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the plugins, the manual page nor systemd hides the error of another, or its work."""
    bin_dir, units, share = (place / name for name in ("bin", "units", "share"))
    units.mkdir()
    for name in engine_choice.UNITS:
        (units / name).write_text(f"ExecStart={bin_dir}/pycni engine\n")
    manual = share / shell_files.PLACES["man/pycni.1"]
    manual.parent.mkdir(parents=True)
    shutil.copy(ROOT / "docs/man/pycni.1", manual)
    systemctl = place / "systemctl"
    systemctl.write_text("#!/bin/sh\necho refused >&2\nexit 1\n")
    systemctl.chmod(0o755)
    Path("/run/systemd/system").mkdir(parents=True, exist_ok=True)  # of the sandbox
    monkeypatch.setattr(engine_choice, "UNIT_DIR", units)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)

    try:
        environ = {"CNI_BIN_DIR": str(bin_dir), "SHARE_DIR": str(share)}
        status = install.main(["uninstall"], environ)
    finally:
        Path("/run/systemd/system").rmdir()

    told = capsys.readouterr().err
    assert status == 1
    assert "there is nothing of ours" in told
    assert "'systemctl disable --now pycni-engine.socket" in told
    assert not manual.exists()


def test_uninstall_without_install_is_an_error(dist: Path, place: Path) -> None:
    """Where nothing was installed nothing is removed."""
    (place / "bin").mkdir()

    done = _script("uninstall", dist, place)

    assert done.returncode == 1
    assert "nothing of ours" in done.stderr


def test_install_needs_something_to_install(place: Path) -> None:
    """Without a build the script says what to do, and makes nothing."""
    done = _script("install", place / "none", place)

    assert done.returncode == 1
    assert "run 'make dist'" in done.stderr
    assert list(place.iterdir()) == []


def test_install_again_changes_nothing(dist: Path, place: Path) -> None:
    """The same build once more touches no file."""
    installed = _install(dist, place)
    before = {path: path.lstat().st_ino for path in installed.rglob("*")}

    _install(dist, place)

    assert {path: path.lstat().st_ino for path in installed.rglob("*")} == before


def test_install_again_mends(dist: Path, place: Path) -> None:
    """Damaged files, and leftovers of a killed installation, are put right."""
    installed = _install(dist, place)
    before = _tree(installed)
    library = next(installed.glob(".pycni/*/lib/rpds/*.so"))
    library.write_bytes(b"damaged")
    (installed / "bridge").unlink()
    (installed / "bridge.pycni-new").write_text("half")
    (installed / "ptp").chmod(0o644)
    library.parent.chmod(0o700)
    (_bundle(installed) / "pycni").chmod(0o600)
    half = installed / ".pycni/0.1.0-half.pycni-new/lib"
    half.mkdir(parents=True)
    (half / "module.pyc").write_text("half")

    _install(dist, place)

    assert _tree(installed) == before


def test_no_label_of_the_source_is_copied(dist: Path, place: Path) -> None:
    """A label of SELinux from /tmp or a home directory would keep systemd from the program."""
    source = place / "dist"
    shutil.copytree(dist, source, symlinks=True)
    for path in (source, *source.rglob("*")):
        if not path.is_symlink():
            os.setxattr(path, "trusted.label", b"user_tmp_t")

    installed = _install(source, place)

    assert {path: os.listxattr(path, follow_symlinks=False) for path in installed.rglob("*")} == {
        path: [] for path in installed.rglob("*")
    }


def test_another_build_takes_over(dist: Path, other_dist: Path, place: Path) -> None:
    """All launchers start the new build; the one before stays for what is running still."""
    _install(dist, place)

    installed = _install(other_dist, place)

    names = {path.name for path in installed.iterdir()} - {".pycni"}
    assert names == NAMES - {"vrf"}
    assert {_answering(installed / name) for name in names - {"pycni"}} == {OTHER_VERSION}
    assert _told(installed) == f"{OTHER_VERSION} {_build(other_dist)}"
    assert _builds(installed) == {_build(dist), _build(other_dist)}


def test_the_build_before_works_until_the_rename(dist: Path, other_dist: Path, place: Path) -> None:
    """Half-way through an installation each launcher starts the program of its own version."""
    installed = _install(dist, place)
    bundle = shutil.copytree(
        other_dist / ".pycni" / _build(other_dist), installed / ".pycni" / _build(other_dist)
    )
    beside = _answering(installed / "bridge")

    (bundle / "launcher/bridge").rename(installed / "bridge")

    assert (beside, _answering(installed / "bridge")) == (VERSION, OTHER_VERSION)
    assert _answering(installed / "host-local") == VERSION
    assert _told(installed) == f"{VERSION} {_build(dist)}"


def test_going_back_takes_over_too(dist: Path, other_dist: Path, place: Path) -> None:
    """An older build is as good as a newer one."""
    _install(dist, place)
    _install(other_dist, place)

    installed = _install(dist, place)

    assert {_answering(installed / name) for name in TYPES} == {VERSION}
    assert _told(installed) == f"{VERSION} {_build(dist)}"
    assert _builds(installed) == {_build(dist), _build(other_dist)}
    assert not (installed / ".pycni" / _build(dist) / "superseded").exists()


def test_builds_long_out_of_use_are_removed(dist: Path, other_dist: Path, place: Path) -> None:
    """Of the builds that are not in use the last stays, and one that was in use minutes ago."""
    installed = _install(other_dist, place)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now, day = time.clock_gettime(time.CLOCK_BOOTTIME), 86_400
    for name, mark, ahead in (
        ("of-another-boot", f"another-boot {now}", 0),
        ("ancient", f"{boot} {now - 1800}", day),
        ("older", f"{boot} {now - 1200}", 0),
        ("recent", f"{boot} {now - 60}", -day),
        ("unmarked", "", -day),
    ):
        directory = installed / ".pycni" / name
        directory.mkdir()
        (directory / "launcher").write_text(name)
        (directory / "superseded").write_text(mark)
        when = time.time() + ahead  # a clock that was set
        os.utime(directory / "superseded", (when, when))

    _install(dist, place)

    assert _builds(installed) == {_build(dist), _build(other_dist), "recent", "unmarked"}


class TestOwners:
    """A node's own plugins, by `make install` or a package, and those of a cluster's agent."""

    def test_the_agent_goes(self, dist: Path, other_dist: Path, place: Path) -> None:
        """The node's build has the launchers again, however many builds the agent has had."""
        installed = _install(dist, place, "systemd")
        install.install(other_dist, installed, print, owner=owners.AGENT)
        by_agent = _answering(installed / "bridge")
        _forget_superseded(installed)
        install.install(other_dist, installed, print, owner=owners.AGENT)

        install.uninstall(installed, print, owner=owners.AGENT)

        assert by_agent == OTHER_VERSION
        assert {_answering(installed / name) for name in TYPES} == {VERSION}
        assert _told(installed) == f"{VERSION} {_build(dist)}"
        assert os.readlink(installed / ".pycni/engine") == "systemd"
        _uninstall(dist, place)
        assert not installed.exists() or list(installed.iterdir()) == []

    def test_the_package_goes(self, dist: Path, other_dist: Path, place: Path) -> None:
        """The agent's plugins stay, and nothing of theirs is away for a moment."""
        installed = _install(other_dist, place, "systemd")
        install.install(dist, installed, print, owner=owners.AGENT)
        before = {name: (installed / name).stat().st_ino for name in NAMES}

        done = _script("uninstall", dist, place)

        assert done.returncode == 0, done.stderr
        assert f"keeps build {_build(dist)}: it is of the agent of a cluster" in done.stdout
        assert {name: (installed / name).stat().st_ino for name in NAMES} == before
        assert not (installed / ".pycni/engine").is_symlink()
        install.uninstall(installed, print, owner=owners.AGENT)
        assert list(installed.iterdir()) == []

    def test_one_build_of_both(self, dist: Path, place: Path) -> None:
        """The same build belongs to both, and goes with the last."""
        installed = _install(dist, place)
        install.install(dist, installed, print, owner=owners.AGENT)

        install.uninstall(installed, print, owner=owners.AGENT)
        assert _answering(installed / "bridge") == VERSION
        _uninstall(dist, place)

        assert not installed.exists() or list(installed.iterdir()) == []

    def test_an_installation_before_there_were_notes(
        self, dist: Path, other_dist: Path, place: Path
    ) -> None:
        """Only the node's installation chooses an engine: a build already there counts as such."""
        installed = _install(dist, place)
        (installed / ".pycni/node").unlink()

        install.install(other_dist, installed, print, owner=owners.AGENT)
        install.uninstall(installed, print, owner=owners.AGENT)

        assert _answering(installed / "bridge") == VERSION

    def test_the_agent_has_gone_without_a_word(self, dist: Path, place: Path) -> None:
        """Its note can be removed by hand, as the message says; then all of it goes."""
        installed = _install(dist, place)
        install.install(dist, installed, print, owner=owners.AGENT)
        told = _script("uninstall", dist, place).stdout
        note = installed / ".pycni/agent"
        assert f"remove '{note}' and try again" in told

        note.unlink()
        _uninstall(dist, place)

        assert not installed.exists() or list(installed.iterdir()) == []


def _forget_superseded(installed: Path) -> None:
    """Have it be long ago that builds were superseded, as after days of upgrades."""
    for mark in installed.glob(".pycni/*/superseded"):
        mark.write_text("another-boot 1.0")
    newer = installed / ".pycni/newer"
    (newer / "launcher").mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (newer / "superseded").write_text(f"{boot} 1e9")


def test_two_installations_at_once_agree(dist: Path, other_dist: Path, place: Path) -> None:
    """One waits for the other, so that all launchers are of one build."""
    threads = [
        threading.Thread(target=_install, args=(which, place))
        for which in (dist, other_dist, dist, other_dist)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    installed = place / "bin"
    (build,) = {_told(installed).split()[1]}
    for name in ("bridge", "host-local", "pycni"):
        assert (installed / name).samefile(installed / f".pycni/{build}/launcher/{name}")


def test_nobody_notices_an_installation(dist: Path, other_dist: Path, place: Path) -> None:
    """While versions replace each other twenty times, every start of a plugin succeeds."""
    installed = _install(dist, place)
    ended = threading.Event()
    wrong: list[str] = []
    starts = {"VERSION": 0, "ADD": 0}
    versions = set()

    def start(command: str, expected: str) -> None:
        while not ended.is_set():
            done = _call(installed / "bridge", command)
            starts[command] += 1
            if expected not in done.stdout or done.stderr:
                wrong.append(f"{done.returncode}: {done.stdout}{done.stderr}")
            elif command == "ADD":
                versions.add(version_behind(done.stdout))

    threads = [
        threading.Thread(target=start, args=("VERSION", '"supportedVersions"')),
        threading.Thread(target=start, args=("ADD", "missing network name")),
    ]
    for thread in threads:
        thread.start()

    try:
        for count in range(20):
            _install((other_dist, dist)[count % 2], place)
    finally:
        ended.set()
        for thread in threads:
            thread.join()

    assert wrong == []
    assert min(starts.values()) >= 20
    assert versions == {VERSION, OTHER_VERSION}
