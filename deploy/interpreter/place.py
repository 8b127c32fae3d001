"""The Python that deploy/interpreter has built: where it is, and what of it a bundle contains."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".tools/interpreter"
RELEASE = "bullseye"  # the oldest Debian whose glibc the bundle runs with; it is below BUILT
MINOR = (3, 11)  # of the sources that are built: bytecode and wheels are for one minor version
ENVIRONMENT = "PYCNI_INTERPRETER"  # tells pycni.spec the directory
_SETUP = Path(__file__).with_name("Setup.local")


class InterpreterError(Exception):
    """The interpreter cannot be built or used; the message names the remedy."""


@dataclass(frozen=True)
class Interpreter:
    """A directory that deploy/interpreter has made."""

    directory: Path

    @property
    def program(self) -> Path:
        """Return the executable: Python, its extension modules, and what runs start.py."""
        return self.directory / "pycni"

    @property
    def stdlib(self) -> Path:
        """Return the directory of the standard library's modules."""
        return self.directory / "Lib"

    @property
    def licence(self) -> Path:
        """Return the file with the licence of CPython."""
        return self.directory / "LICENSE"

    @property
    def source(self) -> str:
        """Return the version of the Debian source package that was compiled."""
        return (self.directory / "source").read_text().strip()

    @cached_property
    def digest(self) -> str:
        """Return the digest of the program."""
        return hashlib.sha256(self.program.read_bytes()).hexdigest()[:12]

    def libraries(self, found: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Return the shared libraries of a bundle.

        `found` are those that PyInstaller has found: names in the bundle, files and kinds. Those of
        packages stay, and libgcc_s, which they need, is the one of the Debian that was built in.
        Extension modules of Python are in the program. Raises InterpreterError for one that is not.
        """
        kept = []
        for name, file, kind in found:
            if "lib-dynload" in Path(name).parts:
                module = Path(name).name.partition(".")[0]
                if module not in extension_modules():
                    raise InterpreterError(
                        f"the bundle needs the module '{module}': add it to '{_SETUP}'"
                    )
            elif Path(name).name == "libgcc_s.so.1":
                kept.append((name, str(self.directory / "libgcc_s.so.1"), kind))
            elif len(Path(name).parts) > 1:
                kept.append((name, file, kind))
        return kept


def extension_modules() -> set[str]:
    """Return the names of the extension modules that are linked into the program."""
    lines = _SETUP.read_text().splitlines()
    return {line.split()[0] for line in lines if line and line[0] not in "#*"}


def is_own(bundle: Path) -> bool:
    """Tell whether the program of a bundle is one that deploy/interpreter has built."""
    return (bundle / "lib/start").exists()


def find() -> Interpreter | None:
    """Return the interpreter that was built last, None where there is none.

    Raises InterpreterError when the Python of .venv cannot compile for it.
    """
    current = BUILT / "current"
    if not current.exists():
        return None
    if sys.version_info[:2] != MINOR:
        needed = ".".join(map(str, MINOR))
        raise InterpreterError(
            f"the interpreter in '{BUILT}' is Python {needed}, and .venv has another version: make"
            f" .venv with Python {needed}, or remove '{BUILT}' to freeze with that of .venv"
        )
    return Interpreter(current.resolve())


def of_environment(environ: Mapping[str, str]) -> Interpreter | None:
    """Return the interpreter that a variable of the environment names, None without it."""
    directory = environ.get(ENVIRONMENT)
    return Interpreter(Path(directory)) if directory else None
