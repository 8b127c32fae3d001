"""Make dist/bin: the launchers, and the frozen program that they start, Python included.

    python -m deploy.freeze [DIRECTORY]

deploy/frozen/rewrite.py rewrites the sources of the suite; PyInstaller freezes the result
(deploy/frozen/pycni.spec). Its Python is the one that deploy/interpreter has built, where that was
done, else that of .venv. An unchanged build is not repeated.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import marshal
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from cni_common.kernel.link_deletion import SENDER
from cni_common.spec.names import VERSION
from deploy.frozen.rewrite import OURS, UnsupportedError, rewrite, standins
from deploy.interpreter.place import ENVIRONMENT, Interpreter, InterpreterError, find
from plugins import TYPES

ROOT = Path(__file__).resolve().parents[1]
FROZEN = ROOT / "deploy/frozen"
BUILD = ROOT / "build/freeze"
# The modules that PyInstaller analyses, and the same compiled; pycni.spec uses both directories.
SOURCE, COMPILED = BUILD / "source", BUILD / "compiled"
# The plugins' bundle can install itself; all else of the agent is a program of its own.
OF_AGENT = tuple(
    f"agent/{name}.py"
    for name in ("__init__", "engine_choice", "install", "install_command", "owners")
)
UNITS = (
    "deploy/pycni-engine.service",
    "deploy/pycni-engine.socket",
)  # `pycni install` installs them
# The digest of a build covers these files, Python's version and the packages.
INPUTS = (
    *("LICENSE", "NOTICE", "pyproject.toml", "requirements.lock"),
    *("launcher/launcher.c", "launcher/netlink_send.c", "launcher/Makefile"),
    *(f"deploy/interpreter/{name}" for name in ("__init__.py", "place.py", "Setup.local")),
    *("cni_common", "commands", "plugins", "deploy/frozen", "deploy/freeze.py"),
    *(*OF_AGENT, *UNITS),
)
# A stand-in for a queue that no socket of ours has, instead of a library of tests.
_WITHOUT_MOCK = {
    "from unittest import mock\n": "",
    "mock.Mock()": "type('NoQueue', (), {'__getattr__': lambda *_: lambda *_, **__: None})()",
}


class BuildError(Exception):
    """The bundle cannot be made; the message names the remedy."""


def main(arguments: Sequence[str]) -> int:
    """Bring dist/bin up to date."""
    target = Path(arguments[0]).absolute() if arguments else ROOT / "dist/bin"
    try:
        make(target, find())
    except (BuildError, InterpreterError, OSError, UnsupportedError) as error:
        _say(f"error: {error}")
        return 1
    return 0


def make(target: Path, own: Interpreter | None, *, with_snapshot: bool = True) -> None:
    """Bring a bin directory up to date, with a Python of our own or, for None, the one of .venv.

    A snapshot, with which calls begin, needs a Python of our own.
    Raises BuildError, OSError, UnsupportedError.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the build directory is shared
        _make(target, own, with_snapshot=with_snapshot and own is not None)


def _make(target: Path, own: Interpreter | None, *, with_snapshot: bool) -> None:
    build = f"{VERSION}-{_digest(own)}"
    if (target / ".pycni" / build / "pycni").exists():
        _say(f"{target} is up to date, build {build}")
        return
    foreign = {path.name for path in target.glob("*")} - {"pycni", ".pycni", *TYPES}
    if foreign:
        raise BuildError(f"'{target}' would be replaced, but it has other files: {foreign}")
    _say(f"freezing build {build}")
    for directory in (SOURCE, COMPILED, BUILD / "bin"):
        shutil.rmtree(directory, ignore_errors=True)
    SOURCE.mkdir()
    _write_modules(own.stdlib if own else Path(sysconfig.get_path("stdlib")))
    if not own:
        compile_extension(SOURCE)
    new = BUILD / "bin"
    (new / ".pycni").mkdir(parents=True)
    shutil.move(_run_pyinstaller(own), new / ".pycni" / build)
    copy_licences(new / ".pycni" / build, own.licence if own else None)
    _copy_units(new / ".pycni" / build / "units")
    if with_snapshot:
        _make_snapshot(new / ".pycni" / build)
    _make_launchers(new, build)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(new, target)
    _report(target, build)


