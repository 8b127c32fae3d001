"""The operators' commands: `pycni leases`, `audit`, `reclaim`, `explain`.

These commands know the plugins, which cni_common does not: plugins/__main__.py hands them in.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cni_common.kernel.netns import FIRST_PID_NAMESPACE, pid_namespace
from cni_common.node.host import STATE_DIR, Host
from cni_common.serve.cli import Command
from cni_common.serve.protocol import execute
from cni_common.serve.stdio import say
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from cni_common.node.host import Loader

    Run = Callable[[Namespace, Host], int]

# host-local's default, written here as well: --help and a command's start import no plugin.
DATA_DIR = "/var/lib/cni/networks"
DONE, FOUND, FAILED, LACKING = 0, 1, 3, 4  # exit statuses; argparse has 2
_FAILURES = f"""
  2  invalid command line
  {FAILED}  it could not be done, see stderr"""
_LEASES = f"""\
exit status:
  {DONE}  done, whether there are leases or not{_FAILURES}

examples:
  pycni leases
  pycni leases --network mynet
  pycni leases --json
"""
_AUDIT = f"""\
exit status:
  {DONE}  nothing was found
  {FOUND}  something belongs to no living container{_FAILURES}
  {LACKING}  something that a living container needs is missing, whatever else was found

examples:
  pycni audit
  pycni audit --json
  pycni audit >/dev/null || echo "something is left on this node"
"""
_RECLAIM = f"""\
An object without a container is noted by the first call and removed by a call at least 60 s
later. Younger objects, and those of a living network namespace, stay.

exit status:
  {DONE}  nothing is left that this command would ever remove
  {FOUND}  something waits for a later call (with --dry-run: or would be removed now){_FAILURES}

examples:
  pycni reclaim --dry-run
  pycni reclaim || {{ sleep 60; pycni reclaim; }}
"""
_EXPLAIN = f"""\
exit status:
  {DONE}  done, and everything is there
  {FOUND}  something is missing, or nothing is known of this container{_FAILURES}

examples:
  pycni explain 3f2c9a
  pycni explain --kernel 3f2c9a
  pycni explain --json --by id 3f2c9a
"""


def _leases(options: Namespace, host: Host) -> int:
    from commands import leases

    return leases.run(options, host)


def _audit(options: Namespace, host: Host) -> int:
    from commands import audit

    return audit.run(options, host)


def _reclaim(options: Namespace, host: Host) -> int:
    from commands import reclaim

    return reclaim.run(options, host)


def _explain(options: Namespace, host: Host) -> int:
    from commands import explain

    return explain.run(options, host)


def _on_the_node(
    name: str, run: Run, *, removes: bool = False
) -> Callable[[Namespace, Loader, Callable[[], object]], int]:
    """Return `run` behind checks of user and namespaces; each failure becomes one line."""

    def command(options: Namespace, load: Loader, _load_all: Callable[[], object]) -> int:
        from commands import view

        def complain(text: str) -> int:
            _log(f"pycni {name}: {text}")
            return FAILED

        if os.geteuid():
            return complain("needs root: leases and records are root's")
        if not options.any_netns and not _is_hosts_namespace():
            return complain(
                "this is not the network namespace of process 1: call it on the host, in a pod"
                " with hostNetwork and hostPID, or add --any-netns"
            )
        if removes and not options.any_netns and pid_namespace() != FIRST_PID_NAMESPACE:
            return complain(
                "this is not the first PID namespace, so a living container may look dead: call"
                " it on the host, in a pod with hostPID, or add --any-netns"
            )
        try:
            with Host(
                load,
                os.path.realpath(sys.argv[0]),
                _log,
                execute=execute,
                guarded=True,
                state_dir=options.state_dir,
            ) as host:
                return run(options, host)
        except KeyboardInterrupt:
            return complain("interrupted")
        except view.UndeliveredError as error:
            raise error.reason from None  # main answers
        except (CNIError, OSError) as error:
            return complain(_words(error))
        except ExceptionGroup as group:
            return complain(_words(group))

    return command


def _words(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        notes = [": ".join((*getattr(one, "__notes__", ())[:1], "")) for one in error.exceptions]
        words = [_words(one) for one in error.exceptions]
        return "; ".join(f"{note}{text}" for note, text in zip(notes, words, strict=True))
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}"
    return " ".join(str(error).split())  # one line


def _is_hosts_namespace() -> bool:
    try:
        return os.path.samefile("/proc/1/ns/net", "/proc/self/ns/net")
    except OSError:
        return False


def _log(text: str) -> None:
    """Write a line to stderr; what `reclaim` removes does not depend on that somebody reads it."""
    say(2, text.encode("utf-8", "backslashreplace").decode())


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
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
        help="work although this is not the host's network namespace or, for reclaim, first PID"
        " namespace",
    )


def _add_leases_options(parser: ArgumentParser) -> None:
    parser.add_argument("--network", default="", metavar="NAME", help="of this network only")
    _add_options(parser)


def _add_reclaim_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="remove and note nothing, say what would go"
    )
    _add_options(parser)


def _add_explain_options(parser: ArgumentParser) -> None:
    from commands import lookup

    parser.add_argument(
        "container",
        metavar="CONTAINER",
        help="its id or how that begins, pod (namespace/name or name), address, path of its network"
        " namespace, port of the host, interface of the host, or PID of one of its processes",
    )
    parser.add_argument(
        "--by",
        default="",
        choices=tuple(lookup.WAYS),
        help="what CONTAINER is, where it could be several",
    )
    parser.add_argument(
        "--kernel",
        action="store_true",
        help="also show links, addresses, routes, queues, listening sockets and connections",
    )
    _add_options(parser)


COMMANDS = {
    "leases": Command(
        "list the addresses that are given out",
        _on_the_node("leases", _leases),
        _add_leases_options,
        _LEASES,
    ),
    "audit": Command(
        "list what belongs to no living container",
        _on_the_node("audit", _audit),
        _add_options,
        _AUDIT,
    ),
    "reclaim": Command(
        "remove what belongs to no living container",
        _on_the_node("reclaim", _reclaim, removes=True),
        _add_reclaim_options,
        _RECLAIM,
    ),
    "explain": Command(
        "list everything that a container's attachments own",
        _on_the_node("explain", _explain),
        _add_explain_options,
        _EXPLAIN,
    ),
}
