"""Make dist/bin: the launchers, and the program that they start, with Python and all in it.

    python -m deploy.freeze [DIRECTORY]

The program is CPython's own library with deploy/frozen/boot.c around it. Every module of the
suite, of pyroute2 and of the standard library that they may import is compiled into the
executable. What serves only to explain why a configuration is refused lies beside it as files.
"""

import _imp
import ast
import fcntl
import hashlib
import marshal
import os
import re
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from deploy.frozen.rewrite import OURS, UnsupportedError, rewrite, standins
from plugins import TYPES

ROOT = Path(__file__).resolve().parents[1]
FROZEN = ROOT / "deploy/frozen"
BUILD = ROOT / "build/freeze"
# Another build is what has other contents of these, another Python or other packages.
INPUTS = ("cni_common", "plugins", "launcher", "deploy/frozen", "deploy/freeze.py")

# What the standard library and jsonschema mention, but do without or in functions that are never
# called here. Nothing of the suite may import one of these: then it has to leave the list.
EXCLUDED = frozenset(
    """
    _hashlib _pydatetime _pydecimal _pyio _strptime _uuid argparse asyncio bdb bz2 calendar cmd
    code concurrent ctypes curses difflib distutils doctest email ensurepip getopt getpass gettext
    gzip html http importlib._bootstrap importlib._bootstrap_external importlib.metadata lzma
    mimetypes multiprocessing netrc nturl2path optparse pdb pickle plistlib py_compile pydoc
    readline requests runpy site socketserver sqlite3 ssl statistics tarfile tkinter tracemalloc
    tty unittest urllib.error urllib.request urllib3 webbrowser xml xmlrpc zlib zoneinfo
    """.split()  # noqa: SIM905 - a list of seventy strings is no better
)
# Imported all the same: where os.setns is missing, but boot.c provides it; as other names of
# what the interpreter starts with.
TOLERATED = ("ctypes", "importlib._bootstrap")
# What C code imports, or the import system itself: no import statement shows it.
HIDDEN = (
    "encodings.aliases",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_16",
    "encodings.utf_16_be",
    "encodings.utf_16_le",
    "encodings.utf_32",
    "encodings.utf_32_be",
    "encodings.utf_32_le",
    "encodings.utf_8",
    "encodings.utf_8_sig",
    "importlib.readers",
    "traceback",
    "warnings",
)
# When an import is executed: with the module; so, but it may fail or depend; in a function.
ALWAYS, PERHAPS, LATER = range(3)
# Packages that read files of their own.
WITH_DATA = ("jsonschema_specifications",)
# pyroute2's own __init__ would import all of it, see cni_common/netlink.py.
EMPTIED = ("pyroute2",)
# Part of the machine, as they go with its kernel and its dynamic linker.
SYSTEM_LIBRARY = re.compile(r"(ld-linux.*|libc|libdl|libm|libpthread|librt|libutil)\.so\.")


class BuildError(Exception):
    """The bundle cannot be made; says what to do."""


@dataclass(frozen=True)
class Module:
    """A module as it was found on this machine."""

    name: str
    path: Path
    is_package: bool
    code: bytes  # empty for an extension module and for what libpython itself contains

    @property
    def is_extension(self) -> bool:
        """Whether it is a shared library."""
        return self.path.suffix == ".so"


