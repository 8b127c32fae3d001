"""bandwidth: how much may enter and leave a container in a second."""

from plugins.bandwidth.conf import SCHEMA, Conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.host import Host
    from cni_common.request import Request
    from cni_common.steps import Undo
    from cni_common.types import Result

__all__ = ["SCHEMA", "add", "check", "delete", "gc", "status"]


def add(req: "Request", host: "Host", undo: "Undo") -> "Result":
    """Limit what may enter and leave; return prevResult, with the ifb when there is one."""
    conf = Conf.of(req)
    result = req.require_prev_result()
    if conf:
        from plugins.bandwidth import attachment  # noqa: PLC0415 - most containers have no limits

        attachment.add(req, host, conf, undo, result=result)
    return result


def delete(req: "Request", host: "Host") -> None:
    """Take the limits back: from the record of what ADD made, else what can be found."""
    from plugins.bandwidth import attachment  # noqa: PLC0415 - as above

    attachment.delete(req, host)


def check(req: "Request", host: "Host") -> None:
    """Raise CNIError naming the limit that is no longer as ADD made it."""
    conf = Conf.of(req)
    req.require_prev_result()
    if conf:
        from plugins.bandwidth import drift  # noqa: PLC0415 - as above

        drift.check(req, host, conf)


def gc(req: "Request", host: "Host") -> None:
    """Take back the limits of this network that belong to no valid attachment."""
    from cni_common.steps import BestEffort  # noqa: PLC0415 - GC is rare
    from plugins.bandwidth import attachment  # noqa: PLC0415 - as above

    with BestEffort() as steps:
        attachment.collect(req, host, steps)


def status(req: "Request", host: "Host") -> None:
    """Raise CNIError when an ADD could not work now: 7 configuration, 50 state."""
    Conf.of(req)
    host.records.probe()
