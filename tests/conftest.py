"""Fixtures for all tests, and what holds for each run of them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Whose assertions say what they compare; before the first of several conftest.py imports one.
pytest.register_assert_rewrite("tests.e2e.node", "tests.faults.rig", "tests.golden")

from deploy import freeze  # noqa: E402 - what is imported is rewritten
from deploy.interpreter.place import find  # noqa: E402
from tests import durations, other_build, scope, surroundings  # noqa: E402
from tests.golden import Golden  # noqa: E402
from tests.machine import DIST, Machine, machine_at  # noqa: E402
from tests.snapshot import changes  # noqa: E402


def pytest_report_header() -> str:
    """Say which tests run, and how to run the same again."""
    return scope.HEADER


def pytest_sessionstart() -> None:
    """Have each run start in the same surroundings."""
    surroundings.make_usual()


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say what has changed between two snapshots, where pytest would cut both short."""
    if op != "==" or not (isinstance(left, dict) and isinstance(right, dict)):
        return None
    found = changes(right, left)
    return [f"{len(found)} changes:", *found] if "nft" in left and "nft" in right else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember the processor's time before a test."""
    durations.begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the processor's time after a test."""
    report = yield
    durations.note(item, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write how long each test took."""
    durations.write(terminalreporter)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a machine with its plugins in this process, and by an engine where marked."""
    closest = metafunc.definition.get_closest_marker
    both = (scope.ALL or closest("both_edges")) and not closest("without_engine")
    edges = ["alone", "engine"] if both else ["alone"]
    if "machine" in metafunc.fixturenames:
        metafunc.parametrize("machine", edges, indirect=True, scope="function")
    if "arena" in metafunc.fixturenames:
        metafunc.parametrize("arena", edges, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs answers of the Go plugins, for `make golden`; leave repeats out."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.golden)
    if scope.ALL:
        return
    chosen = _chosen([item for item in items if not _is_repeat(item)])
    left_out = [item for item in items if item.nodeid not in chosen]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid in chosen]


def _chosen(items: list[pytest.Item]) -> set[str]:
    """Return the ids of today's tests: of a test with many cases some, which others follow.

    `rotating` says for a test how many; without it one in scope.PART of scope.MANY cases or more.
    All cases run of the suites of scope.WHOLE, and of a test that is marked for both edges.
    """
    chosen: set[str] = set()
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for same in cases.values():
        by_part: dict[int, list[str]] = {}
        for item in same:
            by_part.setdefault(_part(item, len(same)), []).append(item.nodeid)
        for part, names in by_part.items():
            chosen |= scope.one_in(part, names)
    return chosen


def _part(item: pytest.Item, cases: int) -> int:
    """Return in how many days each case of a test runs once; 1 is every day."""
    mark = item.get_closest_marker("rotating")
    if mark is not None:
        return int(mark.args[0])
    is_whole = not scope.WHOLE.isdisjoint(item.path.parts) or item.get_closest_marker("both_edges")
    return 1 if is_whole or cases < scope.MANY else scope.PART


def _is_repeat(item: pytest.Item) -> bool:
    """Tell whether a test has its executables served by an engine without being marked for it."""
    callspec = getattr(item, "callspec", None)
    has_engine = callspec is not None and callspec.params.get("bin_dir") == "engine"
    return has_engine and item.get_closest_marker("both_edges") is None


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A pretend host of the test's own."""
    name = f"net-{uuid.uuid4().hex[:12]}"
    with machine_at(tmp_path, name, by_engine=request.param == "engine") as made:
        yield made


@pytest.fixture(scope="module")
def arena(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A pretend host for the calls of a file that are refused: it must stay as it is."""
    name, by_engine = f"net-{uuid.uuid4().hex[:12]}", request.param == "engine"
    with machine_at(tmp_path_factory.mktemp("arena"), name, by_engine=by_engine) as made:
        before = made.snapshot()
        yield made
        assert made.snapshot() == before


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    """The answers of the Go plugins that the tests of a file need."""
    is_selection = bool(request.config.getoption("keyword"))
    made = Golden(request.path.stem.removeprefix("test_"), is_selection=is_selection)
    yield made
    made.save()


@pytest.fixture(scope="session")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launchers of dist/bin alone: without an engine they can do nothing."""
    freeze.make(DIST, find())
    directory = tmp_path_factory.mktemp("launchers")
    for path in DIST.iterdir():
        if path.is_file():
            shutil.copy2(path, directory)
    return directory


@pytest.fixture(scope="session")
def other_dist() -> Path:
    """A bin directory of another version, without the loopback plugin."""
    return other_build.make()


@pytest.fixture(params=["one-shot", "engine"])
def bin_dir(request: pytest.FixtureRequest, launchers: Path) -> Path:
    """A directory for CNI_PATH: of plugins without an engine, and with one where marked."""
    return launchers if request.param == "engine" else DIST
