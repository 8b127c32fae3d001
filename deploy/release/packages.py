"""The files of a release, from one bin directory: a tarball, a .deb and an .rpm.

The same bin directory and the same commit give the same bytes: all files have the time of the
commit, the owner root and fixed modes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from agent import shell_files
from agent.install import build_of
from deploy.freeze import glibc_of
from plugins import TYPES

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NFPM = ROOT / ".tools/release/nfpm"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Go and Debian call them
PAYLOAD = "/usr/lib/pycni/bin"
UNITS = ("pycni-engine.service", "pycni-engine.socket", "pycni-dhcp.service", "pycni-dhcp.socket")
_MANUAL = "man/pycni.1"
_NFPM = """\
name: pycni
arch: {arch}
platform: linux
version: {version}
version_schema: none
release: "1"
section: net
priority: optional
maintainer: the pycni authors
vendor: the pycni authors
license: Apache-2.0
mtime: {mtime}
description: |
  CNI plugins in Python: {plugins}.
  The plugins replace the reference plugins of the same names in /opt/cni/bin. Removal of the
  package brings back what was there before.
contents:
  - {{ src: {stage}/payload, dst: /usr/lib/pycni, type: tree }}
  - {{ src: {stage}/units, dst: /usr/lib/systemd/system, type: tree }}
  - {{ src: {stage}/doc, dst: /usr/share/doc/pycni, type: tree }}
{share}
  - {{ src: /opt/cni/bin/pycni, dst: /usr/sbin/pycni, type: symlink }}
scripts:
  postinstall: {scripts}/postinst
  preremove: {scripts}/prerm
  postremove: {scripts}/postrm
deb:
  compression: gzip
  fields: {{ Enhances: "containerd, cri-o, podman" }}
rpm:
  compression: gzip
  buildhost: localhost
  group: System Environment/Base
overrides:
  deb: {{ depends: ["libc6 (>= {glibc})"] }}
  rpm: {{ depends: ["glibc >= {glibc}"] }}
"""


class PackageError(Exception):
    """A package cannot be made; the message names the remedy."""


def architecture() -> str:
    """Return this machine's architecture as tarballs and Debian call it."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def version_of(bin_dir: Path) -> str:
    """Return the version of what is in a bin directory."""
    return build_of(bin_dir).rpartition("-")[0]


def epoch() -> int:
    """Return the seconds since 1970 that all files get: SOURCE_DATE_EPOCH, or the last commit's."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        return int(given)
    words = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0  # not a clone: still the same each time


def tarball(bin_dir: Path, folder: Path) -> Path:
    """Write pycni-VERSION-linux-ARCH.tar.gz, which is unpacked into a directory of plugins."""
    name = f"pycni-{version_of(bin_dir)}-linux-{architecture()}"
    with _stage(bin_dir) as stage:
        for file in (stage / "doc").iterdir():
            shutil.copy(file, stage / "payload/bin")
        without = shutil.ignore_patterns("*.gz")
        shutil.copytree(stage / "share", stage / "payload/bin/share", ignore=without)
        data = _tar(stage / "payload/bin")
    target = folder / f"{name}.tar.gz"
    target.write_bytes(gzip.compress(data, mtime=0))
    return target


def native(bin_dir: Path, folder: Path, kind: str) -> Path:
    """Write the package of a `kind`, "deb" or "rpm". Raises PackageError."""
    if not NFPM.exists():
        raise PackageError(f"there is no '{NFPM}': run 'deploy/prerequisites.sh --release'")
    arch, version = architecture(), version_of(bin_dir)
    name = {"deb": f"pycni_{version}_{arch}", "rpm": f"pycni-{version}-1.{platform.machine()}"}
    target = folder / f"{name[kind]}.{kind}"
    with _stage(bin_dir) as stage:
        configuration = stage / "nfpm.yaml"
        configuration.write_text(
            _NFPM.format(
                arch=arch,
                version=version,
                mtime=datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                plugins=", ".join(TYPES),
                stage=stage,
                share=_share(stage, kind),
                scripts=HERE / "scripts",
                glibc=glibc_of(bin_dir / ".pycni" / build_of(bin_dir)),
            )
        )
        words = [str(NFPM), "package", "--config", str(configuration), "--packager", kind]
        words += ["--target", str(target)]
        environ = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": str(epoch())}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"nfpm cannot make the .{kind}:\n{done.stdout}{done.stderr}")
    return target


def sums(files: Sequence[Path]) -> str:
    """Return the SHA-256 sums of files in the form of sha256sum(1)."""
    return "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)
    )


@contextmanager
def _stage(bin_dir: Path) -> Iterator[Path]:
    """Give a directory with payload, units, texts and what is for shells and man.

    All have fixed modes and one time.
    """
    with tempfile.TemporaryDirectory(prefix="pycni-release-") as folder:
        stage = Path(folder)
        shutil.copytree(bin_dir, stage / "payload/bin")
        for directory in ("units", "doc", "share"):
            (stage / directory).mkdir()
        for unit in UNITS:
            shutil.copy(ROOT / "deploy" / unit, stage / "units")
        for text in ("LICENSE", "NOTICE"):
            shutil.copy(ROOT / text, stage / "doc")
        for source, place in shell_files.PLACES.items():
            file = stage / "share" / place
            file.parent.mkdir(parents=True)
            data = (ROOT / "docs" / source).read_bytes()
            file.write_bytes(data)
            if source == _MANUAL:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(data, mtime=0))
        (stage / "doc/README.md").write_text(_readme(bin_dir))
        for path in stage.rglob("*"):
            is_program = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if is_program else 0o644)
        for path in (*stage.rglob("*"), stage):
            os.utime(path, (epoch(), epoch()))
        yield stage


def _share(stage: Path, kind: str) -> str:
    """Return the lines of nfpm for completion and the manual page."""
    lines = []
    for source, place in shell_files.PLACES.items():
        end = ".gz" if source == _MANUAL else ""
        file = f"{stage}/share/{place}{end}"
        if kind == "deb":  # Debian's zsh looks there for packages' files
            place = place.replace("zsh/site-functions", "zsh/vendor-completions")
        lines.append(f"  - {{ src: {file}, dst: /usr/share/{place}{end} }}")
        if kind == "rpm":  # it removes the directories that a package names, dpkg all empty ones
            folder = f"/usr/share/{Path(place).parent}"
            lines.append(f"  - {{ dst: {folder}, type: dir, file_info: {{ mode: 0755 }} }}")
    return "\n".join(lines)


def _readme(bin_dir: Path) -> str:
    words = {
        "VERSION": version_of(bin_dir),
        "ARCH": architecture(),
        "PLUGINS": ", ".join(TYPES),
        "GLIBC": glibc_of(bin_dir / ".pycni" / build_of(bin_dir)),
    }
    text = (HERE / "README.md").read_text()
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


def _tar(directory: Path) -> bytes:
    """Return an archive of what is in a directory; it depends on contents and modes alone."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            member = archive.gettarinfo(path, f"./{path.relative_to(directory)}")
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = epoch()
            if member.isreg():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)
    return output.getvalue()
