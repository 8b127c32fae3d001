"""The program `pycni agent`: wires its parts, runs until a signal."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.engine import Engine
    from agent.health import Health
    from agent.logs import Log
    from agent.loop import Loop
    from agent.settings import Settings
    from agent.wake import Wake

ON_HOST = "on-host"  # the first argument of the frozen program that stands for agent/on_host.py
_STAY_SECONDS = 3600.0


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command in `arguments`; return the exit status, 2 for invalid arguments."""
    if list(arguments[:1]) == [ON_HOST]:
        from agent import on_host

        return on_host.main(arguments[1:])
    from agent.logs import Log
    from agent.settings import parser, settings_of, with_files

    try:
        environ = with_files(environ)
        options = parser(environ).parse_args(arguments)
    except (OSError, ValueError) as error:
        Log("info").error(f"cannot read the settings: {error}")
        return 2
    except SystemExit as end:  # after --help, or an error that argparse has printed
        return int(end.code or 0)
    settings = settings_of(options, environ, _beside())
    log = Log(settings.log_level)
    if os.geteuid():
        log.error("needs root: it makes routes, and files of root")
        return 1
    if options.command != "uninstall" and not settings.node:
        log.error("which Node is this? Give --node-name, or NODE_NAME by the downward API")
        return 2
    try:
        if options.command == "uninstall":
            status = _uninstall(settings, log, is_forced=options.force)
            return _stay(settings) if options.stay and not status else status
        return _serve(settings, log)
    except OSError as error:
        where = f": '{error.filename}'" if error.filename else ""
        log.error(f"cannot start: {error.strerror or error}{where}")
        return 1


def _beside() -> Path:
    """Return where the plugins to install are: in a directory `bin` beside the program's own."""
    if hasattr(sys, "_MEIPASS"):  # of PyInstaller's bootloader
        return Path(sys.executable).resolve().parents[1] / "bin"
    return Path(__file__).resolve().parents[1] / "dist/bin"


def _serve(settings: Settings, log: Log) -> int:
    """Run until SIGTERM or SIGINT. Raises OSError where a directory or address cannot be had."""
    from agent import memory
    from agent.wake import Wake
    from cni_common.node.journal import make_private_directory
    from cni_common.spec.names import VERSION

    memory.use_one_arena()
    make_private_directory(str(settings.state_dir))
    wake = Wake()
    _stop_by_signal(wake)
    log.info("started", version=VERSION, node=settings.node, mode=settings.network.mode)
    engine = _engine(settings, wake, log) if settings.has_engine else None
    head_start = _head_start(settings, engine)
    loop, health = _parts(settings, wake, log, engine=engine, head_start=head_start)
    loop.run(wake)
    # Nothing is taken back: pods run on, start and end without the agent.
    log.info("stopped; pods go on as they are")
    if health:
        health.close()
    return 0


def _stop_by_signal(wake: Wake) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wake.stop())


def _stay(settings: Settings) -> int:
    """Answer probes until a signal, and do nothing else. Raises OSError for a taken address."""
    from agent.health import Health
    from agent.metrics import Metrics
    from agent.wake import Wake

    wake = Wake()
    _stop_by_signal(wake)
    metrics = Metrics(settings.network.leases)
    health = None
    if settings.listen:
        health = Health(settings.listen, alive=lambda: "", ready=tuple, metrics=metrics)
    while wake.wait(_STAY_SECONDS) is not None:
        pass
    if health:
        health.close()
    return 0


def _head_start(settings: Settings, engine: Engine | None) -> Callable[[], set[str]]:
    """Have plugins and engine come; return a function that waits, as Loop wants it."""
    from agent.head_start import HeadStart

    return HeadStart(settings.dist, settings.bin_dir, engine).join if settings.dist else set


def _parts(
    settings: Settings,
    wake: Wake,
    log: Log,
    *,
    engine: Engine | None,
    head_start: Callable[[], set[str]],
) -> tuple[Loop, Health | None]:
    # Most of the imports of a start: modules of the API's client and of the metrics.
    from agent.directories import Directories
    from agent.health import Health
    from agent.leftovers import Leftovers, sockets_of
    from agent.loop import Loop, Parts
    from agent.metrics import Metrics
    from agent.network.fabric import Fabric
    from agent.pod_events import PodEvents
    from agent.remembered import Remembered
    from agent.reports import Reports
    from agent.watch import NodeWatch
    from cni_common.node.host import STATE_DIR

    choice, connect = settings.choice, settings.access.connect
    metrics = Metrics(settings.network.leases, STATE_DIR)
    watch = NodeWatch(connect, settings.node, wake, log=log, metrics=metrics)
    watch.start()  # first: the list comes while the plugins are installed
    reports = Reports(connect, settings.node, log=log, metrics=metrics)
    reports.start()
    fabric = Fabric(settings.network, lambda text: log.info(str(text), part="network"))
    watched = [choice.directory, settings.bin_dir, choice.indicator.parent]
    watched += [choice.template.parent] if choice.template else []
    directories = Directories(watched, wake)
    sockets = sockets_of(settings.runtime_socket, f"/proc/{settings.host_process}/root")
    program = str(settings.bin_dir / "pycni")
    leftovers = Leftovers(sockets, program, lambda text: log.info(str(text), part="leftovers"))
    parts = Parts(
        watch=watch,
        remembered=Remembered(settings.state_dir, log),
        fabric=fabric,
        choice=choice,
        bin_dir=settings.bin_dir,
        dist=settings.dist,
        engine=engine,
        reports=reports,
        pod_events=PodEvents(reports, choice.network),
        metrics=metrics,
        log=log,
        before=directories.ensure,
        head_start=head_start,
        leftovers=leftovers.look,
        has_condition=settings.has_condition,
    )
    loop = Loop(parts, settings.node)
    health = None
    if settings.listen:
        health = Health(settings.listen, alive=loop.alive, ready=loop.ready, metrics=metrics)
    fabric.listen(wake)
    return loop, health


def _engine(settings: Settings, wake: Wake, log: Log) -> Engine:
    from agent.engine import Engine

    return Engine(settings.bin_dir, log=log, wake=wake, process=settings.host_process)


def _uninstall(settings: Settings, log: Log, *, is_forced: bool) -> int:
    from agent.network.fabric import Fabric
    from agent.uninstall import uninstall
    from agent.wake import Wake

    fabric = Fabric(settings.network, lambda text: log.info(str(text), part="network"))
    engine = _engine(settings, Wake(), log) if settings.has_engine else None
    return uninstall(settings, fabric, engine, log=log, is_forced=is_forced)
