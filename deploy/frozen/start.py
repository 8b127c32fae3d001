"""The first module that the bundle runs: it prepares the process and runs plugins/__main__.py.

With a Python of our own this module runs once when the bundle is made, and imports the modules that
plugins need. deploy/interpreter/program.c keeps that process in a file, a snapshot. Each call of a
plugin goes on from there by `resume`.
"""

import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any, NoReturn

# The runtime's variables, and the names under which launcher/launcher.c keeps their values.
_SET_ASIDE = {
    b"LD_LIBRARY_PATH": b"LD_LIBRARY_PATH_ORIG",
    b"LD_PRELOAD": b"_PYCNI_LD_PRELOAD",
    b"LD_AUDIT": b"_PYCNI_LD_AUDIT",
}
# Variables of the bootloader and of program.c, which would affect programs started from here.
_OURS = (
    *(b"_PYI_ARCHIVE_FILE", b"_PYI_LINUX_PROCESS_NAME", b"_PYI_PARENT_PROCESS_LEVEL"),
    b"_PYCNI_NO_SNAPSHOT",
)
_MAKER = "make-snapshot"  # sys.argv[0] of the process that program.c makes the snapshot of

# What the functions of plugins import for an ordinary call; all else is not in the snapshot.
# First what most calls use, so that it lies together in few pages.
_FOR_CALLS = (
    *("plugins.__main__", "cni_common.serve.main", "cni_common.node.host"),
    *("cni_common.serve.protocol", "standin_signal", "plugins.loopback", "plugins.bridge"),
    *("plugins.host_local", "standin_hashlib", "_sha256", "cni_common.node.plugin_files"),
    *("cni_common.kernel.link_deletion", "array", "socket", "encodings.ascii"),
    *("plugins.portmap.redirects", "plugins.firewall.dbus", "plugins.firewall.firewalld"),
    *("plugins.bandwidth.drift", "plugins.bandwidth.ifb", "plugins.bandwidth.parts"),
    *("plugins.bandwidth.shaper", "plugins.bandwidth.tc", "json", "cni_common.serve.on_demand"),
)


# Code and message of an error of CNI.
_BROKEN = 999, b"pycni cannot start, see its stderr; install it again"
_REMOVED = 11, b"pycni was replaced or removed during the call; try again"


class Modules:
    """A file that pycni.spec writes, in sys._MEIPASS.

    Opening one for each module would take a sixth of a start.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = -1
        self._open()
        size = int.from_bytes(posix.pread(self._fd, 4, 0), "little")
        self._start = 4 + size  # of what the index points to
        # By its name, where a module begins, its size, and whether it is a package.
        index: dict[str, tuple[int, int, bool]] = marshal.loads(posix.pread(self._fd, size, 4))
        self._index = index

    def _open(self) -> None:
        path = f"{sys._MEIPASS}/{self._name}"  # type: ignore[attr-defined]
        low = []  # descriptors of standard streams that are closed: the file must not be one
        while (fd := posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)) <= 2:
            low.append(fd)
        for closed in low:
            posix.close(closed)
        self._fd = fd

    def close(self) -> None:
        """Close the file until it is needed again."""
        posix.close(self._fd)
        self._fd = -1

    def hold(self) -> None:
        """Open the file if it is there: whoever removes the bundle may do so during a call."""
        try:
            self._open()
        except OSError:
            return

    def names(self) -> "Iterable[str]":
        """Return the names of all modules."""
        return self._index

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        """Return how to import the module, None when it is not here."""
        if name not in self._index:
            return None
        return ModuleSpec(name, self, is_package=self._index[name][2])  # type: ignore[arg-type]

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave that to the import system."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module."""
        offset, size, _ = self._index[module.__name__]
        if size:  # there are empty packages
            if self._fd < 0:
                self._open()
            code = marshal.loads(posix.pread(self._fd, size, self._start + offset))
            exec(code, module.__dict__)


class OtherModules:
    """The file with what no plugin needs to start, opened for the first module not found before.

    That is last of all places; the file's own modules are then looked for in it first.
    """

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        """Return how to import the module, None when it is not here."""
        sys.meta_path.remove(self)
        modules = Modules("other-modules")
        sys.meta_path.insert(1, modules)
        return modules.find_spec(name)


