"""The first module that the bundle runs: it prepares the process and runs plugins/__main__.py."""

import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

# The runtime's variables, and the names under which launcher/launcher.c keeps their values.
_SET_ASIDE = {
    "LD_LIBRARY_PATH": "LD_LIBRARY_PATH_ORIG",
    "LD_PRELOAD": "_PYCNI_LD_PRELOAD",
    "LD_AUDIT": "_PYCNI_LD_AUDIT",
}
# Variables of the bootloader, which would affect the programs that are started from here.
_OF_BOOTLOADER = ("_PYI_ARCHIVE_FILE", "_PYI_LINUX_PROCESS_NAME", "_PYI_PARENT_PROCESS_LEVEL")


class Modules:
    """A file that pycni.spec writes: opening one for each module takes a sixth of a start."""

    def __init__(self, path: str) -> None:
        low = []  # descriptors of standard streams that are closed: the file must not be one
        while (fd := posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)) <= 2:
            low.append(fd)
        for closed in low:
            posix.close(closed)
        self._fd = fd
        size = int.from_bytes(posix.pread(fd, 4, 0), "little")
        self._start = 4 + size  # of what the index points to
        # By its name, where a module begins, its size, and whether it is a package.
        self._index: dict[str, tuple[int, int, bool]] = marshal.loads(posix.pread(fd, size, 4))

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
            code = marshal.loads(posix.pread(self._fd, size, self._start + offset))
            exec(code, module.__dict__)


class OtherModules:
    """The file with what no plugin needs to start, opened for the first module not found before.

    That is last of all places; the file's own modules are then looked for in it first.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        """Return how to import the module, None when it is not here."""
        sys.meta_path.remove(self)
        modules = Modules(self._path)
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
    import os

    for name in _OF_BOOTLOADER:
        os.environ.pop(name, None)
    for name, kept_as in _SET_ASIDE.items():
        os.environ.pop(name, None)
        original = os.environ.pop(kept_as, None)
        if original is not None:
            os.environ[name] = original


def _run() -> int:
    import os

    if not hasattr(os, "setns"):  # new in Python 3.12
        from _setns import setns

        os.setns = setns  # type: ignore[attr-defined]

    from plugins.__main__ import run

    return run()


gc.disable()  # what is imported is no garbage; cni_common/serve/main.py decides about the rest
status = 1
try:
    lib: str = sys._MEIPASS  # type: ignore[attr-defined]
    sys.meta_path.insert(0, Modules(f"{lib}/modules"))
    _import_os()
    _restore_environment()
    sys.meta_path.append(OtherModules(f"{lib}/other-modules"))
    status = _run()
except Exception as error:  # noqa: BLE001 - the runtime must get a CNI error object all the same
    sys.excepthook(type(error), error, error.__traceback__)
    if posix.environ.get(b"CNI_COMMAND"):
        posix.write(
            1,
            b'{"cniVersion":"1.1.0","code":999,'
            b'"msg":"pycni cannot start, see its stderr; install it again"}\n',
        )
finally:
    posix._exit(status)  # taking every module apart would take milliseconds
