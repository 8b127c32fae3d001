"""Installation of what `make dist` makes, while containers start and stop.

    python3 -m agent.install install | uninstall

with these environment variables:

    DESTDIR       prepended to every path, for packages
    CNI_BIN_DIR   the runtimes' directory of plugins (default: /opt/cni/bin)
    DIST          the directory to install (default: dist/bin)
    ENGINE        systemd, on-demand, on-demand:SECONDS or none (default: what was chosen before;
                  else systemd where that runs, and on-demand elsewhere and with DESTDIR)
    UNITS         the directory of the engine's units (default: deploy); none: a package has them
    SHARE_DIR     gets completion and the manual page (default: /usr/local/share), unless none

CNI_BIN_DIR gets the launcher of each plugin, and CNI_BIN_DIR/.pycni one directory for each build. A
launcher starts the program of its own build only. That directory is complete before the launcher is
renamed into place, and stays for a while after the launcher was replaced.

The node agent installs by the same functions; agent/owners.py tells what follows where a node has
both. The module uses the standard library alone, so that `make install` needs no virtual
environment.
"""

from __future__ import annotations

import ctypes
import fcntl
import filecmp
import os
import shutil
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent import engine_choice, owners
from cni_common.kernel.cgroups import remove_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Say = Callable[[str], object]

BIN_DIR = "/opt/cni/bin"
# Where bash-completion, zsh, fish and man look beside /usr/share; NO_SHARE: nothing is put there.
SHARE_DIR, NO_SHARE = "/usr/local/share", "none"
_NO_UNITS = "none"  # the value of UNITS where a package has them
_STORE = ".pycni"  # as launcher/launcher.c and deploy/freeze.py have it
_KEEP_SECONDS = 600  # no plugin runs longer: runtimes have shorter time limits
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NEW = ".pycni-new"  # suffix of temporary files
# Why `uninstall` of the one keeps the build of the other owner; {} is its note.
_REASONS = {
    owners.NODE: "'make install' or a package has put it there",
    owners.AGENT: "it is of the agent of a cluster, whose own uninstallation removes it; where that"
    " has not been done and cannot be any more, remove '{}' and try again",
}
_LOCK_TRIES = 100  # an uninstallation may take the store away while this call waits for its lock


class InstallError(Exception):
    """The installation cannot be done, and nothing was changed; the message names the remedy."""


def install(
    dist: Path, target: Path, say: Say, engine: str = "", *, owner: str = owners.NODE
) -> str:
    """Bring the directory `target` up to date with `dist`, and return the name of the build.

    `engine` is the choice of the engine; "" leaves it as it is. An engine on demand of another
    build or choice is told to end. Raises InstallError where there is nothing to install or a
    directory has a plugin's name, OSError.
    """
    build = build_of(dist)
    names = sorted(os.listdir(dist / _STORE / build / "launcher"))
    for name in names:
        if (target / name).is_dir():
            raise InstallError(f"'{target / name}' is a directory; remove it")
    _make_directory(target)
    place = _Place(target, build)
    with place.locked():
        _remove_leftovers(target)
        place.put_bundle(dist / _STORE / build)
        place.note(owner)
        is_new_choice = engine not in ("", engine_choice.read(target / _STORE))
        if is_new_choice:
            engine_choice.write(target / _STORE, engine)
        place.put_launchers(say, ends_all=is_new_choice)
    say(f"build {build} is in '{target}': {' '.join(names)}")
    return build


def uninstall(target: Path, say: Say, *, owner: str = owners.NODE) -> None:
    """Remove from `target` what `install` has put there, and bring back what it replaced.

    Where the other owner has installed as well, its build gets the launchers, and stays. Raises
    InstallError where nothing of ours is there, OSError.
    """
    store = target / _STORE
    if not store.is_dir():
        raise InstallError(f"there is nothing of ours in '{target}'")
    place = _Place(target, "")
    with place.locked():
        if owner == owners.AGENT:
            place.adopt()
        else:  # first: no call leaves an engine any more
            (store / engine_choice.LINK).unlink(missing_ok=True)
        owners.forget(store, owner)
        if others := owners.builds(store):
            ((other, build),) = others.items()
            _Place(target, build).put_launchers(say)
            say(f"'{target}' keeps build {build}: {_REASONS[other].format(store / other)}")
            return
        owners.forget_all(store)
        for name in _names(target):
            if place.type_of(target / name):
                place.take_away(name)
        engine_choice.end_engines(engine_choice.programs(place.builds()), say)
        _remove_leftovers(target)
        place.bring_back()
        # A plugin that could not be restored, because another file has its name, is of no use
        # any more.
        shutil.rmtree(store / "replaced", ignore_errors=True)
        for directory in place.builds():
            _remove_build(directory)
        with suppress(OSError):  # something of another's is in it
            store.rmdir()
    say(f"removed from '{target}'")


