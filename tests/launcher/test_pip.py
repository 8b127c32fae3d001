"""`pip install .`: the command pycni, without plugins, for a look at a version and at the help."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from email import message_from_string
from pathlib import Path

import pytest

from cni_common.spec.names import VERSION
from deploy.frozen.rewrite import OURS
from tests.machine import ROOT

pytestmark = pytest.mark.timeout(90)  # building a wheel takes seconds, on a busy machine many

# Of a checkout, without what tests, builds and virtual environments leave there.
PACKAGES = (*OURS, "agent")
FILES = (
    *("LICENSE", "NOTICE", "README.md", "pyproject.toml", "docs/completion", "docs/man"),
    *PACKAGES,
)
SHARED = (  # below share/, where bash, fish, man and zsh look
    *("bash-completion/completions/pycni", "fish/vendor_completions.d/pycni.fish"),
    *("man/man1/pycni.1", "zsh/site-functions/_pycni"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the suite, installed from a clean copy of the sources.

    The packages that the suite needs are those of the tests: nothing is fetched.
    """
    place = tmp_path_factory.mktemp("pip")
    (place / "source").mkdir()
    for name in FILES:
        source, copy = ROOT / name, place / "source" / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    venv.create(place / "venv", symlinks=True)
    packages = _site_packages(place / "venv")
    (packages / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = str(place / "venv/bin/python")
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--no-compile"]
    subprocess.run(
        [*pip, "--python", python, "install", *options, str(place / "source")],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=place,
    )
    return place / "venv"


def _site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def _run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=installed,
        env={"PATH": "/usr/bin:/bin"},
    )


def test_it_installs_the_suite_and_the_command(installed: Path) -> None:
    """All modules are there and nothing else is; `pycni version` and `pycni --help` work."""
    packages = _site_packages(installed)
    [info] = packages.glob("pycni-*.dist-info")
    metadata = message_from_string((info / "METADATA").read_text())

    expected = {
        str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")
    }
    recorded = {line.split(",")[0] for line in (info / "RECORD").read_text().splitlines()}
    assert {name for name in recorded if not name.startswith(info.name)} == {
        *expected,
        "../../../bin/pycni",
        *(f"../../../share/{name}" for name in SHARED),
    }
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    program = str(installed / "bin/pycni")
    version = _run(installed, program, "version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.splitlines()[:2] == [f"version  {VERSION}", "build    sources"]
    helped = _run(installed, program, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "list the addresses that are given out" in helped.stdout


def test_without_root_it_says_so_in_one_line(installed: Path) -> None:
    """Each command that looks at the node names what it lacks, and shows no traceback."""
    program = str(installed / "bin/pycni")

    for words in (["leases"], ["audit"], ["reclaim"], ["explain", "c1"], ["engine"]):
        # In a user namespace without a mapping the caller is nobody, and still may read the files.
        done = _run(installed, "unshare", "--user", program, *words)

        assert done.returncode not in (0, 2), words
        assert done.stdout == ""
        assert done.stderr.startswith(f"pycni {words[0]}: needs root: ")
        assert done.stderr.count("\n") == 1


def test_lint_works_by_it(installed: Path, tmp_path: Path) -> None:
    """The program that pip installs checks configurations, as any user."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")

    done = _run(installed, str(installed / "bin/pycni"), "lint", str(tmp_path / "conf"))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("files: clean\n")


def test_shells_and_man_find_their_files(installed: Path) -> None:
    """Completion and the manual page are where bash, zsh, fish and man look."""
    assert [one for one in SHARED if not (installed / "share" / one).is_file()] == []