def _import_os() -> None:
    """Import `os` with two plain classes for 25 abstract ones, which take a tenth of a start.

    A later import of collections.abc gets the real ones.
    """
    name = "_collections_abc"
    if name not in sys.modules:
        sys.modules[name] = __import__(f"standin_{name}")
        __import__("os")
        del sys.modules[name]


def _restore_environment() -> None:
    """Take away what the launcher has added to the environment, and put back what it has hidden."""
    environ = posix.environ  # os.environ is a view of it
    for name in _OURS:
        if environ.pop(name, None) is not None:
            posix.unsetenv(name)
    for name, kept_as in _SET_ASIDE.items():
        if environ.pop(name, None) is not None:
            posix.unsetenv(name)
        original = environ.pop(kept_as, None)
        if original is not None:
            posix.unsetenv(kept_as)
            posix.putenv(name, original)
            environ[name] = original


def _prepare() -> None:
    """Let modules come from the two files, and complete `os`."""
    sys.meta_path.insert(0, Modules("modules"))
    _import_os()
    sys.meta_path.append(OtherModules())
    import os

    if not hasattr(os, "setns"):  # new in Python 3.12
        from _setns import setns

        os.setns = setns  # type: ignore[attr-defined]


def _import_for_calls() -> None:
    """Import what the snapshot shall have, and leave no file open."""
    for name in _FOR_CALLS:
        __import__(name)
    from plugins import TYPES, load

    for plugin in TYPES:
        load(plugin)
    for finder in sys.meta_path:
        if isinstance(finder, Modules):
            finder.close()


def _move(arguments: "Sequence[str]", environ: "Iterable[bytes]", program: str, lib: str) -> None:
    """Give this process, which comes from a snapshot, its own facts in place of the maker's."""
    sys.argv[:] = sys.orig_argv[:] = arguments
    posix.environ.clear()
    for entry in environ:
        name, separator, value = entry.partition(b"=")
        if separator:
            posix.environ.setdefault(name, value)  # the first counts, as for getenv(3)
    sys.executable = sys._base_executable = program  # type: ignore[attr-defined]
    sys._MEIPASS = lib  # type: ignore[attr-defined]
    for prefix in ("prefix", "base_prefix", "exec_prefix", "base_exec_prefix", "_stdlib_dir"):
        setattr(sys, prefix, lib)
    sys.path[:] = [lib]
    sys.path_importer_cache.clear()
    first = sys.meta_path[0]
    if isinstance(first, Modules):
        first.hold()


def _run() -> int:
    _restore_environment()
    from plugins.__main__ import run

    return run()


def _is_of_removed(error: Exception) -> bool:
    """Tell whether a module was to be imported from a bundle that is gone."""
    name = getattr(error, "filename", None)
    is_of_bundle = isinstance(name, str) and name.startswith(f"{sys._MEIPASS}/")  # type: ignore[attr-defined]
    if not isinstance(error, ImportError) and not is_of_bundle:
        return False
    try:
        posix.stat(sys.executable)
    except OSError:
        return True
    return False


def _end(run: "Callable[[], int]") -> "NoReturn":
    """Run the program, and end the process."""
    status = 1
    try:
        status = run()
    except Exception as error:  # noqa: BLE001 - the runtime must get a CNI error object all the same
        is_call = posix.environ.get(b"CNI_COMMAND")
        told = _REMOVED if is_call and _is_of_removed(error) else _BROKEN
        if told is _BROKEN:
            sys.excepthook(type(error), error, error.__traceback__)
        if is_call:
            posix.write(1, b'{"cniVersion":"1.1.0","code":%d,"msg":"%s"}\n' % told)
    finally:
        posix._exit(status)  # taking every module apart would take milliseconds


def resume(*facts: "Any") -> "NoReturn":
    """Go on from the snapshot, in a process of which `facts` are arguments of `_move`."""

    def run() -> int:
        _move(*facts)
        return _run()

    _end(run)


def begin() -> int:
    """Start without a snapshot."""
    _prepare()
    return _run()


gc.disable()  # what is imported is no garbage; cni_common/serve/main.py decides about the rest
if sys.argv[0] == _MAKER:
    sys.path.clear()  # what looks there would keep a directory of the build machine
    _prepare()
    _import_for_calls()
else:
    _end(begin)