def installed(target: Path) -> str:
    """Return the build whose launcher of `pycni` is in a directory, "" where there is none."""
    for launcher in sorted((target / _STORE).glob("*/launcher/pycni")):
        if _is_equal(launcher, target / "pycni"):
            return launcher.parent.parent.name
    return ""


def build_of(dist: Path) -> str:
    """Return the name of the build in `dist`, to which the executables there belong.

    Others may lie beside it: rpm removes the old files last. Raises InstallError unless `make dist`
    made it.
    """
    try:
        builds = os.listdir(dist / _STORE)
    except OSError:
        raise InstallError(f"there is no '{dist}': run 'make dist'") from None
    for build in builds:
        if _is_equal(dist / _STORE / build / "launcher/pycni", dist / "pycni"):
            return build
    raise InstallError(f"'{dist}' is not what 'make dist' makes")


def signature(target: Path, build: str) -> tuple[tuple[str, int, int, int, int], ...]:
    """Return names, inodes, sizes, times and modes of all that `install` has put into `target`.

    Two equal signatures mean that no program has removed or replaced a file in between.
    """
    bundle = target / _STORE / build
    launchers = bundle / "launcher"
    files = [target / name for name in sorted(os.listdir(launchers))] if launchers.is_dir() else []
    for directory, directories, names in os.walk(bundle):
        directories.sort()
        files += [Path(directory, name) for name in sorted(names)]
    return tuple(_signature(file) for file in files)


def _signature(file: Path) -> tuple[str, int, int, int, int]:
    try:
        status = file.lstat()
    except FileNotFoundError:
        return (str(file), 0, 0, 0, 0)
    return (str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)