def _digest(own: Interpreter | None) -> str:
    """Return the digest of all inputs of the build."""
    python = own.digest if own else ""
    tools = f"{sys.version} {python} {sysconfig.get_platform()} {shutil.which('musl-gcc')}"
    digest = hashlib.sha256(tools.encode())
    add_files(digest, INPUTS)
    return digest.hexdigest()[:12]


def add_files(digest: hashlib._Hash, names: Sequence[str]) -> None:
    """Add the sources below files and directories of the tree to a digest, with their names.

    Nothing of `__pycache__` is a source: while Python writes a file there, it has another name.
    """
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.parent.name != "__pycache__" and file.is_file():
                digest.update(f"{file.relative_to(ROOT)}\0".encode())
                digest.update(file.read_bytes())


# --- the input of PyInstaller ---


def _write_modules(stdlib: Path) -> None:
    """Write every module that is rewritten for the bundle. `stdlib` is the bundle's library."""
    shutil.copy(FROZEN / "start.py", SOURCE)
    for name, source in standins().items():
        _write_module(Path(f"{name}.py"), source)
    copy_pyroute2(SOURCE)
    _write_module(Path("ipaddress.py"), (stdlib / "ipaddress.py").read_bytes())
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            _write_module(path.relative_to(ROOT), path.read_bytes())
    for name in OF_AGENT:
        _write_module(Path(name), (ROOT / name).read_bytes())


def copy_pyroute2(directory: Path) -> None:
    """Put pyroute2 into `directory`, of which only that is loaded, and frozen, that is used."""
    package = directory / "pyroute2"
    shutil.copytree(Path(sysconfig.get_path("purelib"), "pyroute2"), package)
    shutil.copy(FROZEN / "of_pyroute2.py", package / "__init__.py")
    socket = package / "netlink/rtnl/iprsocket.py"
    text = socket.read_text()
    for old, new in _WITHOUT_MOCK.items():
        if text.count(old) != 1:
            raise BuildError(f"'{socket}' has another use of unittest.mock: adapt _WITHOUT_MOCK")
        text = text.replace(old, new)
    socket.write_text(text)


def _write_module(file: Path, source: bytes) -> None:
    tree = rewrite(".".join(file.with_suffix("").parts).removesuffix(".__init__"), source)
    for directory in (SOURCE, COMPILED):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
    (SOURCE / file).write_text(ast.unparse(tree))
    # Compiled from the tree, not from the text: tracebacks show the original's lines.
    code = compile(tree, str(file), "exec", dont_inherit=True, optimize=2)
    # Flags, date and size of the source: not checked, since there is no source.
    header = MAGIC_NUMBER + bytes(12)
    (COMPILED / file).with_suffix(".pyc").write_bytes(header + marshal.dumps(code))


