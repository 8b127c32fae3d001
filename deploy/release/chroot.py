"""A Debian of another release in a directory, made by mmdebstrap, and programs that run in it.

    python -m deploy.release.chroot     makes those that tests use, in .tools/debian

Each program gets mounts, processes and a network of its own: nothing stays mounted or running after
it, and nothing reaches it. Root alone can make and use such a directory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
_UNUSED = ("doc", "man", "locale", "info", "lintian")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT = """\
root=$1
shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""


# Those that tests install packages in; rpm is a program of Debian, too.
TESTED = {"bullseye": (), "bookworm": (), "trixie": ("rpm",)}
PLACE = Path(__file__).resolve().parents[2] / ".tools/debian"


class ChrootError(Exception):
    """The directory cannot be made; the message names the remedy."""


def missing() -> str:
    """Return why no such directory can be made here, "" where it can."""
    if os.geteuid():
        return "only root can make the file system of another Debian"
    for program in ("mmdebstrap", "unshare"):
        if not shutil.which(program):
            return f"there is no {program}: run 'deploy/prerequisites.sh --packages'"
    if not KEYRING.exists():
        return f"there is no '{KEYRING}': install the package debian-archive-keyring"
    return ""


def mirror() -> str:
    """Return where this machine takes Debian's packages from. Raises ChrootError."""
    for file in map(Path, _SOURCES):
        text = file.read_text() if file.exists() else ""
        found = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) (http\S+/debian)/?\s", text, re.MULTILINE)
        if found:
            return found[1]
    raise ChrootError(
        "apt has no mirror of Debian here: this works on Debian; on another system, whose apt must"
        " not get one, run it in a container or a chroot of Debian"
    )


def source_lines(release: str) -> str:
    """Return a sources.list of a release, with its sources and what was mended since.

    Raises ChrootError.
    """
    signed = f"[signed-by={KEYRING}]"
    places = ((mirror(), release), (f"{mirror()}-security", f"{release}-security"))
    return "".join(
        f"{kind} {signed} {place} {suite} main\n"
        for place, suite in places
        for kind in ("deb", "deb-src")
    )


def make(root: Path, release: str, packages: Sequence[str] = ()) -> None:
    """Make the file system of a release with its smallest set of packages, and `packages`.

    Nothing is done where it is there already. Raises ChrootError.
    """
    if root.exists():
        return
    if problem := missing():
        raise ChrootError(problem)
    new = root.with_name(f"{root.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    sources = root.with_name(f"{root.name}.list")
    sources.write_text(source_lines(release))
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNUSED]
    if packages:
        options.append(f"--include={','.join(packages)}")
    # Mounts, processes and names of its own: the packages' scripts run in here.
    command = [
        *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
        *("--mount-proc", "--", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        *("--format=directory", *options, release, str(new), str(sources)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(new, ignore_errors=True)
        raise ChrootError(f"mmdebstrap of Debian '{release}' failed:\n{done.stdout}{done.stderr}")
    new.rename(root)


def command(
    root: Path, *words: str, binds: Mapping[Path, str] | None = None, has_network: bool = False
) -> list[str]:
    """Return the command that runs `words` in the directory.

    `binds` are directories of this machine, and where they appear in there. Without `has_network`
    the program has a network of its own.
    """
    network = () if has_network else ("--net",)
    places = [text for outside, inside in (binds or {}).items() for text in (str(outside), inside)]
    return [
        *("unshare", "--mount", *network, "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
        *("--", "/bin/sh", "-euc", _MOUNT, "sh", str(root), *places, "--", *words),
    ]


def run(
    root: Path,
    *words: str,
    binds: Mapping[Path, str] | None = None,
    environ: Mapping[str, str] | None = None,
    has_network: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program in the directory as `command` says, and return its output and status.

    It sees no variable of this process but those in `environ`.
    """
    return subprocess.run(
        command(root, *words, binds=binds, has_network=has_network),
        env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def main() -> int:
    """Make the directories of the tests."""
    try:
        for release, packages in TESTED.items():
            make(PLACE / release, release, packages)
    except (ChrootError, OSError) as error:
        sys.stderr.write(f"chroot: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