class _Place:
    """The directory of plugins, and the store of builds in it."""

    def __init__(self, target: Path, build: str) -> None:
        self._target = target
        self._store = target / _STORE
        self._build = build  # the one to install

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one call in at a time. The lock is on the store itself: no lock file is left."""
        fd = self._lock()
        try:
            yield
        finally:
            os.close(fd)

    def _lock(self) -> int:
        for _ in range(_LOCK_TRIES):
            if self._build:
                _make_directory(self._store)
            fd = os.open(self._store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self._store.stat()):
                    return fd
            os.close(fd)
        raise InstallError(f"'{self._store}' disappears again and again; try again")

    def builds(self) -> list[Path]:
        """Return the directories of all builds."""
        return sorted(path.parent for path in self._store.glob("*/launcher"))

    def type_of(self, file: Path) -> str:
        """Return the type of a launcher of a build in the store, "" for any other file.

        The first builds had one launcher for all names.
        """
        if not file.is_file() or file.is_symlink():
            return ""
        for launcher in (*self._store.glob("*/launcher"), *self._store.glob("*/launcher/*")):
            if _is_equal(file, launcher):
                return file.name if launcher.name == "launcher" else launcher.name
        return ""

    def put_bundle(self, source: Path) -> None:
        """Make the directory of the build, or mend it; its place is on the disk afterwards."""
        bundle = self._store / self._build
        if not bundle.exists():
            new = bundle.with_name(f"{bundle.name}{_NEW}")
            self._mend(source, new)
            new.rename(bundle)
        elif not self._mend(source, bundle):
            return
        _sync(self._store)  # after a power failure a launcher must not exist without its program

    def _mend(self, source: Path, bundle: Path) -> bool:
        """Replace files that differ one by one, as the build is in use; return whether any did.

        Contents and modes are copied and no more: the source's label of SELinux is another one.
        """
        is_changed = False
        for directory, _, names in os.walk(source):
            below = bundle / Path(directory).relative_to(source)
            _make_directory(below)
            _set_mode(below, 0o755)
            for name in names:
                file, place = Path(directory, name), below / name
                if not _is_equal(file, place):
                    _put(file, place)
                    is_changed = True
                elif not place.is_symlink():
                    _set_mode(place, _mode_of(file))
        return is_changed

    def put_launcher(self, place: Path, type: str) -> None:
        """Put a hard link of the launcher at `place`; where links fail, a copy."""
        launcher = self._store / self._build / "launcher" / type
        with suppress(FileNotFoundError):
            if not place.is_symlink() and place.samefile(launcher):
                return
        new = place.with_name(f"{place.name}{_NEW}")
        new.unlink(missing_ok=True)
        try:
            new.hardlink_to(launcher)
        except OSError:
            shutil.copyfile(launcher, new)
            new.chmod(0o755)
        new.replace(place)

    def note(self, owner: str) -> None:
        """Note whose build is installed, before launchers of the other one are replaced."""
        if owner == owners.AGENT:
            self.adopt()
        owners.note(self._store, owner, self._build)

    def adopt(self) -> None:
        """Note the node's own build where an older version has installed it, without a note.

        Only an installation of the node's own chooses an engine.
        """
        if engine_choice.read(self._store) and owners.NODE not in owners.builds(self._store):
            build = installed(self._target)
            if build:
                owners.note(self._store, owners.NODE, build)

    def put_launchers(self, say: Say, *, ends_all: bool = False) -> None:
        """Put all launchers of the build into place, and end what other builds have running.

        `ends_all`: also what this one has.
        """
        names = sorted(os.listdir(self._store / self._build / "launcher"))
        for name in names:
            self.save_foreign(name, say)
            self.put_launcher(self._target / name, name)
        self.update_others(set(names))
        stale = [path for path in self.builds() if path.name != self._build or ends_all]
        engine_choice.end_engines(engine_choice.programs(stale), say)
        self.remove_old_builds()

    def save_foreign(self, name: str, say: Say) -> None:
        """Keep another vendor's plugin of the same name; `uninstall` restores it."""
        file = self._target / name
        if not os.path.lexists(file) or self.type_of(file):
            return
        replaced = self._store / "replaced"
        _make_directory(replaced)
        new = replaced / f"{name}{_NEW}"
        new.unlink(missing_ok=True)
        try:
            os.link(file, new, follow_symlinks=False)
        except OSError:
            shutil.copy2(file, new, follow_symlinks=False)
            status = file.lstat()
            os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
        new.replace(replaced / name)
        say(f"replacing '{file}', which is not one of ours; 'uninstall' brings it back")

    def update_others(self, names: set[str]) -> None:
        """Upgrade launchers that have another name; take away those of plugins that are no more."""
        for name in _names(self._target):
            type = "" if name in names else self.type_of(self._target / name)
            if type in names:  # an operator has given it another name
                self.put_launcher(self._target / name, type)
            elif type:  # this build has no such plugin
                self.take_away(name)

    def take_away(self, name: str) -> None:
        """Remove a launcher, or put what it has replaced into its place."""
        saved = self._store / "replaced" / name
        if os.path.lexists(saved):
            saved.replace(self._target / name)
        else:
            (self._target / name).unlink(missing_ok=True)

    def bring_back(self) -> None:
        """Put back each plugin that was replaced where no file has its name."""
        for saved in (self._store / "replaced").glob("*"):
            if not saved.name.endswith(_NEW) and not os.path.lexists(self._target / saved.name):
                saved.replace(self._target / saved.name)

    def remove_old_builds(self) -> None:
        """Remove superseded builds but the last, owners', and those that may still be running."""
        (self._store / self._build / "superseded").unlink(missing_ok=True)
        since = {
            directory: _superseded(directory / "superseded")
            for directory in self.builds()
            if directory.name != self._build
        }
        for build in owners.builds(self._store).values():
            since.pop(self._store / build, None)
        if since:
            del since[max(since, key=lambda directory: since[directory])]
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        for directory, (is_of_this_boot, when) in since.items():
            if not is_of_this_boot or now - when > _KEEP_SECONDS:
                _remove_build(directory)


def _superseded(mark: Path) -> tuple[bool, float]:
    """Return whether a build was superseded in this boot, and when, by a clock that cannot be set.

    The mark of a build that has none, or one without a moment, begins now.
    """
    own = Path(_BOOT_ID).read_text(encoding="ascii").strip()
    text = mark.read_text(encoding="ascii", errors="replace") if mark.exists() else ""
    boot, _, moment = text.partition(" ")
    try:
        return boot == own, float(moment)
    except ValueError:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        mark.write_text(f"{own} {now:.3f}", encoding="ascii")
        return True, now


def _names(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
        )


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed call has left."""
    for file in target.glob(f"*{_NEW}"):
        if file.is_file() and not file.is_symlink():
            file.unlink()
    for leftover in (target / _STORE).glob(f"*{_NEW}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _remove_build(directory: Path) -> None:
    """Remove a build; half of one is a leftover."""
    half = directory.with_name(f"{directory.name}{_NEW}")
    directory.rename(half)
    shutil.rmtree(half)


def _make_directory(path: Path) -> None:
    """Make a directory and missing ones above it, 0755 under any umask."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir(0o755)
        path.chmod(0o755)


def _mode_of(file: Path) -> int:
    """Return the mode of a copy: its owner writes and all read, under any umask."""
    return 0o755 if file.stat().st_mode & 0o111 else 0o644


