"""bandwidth: limits the rates of traffic into and out of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugins.bandwidth.conf import SCHEMA, Conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_common.node.host import Host
    from cni_common.node.lifecycle import Lifecycle
    from cni_common.spec.errors import CNIError
    from cni_common.spec.request import Request
    from cni_common.spec.result import Result
    from cni_common.spec.undo import Undo

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "lifecycle", "status"]


def add(req: Request, host: Host, undo: Undo) -> Result:
    """Limit the container's traffic; return prevResult, with the ifb when there is one."""
    conf = Conf.of(req)
    result = req.require_prev_result()
    if conf:
        from plugins.bandwidth import parts

        parts.add(req, host, conf, undo, result=result)
    return result


def delete(req: Request, host: Host) -> None:
    """Remove the limits: those in the record of ADD, else those that can be found."""
    lifecycle().delete(req, host)


def check(req: Request, host: Host) -> Iterator[CNIError]:
    """Yield an error for each difference from the result of ADD."""
    conf = Conf.of(req)
    req.require_prev_result()
    if conf:
        from plugins.bandwidth import drift

        yield from drift.check(req, host, conf)


def gc(req: Request, host: Host) -> None:
    """Take back the limits of this network that belong to no valid attachment."""
    lifecycle().gc(req, host)


def status(req: Request, host: Host) -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state."""
    Conf.of(req)
    host.records.probe()


def lifecycle() -> Lifecycle:
    """Return what an attachment consists of."""
    from plugins.bandwidth.parts import LIFECYCLE

    return LIFECYCLE