def compile_extension(directory: Path) -> None:
    """Make the module `_setns` in `directory`. Raises BuildError."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise BuildError(f"there is no '{include}/Python.h': run 'deploy/prerequisites.sh --dist'")
    run(
        *("cc", "-shared", "-fPIC", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"),
        *("-Wno-missing-field-initializers", f"-isystem{include}"),
        *("-o", str(directory / f"_setns{EXTENSION_SUFFIXES[0]}"), str(FROZEN / "setns.c")),
    )


def _run_pyinstaller(own: Interpreter | None) -> Path:
    """Return the directory with the result of PyInstaller."""
    output = BUILD / "output"
    # PyInstaller's cache of stripped libraries belongs to this tree, not to the user's home.
    environ = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(BUILD / "cache")}
    environ = {name: value for name, value in environ.items() if not name.startswith("PYTHON")}
    environ["PYTHONHASHSEED"] = "0"  # the same sources give the same bytes
    if own:
        environ[ENVIRONMENT] = str(own.directory)
    run(
        *(sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN"),
        *(f"--distpath={output}", f"--workpath={BUILD / 'work'}", str(FROZEN / "pycni.spec")),
        environ=environ,
    )
    for file in (output / "pycni/lib").rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
        if ".so" in file.name:
            forget_library_path(file)
    if own:
        shutil.copy(own.program, output / "pycni/pycni")
    return output / "pycni"


def _make_snapshot(bundle: Path) -> None:
    """Have the program keep what it is once all plugins are imported (deploy/frozen/start.py).

    Raises BuildError.
    """
    snapshot = bundle / "lib/snapshot"
    with snapshot.open("wb") as file:
        done = subprocess.run(
            ["make-snapshot"],
            executable=bundle / "pycni",
            cwd=bundle / "lib",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        raise BuildError(f"'{bundle}/pycni' cannot make its snapshot:\n{done.stderr}")
    snapshot.chmod(0o644)  # whatever the umask is


def forget_library_path(file: Path) -> None:
    """Set a library's search path to its own directory instead of the build machine's.

    Otherwise a user that can make the build machine's directory on a node could have root load a
    library from it.
    """
    beside = b"$ORIGIN"
    for path in re.findall(r"\(R(?:UN)?PATH\).*\[(/.*)\]", run("readelf", "-dW", str(file))):
        old = path.encode() + b"\0"
        if len(old) <= len(beside):
            raise BuildError(f"'{file}' looks for libraries in '{path}': use another Python")
        file.write_bytes(file.read_bytes().replace(old, beside.ljust(len(old), b"\0")))


def copy_licences(bundle: Path, python: Path | None = None) -> None:
    """Copy the licence texts that every copy of the program must contain.

    `python` is the file with Python's licence, None for that of this process.
    """
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, bundle)
    python = python or Path(sysconfig.get_path("stdlib"), "LICENSE.txt")
    if python.exists():
        shutil.copy(python, bundle / "LICENSE.python")
    else:
        _say(f"there is no '{python}': put Python's licence into '{bundle.name}/LICENSE.python'")


def _copy_units(directory: Path) -> None:
    directory.mkdir()
    for name in UNITS:
        shutil.copy(ROOT / name, directory)


def _make_launchers(directory: Path, build: str) -> None:
    """Make an executable of each plugin, and link it into `directory`; a plain copy works as well.

    Each knows its type, so that it can be given another name. agent/install.py recognises its own
    files by the launchers in the bundle. Beside the frozen program comes what waits for the kernel.
    """
    launchers = directory / f".pycni/{build}/launcher"
    launchers.mkdir()
    make = ("make", "--no-print-directory", "-C", str(ROOT / "launcher"))
    for name in ("pycni", *TYPES):
        run(
            *make,
            *(f"OUTPUT={launchers / name}", f"BUILD={build}", f"BUNDLE=.pycni/{build}/pycni"),
            f"TYPE={name if name in TYPES else ''}",
        )
        os.link(launchers / name, directory / name)
    run(*make, f"OUTPUT={launchers.parent / SENDER}", "SOURCE=netlink_send.c")


# --- output ---


def _report(target: Path, build: str) -> None:
    bundle = target / ".pycni" / build
    files = [file for file in bundle.rglob("*") if file.is_file()]
    launcher = (bundle / "launcher/pycni").stat().st_size
    size = sum(file.stat().st_size for file in files)
    _say(
        f"{target}: launcher {launcher / 1024:.0f} KiB, bundle {size / 2**20:.1f} MiB in"
        f" {len(files)} files; runs with glibc {glibc_of(bundle)} or newer"
    )


def glibc_of(bundle: Path) -> str:
    """Return the version of glibc that a bundle needs: the newest that any of its files names."""
    needed = {
        tuple(map(int, number.split(b".")))
        for file in bundle.rglob("*")
        if file.is_file() and (file.name in ("pycni", *TYPES) or ".so" in file.name)
        for number in re.findall(rb"\0GLIBC_(2\.\d+)", file.read_bytes())
    }
    return ".".join(map(str, max(needed)))


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    """Return what a program prints. Raises BuildError, with the output of one that fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise BuildError(f"'{' '.join(command)}' failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _say(text: str) -> None:
    sys.stderr.write(f"freeze: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
