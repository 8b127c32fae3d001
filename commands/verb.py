"""The frame of each verb of `pycni`: options, help, and what every verb has to do in the same way.

A verb is a module of commands/verbs/ with a constant VERB, and its name in VERBS there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_common.kernel.netns import FIRST_PID_NAMESPACE, pid_namespace
from cni_common.node.host import STATE_DIR, Host
from cni_common.serve.cli import Command
from cni_common.serve.protocol import execute
from cni_common.serve.stdio import say
from cni_common.spec.errors import CNIError
from commands import DATA_DIR, FAILED

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Mapping, Sequence

    from cni_common.node.host import Loader

    Run = Callable[[Namespace, Loader], int]
    RunOnNode = Callable[[Namespace, Host], int]

_WIDTH = 80  # columns
_ALWAYS = {2: "invalid command line", FAILED: "it could not be done, see stderr"}


class RefusedError(Exception):
    """A verb cannot be carried out; the message says why and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: what it is for, its options, and the function that does it.

    `run` returns the exit status. A CNIError, OSError or RefusedError that it raises becomes one
    line on stderr and the status FAILED. A verb that needs the node's state has `OnTheNode` there.
    """

    summary: str  # a line of `pycni --help`, without a full stop
    run: Run
    statuses: Mapping[int, str]  # exit statuses beside those of all verbs: when
    examples: Sequence[str]  # command lines
    add_options: Callable[[ArgumentParser], object] = lambda _parser: None
    notes: str = ""  # a paragraph of the help, before the exit statuses; wrapped there

    @property
    def epilog(self) -> str:
        """The end of the help: notes, exit statuses, examples."""
        from textwrap import fill

        statuses = sorted({**_ALWAYS, **self.statuses}.items())
        return "\n".join(
            [
                *([fill(self.notes, _WIDTH, break_on_hyphens=False), ""] if self.notes else ()),
                "exit status:",
                *(f"  {status}  {text}" for status, text in statuses),
                "",
                "examples:",
                *(f"  {line}" for line in self.examples),
                "",
            ]
        )

    def command(self, name: str) -> Command:
        """Return the verb for the command line, where each failure is one line."""

        def run(options: Namespace, load: Loader, _load_all: Callable[[], object]) -> int:
            return _guarded(name, lambda: self.run(options, load))

        return Command(self.summary, run, self.add_options, self.epilog)


class OnTheNode:
    """A function of a verb that gets the Host, behind checks of user and namespaces."""

    def __init__(self, run: RunOnNode, *, removes: bool = False) -> None:
        """`removes`: it must also tell living processes from dead ones."""
        self._run = run
        self._removes = removes

    def __call__(self, options: Namespace, load: Loader) -> int:
        """Return the exit status. Raises RefusedError, and what the function raises."""
        if os.geteuid():
            raise RefusedError("needs root: leases and records are root's")
        if not options.any_netns:
            self._check_namespaces()
        with Host(
            load,
            os.path.realpath(sys.argv[0]),
            log,
            execute=execute,
            guarded=True,
            state_dir=options.state_dir,
        ) as host:
            return self._run(options, host)

    def _check_namespaces(self) -> None:
        if not _is_hosts_namespace():
            raise RefusedError(
                "this is not the network namespace of process 1: call it on the host, in a pod"
                " with hostNetwork and hostPID, or add --any-netns"
            )
        if self._removes and pid_namespace() != FIRST_PID_NAMESPACE:
            raise RefusedError(
                "this is not the first PID namespace, so a living container may look dead: call"
                " it on the host, in a pod with hostPID, or add --any-netns"
            )


def add_json_option(parser: ArgumentParser) -> None:
    """Add --json, which every verb with an answer has."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_node_options(parser: ArgumentParser) -> None:
    """Add the options of a verb on the node."""
    add_json_option(parser)
    parser.add_argument(
        "--data-dir",
        default=DATA_DIR,
        metavar="DIR",
        help="host-local's dataDir, beside those that records name (default: %(default)s)",
    )
    parser.add_argument(
        "--state-dir",
        default=STATE_DIR,
        metavar="DIR",
        help="where the attachment records are (default: %(default)s)",
    )
    parser.add_argument(
        "--any-netns",
        action="store_true",
        help="work although this is not the host's network namespace or, for reclaim and repair,"
        " first PID namespace",
    )


def log(text: str) -> None:
    """Write a line to stderr; `reclaim` removes the same if the line cannot be written."""
    from commands.view import printable

    say(2, printable(text.encode("utf-8", "backslashreplace").decode()))


def words_of(error: Exception) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, ExceptionGroup):
        notes = [": ".join((*getattr(one, "__notes__", ())[:1], "")) for one in error.exceptions]
        words = [words_of(one) for one in error.exceptions]
        return "; ".join(f"{note}{text}" for note, text in zip(notes, words, strict=True))
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}"
    return " ".join(str(error).split())


def _guarded(name: str, run: Callable[[], int]) -> int:
    from commands import view

    try:
        return run()
    except KeyboardInterrupt:
        log(f"pycni {name}: interrupted")
    except view.UndeliveredError as error:
        raise error.reason from None  # main answers
    except (CNIError, OSError, RefusedError, ExceptionGroup) as error:
        log(f"pycni {name}: {words_of(error)}")
    return FAILED


def _is_hosts_namespace() -> bool:
    try:
        return os.path.samefile("/proc/1/ns/net", "/proc/self/ns/net")
    except OSError:
        return False
