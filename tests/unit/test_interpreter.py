"""The parts of PyInstaller's result in a bundle with a Python of our own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.interpreter import __main__ as interpreter
from deploy.interpreter.place import Interpreter, InterpreterError, extension_modules
from deploy.interpreter.place import of_environment as interpreter_of

DYNAMIC = "python3.11/lib-dynload/{}.cpython-311-x86_64-linux-gnu.so"


def test_libraries_of_packages_stay(tmp_path: Path) -> None:
    """Python and its extension modules are in the program, so their libraries are not needed."""
    rpds = ("rpds/rpds.cpython-311-x86_64-linux-gnu.so", "/wheels/rpds.so", "EXTENSION")
    found = [
        rpds,
        (DYNAMIC.format("_json"), "/lib/_json.so", "EXTENSION"),
        ("libpython3.11.so.1.0", "/lib/libpython3.11.so.1.0", "BINARY"),
        ("libz.so.1", "/lib/libz.so.1", "BINARY"),
        ("libgcc_s.so.1", "/lib/libgcc_s.so.1", "BINARY"),
    ]

    kept = Interpreter(tmp_path).libraries(found)

    assert kept == [rpds, ("libgcc_s.so.1", str(tmp_path / "libgcc_s.so.1"), "BINARY")]


def test_a_module_that_the_program_lacks_is_refused(tmp_path: Path) -> None:
    """An import would fail on a node, long after the build."""
    found = [(DYNAMIC.format("_ssl"), "/lib/_ssl.so", "EXTENSION")]

    with pytest.raises(InterpreterError, match=r"'_ssl': add it to '.*Setup\.local'"):
        Interpreter(tmp_path).libraries(found)


def test_each_line_of_the_set_up_is_a_module() -> None:
    """CPython takes a line with '=' for a variable, and leaves the module out without a word."""
    setup = Path(__file__).resolve().parents[2] / "deploy/interpreter/Setup.local"

    assert {"_ctypes", "_decimal", "_json", "zlib"} <= extension_modules()
    assert "=" not in setup.read_text()


def test_pyinstaller_is_told_by_a_variable(tmp_path: Path) -> None:
    """Without the variable the bundle has the Python that freezes it."""
    assert interpreter_of({}) is None
    assert interpreter_of({"PYCNI_INTERPRETER": str(tmp_path)}) == Interpreter(tmp_path)


def test_without_its_tool_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left that `make dist` would use, so that it freezes with the Python of .venv."""
    monkeypatch.setattr(interpreter, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    status = interpreter.main()

    assert status == 1
    assert re.search(
        "error: (there is no mmdebstrap: run '.*'|only root|.venv must)", capsys.readouterr().err
    )
    assert not (tmp_path / "current").exists()