def _set_mode(place: Path, mode: int) -> None:
    if stat.S_IMODE(place.stat().st_mode) != mode:
        place.chmod(mode)


def _put(file: Path, place: Path) -> None:
    """Copy a file by an atomic rename."""
    _make_directory(place.parent)
    new = place.with_name(f"{place.name}{_NEW}")
    new.unlink(missing_ok=True)
    shutil.copyfile(file, new, follow_symlinks=False)
    if not new.is_symlink():
        new.chmod(_mode_of(file))
    new.replace(place)


def _is_equal(file: Path, other: Path) -> bool:
    """Tell whether two paths have the same content; a symbolic link equals only a like one."""
    try:
        if file.is_symlink() or other.is_symlink():
            return os.readlink(file) == os.readlink(other)
        return other.is_file() and filecmp.cmp(file, other, shallow=False)
    except OSError:
        return False


def _sync(directory: Path) -> None:
    """Write the file system of a directory to its disk (syncfs(2), which Python lacks)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None).syncfs(fd):
            os.sync()
    finally:
        os.close(fd)


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Install or uninstall as the environment says; return the exit status."""
    target = Path(environ.get("DESTDIR", "") + (environ.get("CNI_BIN_DIR") or BIN_DIR))
    if list(arguments) == ["install"]:
        return _tried(lambda: _install(target, environ))
    if list(arguments) == ["uninstall"]:
        # All, also where the one before was killed after it had removed the plugins.
        return max(map(_tried, _removals(target, environ)))
    sys.stderr.write((__doc__ or "").partition("\n\nCNI_BIN_DIR")[0] + "\n")
    return 2


def _tried(step: Callable[[], object]) -> int:
    """Return the exit status of a step, and write its error."""
    try:
        step()
    except engine_choice.SystemdError as error:
        sys.stderr.write(f"install: done, but not the engine, which no call needs: {error}\n")
        return 1
    except (InstallError, OSError) as error:
        sys.stderr.write(f"install: {error}\n")
        return 1
    return 0


def _install(target: Path, environ: Mapping[str, str]) -> None:
    is_here = not environ.get("DESTDIR")
    choice = _choice(environ.get("ENGINE", ""), target, is_here=is_here)
    install(_place(environ, "DIST", "dist/bin"), target, _say, choice)
    if share := _share(environ):
        from agent import shell_files  # which the bundle does not have

        shell_files.put(_place(environ, "DOCS", "docs"), share, _say)
    if environ.get("UNITS") == _NO_UNITS:
        return
    if choice == engine_choice.SYSTEMD and is_here:
        engine_choice.enable_units(_place(environ, "UNITS", "deploy"), target, _say)
    elif choice == engine_choice.SYSTEMD:
        names = "' and '".join(engine_choice.UNITS)
        _say(f"DESTDIR gets no units: no engine serves until '{names}' are enabled")
    elif is_here:
        engine_choice.disable_units(target, _say)


def _removals(target: Path, environ: Mapping[str, str]) -> Iterator[Callable[[], object]]:
    """Yield the steps of an uninstallation."""
    yield lambda: uninstall(target, _say)
    if share := _share(environ):
        from agent import shell_files

        yield lambda: shell_files.take_away(share)
    if environ.get("UNITS") != _NO_UNITS and not environ.get("DESTDIR"):
        yield lambda: engine_choice.disable_units(target, _say)
        yield remove_groups  # the engine itself was not needed by a call any more


def _place(environ: Mapping[str, str], name: str, default: str) -> Path:
    """Return the directory in a variable, or the one of this checkout."""
    return Path(environ.get(name) or Path(__file__).resolve().parents[1] / default)


def _share(environ: Mapping[str, str]) -> Path | None:
    """Return the directory of completion and manual pages, None if they are not wanted."""
    directory = environ.get("SHARE_DIR") or SHARE_DIR
    if directory == NO_SHARE:
        return None
    return Path(environ.get("DESTDIR", "") + directory)


def _choice(asked: str, target: Path, *, is_here: bool) -> str:
    """Return the choice of the engine. Raises InstallError for one that is none."""
    if asked and not engine_choice.CHOICES.fullmatch(asked):
        raise InstallError(
            f"ENGINE is '{asked}', not systemd, on-demand or none;"
            " on-demand:SECONDS takes 1 to 99999, none is no engine"
        )
    if asked == engine_choice.SYSTEMD and is_here and not Path("/run/systemd/system").is_dir():
        raise InstallError("ENGINE is systemd, but systemd does not run here: choose on-demand")
    before = engine_choice.read(target / _STORE)
    return asked or before or engine_choice.default(is_for_this_machine=is_here)


def _say(text: str) -> None:
    sys.stdout.write(f"install: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
