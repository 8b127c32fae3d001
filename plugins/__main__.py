"""The single executable: the name it is called by selects the plugin."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cni_common.serve.main import main
from plugins import load, load_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from cni_common.serve.cli import Command
    from cni_common.serve.main import Program


def run() -> int:
    """Serve one request and return the exit status."""
    programs: Mapping[tuple[str, ...], Program] = {
        ("dhcp", "daemon"): _dhcp_daemon,
        ("pycni", "agent"): _agent,
    }
    return main(load, load_all, _commands, programs)


def _commands() -> Mapping[str, Command]:
    from agent import install_command
    from commands import verbs

    return {**verbs.commands(), **verbs.summary(), **install_command.COMMANDS}


def _dhcp_daemon(
    arguments: Sequence[str], environ: Mapping[str, str], log: Callable[[str], object]
) -> int:
    from plugins.dhcp.daemon import program

    return program.run(arguments, environ, log)


def _agent(
    arguments: Sequence[str], environ: Mapping[str, str], log: Callable[[str], object]
) -> int:
    try:
        __import__("agent.program")  # not by a statement: the bundle must not have it
        program: Any = sys.modules["agent.program"]
        status: int = program.run(arguments, environ)
    except ModuleNotFoundError as error:
        if error.name in ("agent", "agent.program"):
            log(
                "pycni agent: this program has the plugins alone; the agent is 'pycni-agent' of the"
                " image, or dist/agent/pycni-agent, which 'make agent' makes"
            )
        else:
            log(f"pycni agent: there is no module '{error.name}': install pycni[agent]")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(run())