def main(arguments: Sequence[str]) -> int:
    """Bring dist/bin up to date."""
    target = Path(arguments[0]).absolute() if arguments else ROOT / "dist/bin"
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        with (BUILD / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the build directory is shared
            _make(target)
    except (BuildError, OSError, UnsupportedError) as error:
        _say(f"error: {error}")
        return 1
    return 0


def _make(target: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    build = f"{version}-{_digest()}"
    if (target / ".pycni" / build / "pycni").exists():
        _say(f"{target} is up to date, build {build}")
        return
    foreign = {path.name for path in target.glob("*")} - {"pycni", ".pycni", *TYPES}
    if foreign:
        raise BuildError(f"'{target}' would be replaced, but it has other files: {foreign}")
    _say(f"freezing build {build}")
    new = BUILD / "bin"
    shutil.rmtree(new, ignore_errors=True)
    bundle = new / ".pycni" / build
    (bundle / "lib").mkdir(parents=True)
    modules = Collector().collect()
    _compile_program(modules, bundle / "pycni", version, build)
    _copy_modules(modules, bundle / "lib")
    _copy_libraries(modules, bundle / "lib")
    _make_launchers(new, version, build)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(new, target)
    _report(target, build)


def _digest() -> str:
    """Return what differs when anything does that the result is made of."""
    digest = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()}".encode())
    for name in ("pyproject.toml", "requirements.lock", *INPUTS):
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(f"{file.relative_to(ROOT)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


# --- which modules ---


class Collector:
    """Follows the imports from the program's start to everything that it may ever import."""

    def __init__(self) -> None:
        self._found: dict[str, Module] = {}
        self._later: list[str] = []
        self._standins = standins()
        self._path = [
            str(ROOT),
            sysconfig.get_path("stdlib"),
            str(sysconfig.get_config_var("DESTSHARED")),
            sysconfig.get_path("purelib"),
            sysconfig.get_path("platlib"),
        ]

    def collect(self) -> list[Module]:
        """Return the modules, about in the order in which a process imports them."""
        start = FROZEN / "start.py"
        self._add_source("__main__", start, start.read_bytes())
        self._later += HIDDEN
        while self._later:
            self._add(self._later.pop(0))
        return list(self._found.values())

    def _add(self, name: str) -> None:
        """Add the module `name`, if there is one, with its packages and imports."""
        package = name.rpartition(".")[0]
        if package:
            self._add(package)
        if name in self._found or name in sys.builtin_module_names or _is_excluded(name):
            return
        if package and not (package in self._found and self._found[package].is_package):
            return  # a name in a module, not a module
        if name in self._standins:
            self._add_source(name, Path(f"{name}.py"), self._standins[name].encode())
            return
        where = [str(self._found[package].path.parent)] if package else self._path
        spec = PathFinder.find_spec(name, where)
        if spec is None or spec.origin is None:
            return
        path = Path(spec.origin)
        if path.suffix == ".so":
            self._found[name] = Module(name, path, is_package=False, code=b"")
        elif path.suffix == ".py":
            source = b"" if name in EMPTIED else path.read_bytes()
            is_package = spec.submodule_search_locations is not None
            self._add_source(name, path, source, is_package=is_package)

    def _add_source(
        self, name: str, path: Path, source: bytes, *, is_package: bool = False
    ) -> None:
        tree = rewrite(name, source)
        code = b""
        if not _imp.is_frozen(name):  # libpython's own are faster than any of ours
            code = marshal.dumps(compile(tree, f"<{name}>", "exec", dont_inherit=True, optimize=2))
        self._found[name] = Module(name, path, is_package, code)
        package = name if is_package else name.rpartition(".")[0]
        for imported, when in _imports(tree, package):
            if _is_excluded(imported):
                if not imported.startswith(TOLERATED) and (when == ALWAYS or name.startswith(OURS)):
                    raise BuildError(
                        f"{name} imports {imported}: take that off EXCLUDED in deploy/freeze.py"
                    )
            elif when == LATER:
                self._later.append(imported)
            else:
                self._add(imported)


def _is_excluded(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in EXCLUDED for count in range(1, len(parts) + 1))


def _imports(tree: ast.AST, package: str, when: int = ALWAYS) -> Iterator[tuple[str, int]]:
    """Give the modules that a tree imports, and when."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, when
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = ".".join(base) if node.level else ""
            module = ".".join(part for part in (prefix, node.module) if part)
            yield module, when
            for alias in node.names:
                yield f"{module}.{alias.name}", when
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(node, package, LATER)
        elif isinstance(node, ast.Try | ast.If):
            yield from _imports(node, package, max(when, PERHAPS))
        else:
            yield from _imports(node, package, when)


# --- what lies in the bundle ---


def _is_file(module: Module) -> bool:
    """Tell whether a module lies beside the executable: it may have data there."""
    return module.path.is_relative_to(sysconfig.get_path("purelib")) and not module.name.startswith(
        EMPTIED
    )


def _compile_program(modules: Sequence[Module], program: Path, version: str, build: str) -> None:
    blob = bytearray()
    rows = []
    for module in modules:
        if module.code and not _is_file(module):
            rows.append(
                f'{{.name = "{module.name}", .code = code + {len(blob)},'
                f" .size = {len(module.code)}, .is_package = {int(module.is_package)}}},\n"
            )
            blob += module.code + bytes(-len(module.code) % 16)
    (BUILD / "code").write_bytes(blob)
    (BUILD / "modules.h").write_text(
        "extern const unsigned char code[];\n"
        '__asm__(".section .rodata\\n.balign 16\\ncode: .incbin \\"'
        f'{BUILD / "code"}\\"\\n.previous\\n");\n'
        f"static const struct _frozen modules[] = {{\n{''.join(rows)}{{0}}}};\n"
    )
    _run(
        "cc",
        *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"),
        f'-DVERSION="{version}"',
        f'-DBUILD="{build}"',
        f"-isystem{sysconfig.get_path('include')}",
        f"-isystem{sysconfig.get_path('platinclude')}",
        f"-I{BUILD}",
        str(FROZEN / "boot.c"),
        *("-o", str(program)),
        str(_libpython()),
        # Not the newer RUNPATH: that does not hold for the libraries of a library.
        "-Wl,--disable-new-dtags,-rpath,$ORIGIN/lib",
        "-s",
    )


def _libpython() -> Path:
    name = str(sysconfig.get_config_var("INSTSONAME"))
    for variable in ("LIBDIR", "LIBPL"):
        directory = str(sysconfig.get_config_var(variable))
        for path in (Path(directory) / name, Path(directory) / _multiarch() / name):
            if path.suffix != ".a" and path.exists():
                return path
    raise BuildError(f"there is no {name}: on Debian it is in libpython3.N, for others see README")


def _multiarch() -> str:
    return str(sysconfig.get_config_var("MULTIARCH") or "")


def _copy_modules(modules: Sequence[Module], library: Path) -> None:
    for module in modules:
        relative = Path(*module.name.split("."))
        if module.is_extension:
            _copy_binary(module.path, library / f"{relative}{EXTENSION_SUFFIXES[0]}")
        elif module.code and _is_file(module):
            file = relative / "__init__.pyc" if module.is_package else relative.with_suffix(".pyc")
            (library / file).parent.mkdir(parents=True, exist_ok=True)
            # Flags, date and size of a source: none of them is looked at where there is none.
            (library / file).write_bytes(MAGIC_NUMBER + bytes(12) + module.code)
        if module.name in WITH_DATA:
            shutil.copytree(
                module.path.parent,
                library / relative,
                ignore=shutil.ignore_patterns("*.py", "__pycache__", "tests"),
                dirs_exist_ok=True,
            )


def _copy_libraries(modules: Sequence[Module], library: Path) -> None:
    """Copy libpython, and what it and the extension modules need beyond the C library."""
    waiting = [_libpython()]
    _copy_binary(_libpython(), library / _libpython().name)
    waiting += [module.path for module in modules if module.is_extension]
    for path in waiting:
        for line in _run("ldd", str(path)).splitlines():
            name, _, rest = line.strip().partition(" => ")
            if not rest or SYSTEM_LIBRARY.match(name) or (library / name).exists():
                continue
            if rest.startswith("not found"):
                raise BuildError(f"{path} needs {name}, which is not on this machine")
            _copy_binary(Path(rest.partition(" (")[0]), library / name)


def _copy_binary(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _run("strip", "--strip-unneeded", "-o", str(target), str(source))
    target.chmod(0o644)


def _make_launchers(directory: Path, version: str, build: str) -> None:
    """One executable, linked under each name: a plain copy of the directory works as well.

    deploy/install.sh knows its own files by the one that lies in the bundle.
    """
    first = directory / f".pycni/{build}/launcher"
    _run(
        *("make", "--no-print-directory", "-C", str(ROOT / "launcher")),
        *(f"OUTPUT={first}", f"VERSION={version}", f"BUNDLE=.pycni/{build}/pycni"),
    )
    for name in ("pycni", *TYPES):
        os.link(first, directory / name)


# --- talk ---


def _report(target: Path, build: str) -> None:
    bundle = target / ".pycni" / build
    library = [file for file in (bundle / "lib").rglob("*") if file.is_file()]
    binaries = [target / "pycni", bundle / "pycni", *(f for f in library if ".so" in f.name)]
    needed = {
        tuple(map(int, number.split(b".")))
        for file in binaries
        for number in re.findall(rb"\0GLIBC_(2\.\d+)", file.read_bytes())
    }
    sizes = {
        "launcher": (target / "pycni").stat().st_size,
        "program": (bundle / "pycni").stat().st_size,
        f"{len(library)} files in lib": sum(file.stat().st_size for file in library),
    }
    text = ", ".join(f"{what} {size / 1024:.0f} KiB" for what, size in sizes.items())
    glibc = ".".join(map(str, max(needed, default=())))
    _say(f"{target}: {text}; runs with glibc {glibc} or newer")


def _run(*command: str) -> str:
    import subprocess

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"'{' '.join(command)}' failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _say(text: str) -> None:
    sys.stderr.write(f"freeze: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
