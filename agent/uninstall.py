"""`pycni agent uninstall`: removes from the node what the agent has made, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent import configuration, install, owners
from agent.leases import leased
from cni_common.node.host import STATE_DIR
from cni_common.node.record import Records
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from agent.engine import Engine
    from agent.logs import Log
    from agent.network.fabric import Fabric
    from agent.settings import Settings

DONE, FAILED, IN_USE = 0, 1, 4  # exit statuses; argparse has 2
_SHOWN_MAX = 5
# After the list has gone: a call that the runtime had begun with it has its record by then.
_BEGUN_SECONDS = 2.0


def uninstall(
    settings: Settings, fabric: Fabric, engine: Engine | None, *, log: Log, is_forced: bool
) -> int:
    """Remove the list of plugins first and the plugins last; return the exit status.

    Refuses while pods use the network: without the list containerd cannot delete them.
    """
    problems: list[str] = []
    try:
        configuration.restore(settings.choice)
        status = _use(settings, log, is_forced=is_forced)
        status = status or _remove_list(settings, log, is_forced=is_forced)
        if status:
            return status
        configuration.forget(settings.choice)
        problems += fabric.remove()
        if engine and engine.stop():
            log.info("stopped the engine")
            for problem in engine.remove_groups():  # empty ones are no burden
                log.warning(problem)
        if settings.dist:
            problems += _remove_plugins(settings.bin_dir, log)
            if engine and (build := install.installed(settings.bin_dir)):
                engine.follow(build)  # systemd's, which has served the agent's build
        _remove_state(settings.choice.indicator.parent)
        _remove_state(settings.state_dir)
        _remove_leases(settings.network.leases, log)
    except OSError as error:
        problems.append(f"{error.strerror or error}: '{error.filename}'")
    for problem in problems:
        log.error(problem)
    return FAILED if problems else DONE


def _remove_list(settings: Settings, log: Log, *, is_forced: bool) -> int:
    """Remove the list, or leave it and return a status if a pod has come meanwhile."""
    if not configuration.set_aside(settings.choice):
        return DONE
    if not is_forced:
        time.sleep(_BEGUN_SECONDS)
        status = _use(settings, log, is_forced=False)
        if status:
            configuration.restore(settings.choice)
            return status
    log.info("removed the list of plugins", path=str(settings.choice.path))
    return DONE


def _use(settings: Settings, log: Log, *, is_forced: bool) -> int:
    """Log which pods use the network; return the status that refuses, DONE where none does."""
    try:
        used = pods(settings.choice.network)
    except (CNIError, OSError) as error:  # whether pods use it is not known
        log.error(f"the records of attachments cannot be read: {error}; or add --force")
        return DONE if is_forced else FAILED
    if not used:
        return DONE
    shown = ", ".join(used[:_SHOWN_MAX]) + (", …" if len(used) > _SHOWN_MAX else "")
    if is_forced:
        log.warning("pods that use the network lose it", pods=shown)
        return DONE
    log.error(
        f"{len(used)} pods use the network '{settings.choice.network}': drain the node"
        " first, or add --force, after which they cannot be deleted in an orderly way",
        pods=shown,
    )
    return IN_USE


def pods(network: str, state_dir: str = STATE_DIR) -> list[str]:
    """Return the containers that have an attachment to the network, by the plugins' records.

    A record that is empty or damaged, so that it names no network, counts by its file: a pod may
    live behind it. Raises CNIError, OSError.
    """
    records = Records(state_dir)
    try:
        found = {
            record.attachment.containerid or os.path.basename(record.path)
            for record, _ in records.listing()
            if record.network in (network, "")
        }
    finally:
        records.close()
    return sorted(found)


def _remove_plugins(bin_dir: Path, log: Log) -> list[str]:
    try:
        install.uninstall(bin_dir, lambda text: log.info(text), owner=owners.AGENT)
    except install.InstallError as error:
        log.info(str(error))
    return []


def _remove_leases(directory: Path, log: Log) -> None:
    """Remove host-local's directory of the network, unless an address has a lease."""
    if next(leased(directory), None):
        log.warning("addresses have leases, which stay", path=str(directory))
        return
    _remove_state(directory)


def _remove_state(state_dir: Path) -> None:
    if state_dir.is_dir() and not state_dir.is_symlink():
        shutil.rmtree(state_dir)
