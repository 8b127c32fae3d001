"""Make dist/agent: `pycni agent` as a program of its own, Python and its libraries included.

    python -m deploy.freeze_agent [DIRECTORY]

The agent is not in the plugins' bundle: that has to start fast and stays small. An unchanged build
is not repeated.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from deploy import freeze
from deploy.freeze import ROOT, BuildError

BUILD = ROOT / "build/freeze-agent"
SOURCE = BUILD / "source"
# The digest of a build covers these files, Python's version and the packages.
INPUTS = (
    *("LICENSE", "NOTICE", "pyproject.toml", "requirements.lock"),
    *("agent", "cni_common", "commands", "plugins", "deploy/frozen/setns.c"),
    *(
        "deploy/frozen/of_pyroute2.py",
        "deploy/frozen/agent.spec",
        "deploy/freeze_agent.py",
        "deploy/freeze.py",
    ),
)
_MARK = "build"  # the file with the digest
_LICENCE = re.compile(r"(?i)(licen[cs]e|copying|notice)")
_EPOCH = "1767225600"  # in archives of modules: the same sources give the same bytes


def main(arguments: Sequence[str]) -> int:
    """Bring dist/agent up to date."""
    target = Path(arguments[0]).absolute() if arguments else ROOT / "dist/agent"
    try:
        make(target)
    except (BuildError, OSError) as error:
        _say(f"error: {error}")
        return 1
    return 0


def make(target: Path) -> None:
    """Bring a directory with the agent's program up to date. Raises BuildError, OSError."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the build directory is shared
        _make(target)


def _make(target: Path) -> None:
    digest = _digest()
    mark = target / _MARK
    if mark.exists() and mark.read_text().strip() == digest:
        _say(f"{target} is up to date, build {digest}")
        return
    if target.exists() and not mark.exists():
        raise BuildError(f"'{target}' would be replaced, but nothing here has made it: remove it")
    _say(f"freezing build {digest}")
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir()
    freeze.copy_pyroute2(SOURCE)
    freeze.compile_extension(SOURCE)
    made = _run_pyinstaller()
    freeze.copy_licences(made)
    _copy_licences_of_packages(made / "licences")
    (made / _MARK).write_text(f"{digest}\n")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, target)
    files = [file for file in target.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    _say(f"{target}: {size / 2**20:.1f} MiB in {len(files)} files")


def _digest() -> str:
    """Return the digest of all inputs of the build."""
    digest = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()}".encode())
    freeze.add_files(digest, INPUTS)
    return digest.hexdigest()[:12]


def _run_pyinstaller() -> Path:
    """Return the directory with the result of PyInstaller."""
    output = BUILD / "output"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ |= {
        "PYINSTALLER_CONFIG_DIR": str(BUILD / "cache"),
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": _EPOCH,
    }
    freeze.run(
        *(sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN"),
        *(f"--distpath={output}", f"--workpath={BUILD / 'work'}"),
        str(ROOT / "deploy/frozen/agent.spec"),
        environ=environ,
    )
    for file in (output / "agent/lib").rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
        if ".so" in file.name and not file.is_symlink():
            freeze.forget_library_path(file)
    return output / "agent"


def packages() -> set[str]:
    """Return the names of all packages that others have made and the last build has frozen."""
    archive = BUILD / "work/agent/PYZ-00.toc"
    entries = ast.literal_eval(archive.read_text())[1]
    modules = {name.partition(".")[0] for name, _, _ in entries}
    known = packages_distributions()
    return {name for module in modules for name in known.get(module, ())} - {"pycni"}


def _copy_licences_of_packages(target: Path) -> None:
    """Copy the licence texts of the packages, each into a directory of its own."""
    for package in sorted(packages()):
        texts = [
            Path(str(file.locate()))
            for file in distribution(package).files or ()
            if ".dist-info" in str(file) and _LICENCE.match(file.name)
        ]
        if not texts:
            raise BuildError(f"the package '{package}' has no licence text: see its sources")
        (target / package).mkdir(parents=True)
        for text in texts:
            shutil.copy(text, target / package)


def _say(text: str) -> None:
    sys.stderr.write(f"freeze: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
