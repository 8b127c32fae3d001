"""Which plugins are ours, each imported on demand."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.protocol import Plugin

TYPES = (
    "bandwidth",
    "bridge",
    "firewall",
    "host-local",
    "loopback",
    "portmap",
    "ptp",
    "static",
    "tuning",
)


def load(type: str) -> "Plugin | None":  # noqa: A002 - the spec's word
    """Return the module of the plugin `type`, or None when it is not ours.

    Each import is spelled out: mypy checks the module against Plugin, and a frozen build finds it.
    """
    match type:
        case "bandwidth":
            import plugins.bandwidth  # noqa: PLC0415 - only the plugin that is asked for

            return plugins.bandwidth
        case "bridge":
            import plugins.bridge  # noqa: PLC0415 - as above

            return plugins.bridge
        case "firewall":
            import plugins.firewall  # noqa: PLC0415 - as above

            return plugins.firewall
        case "host-local":
            import plugins.host_local  # noqa: PLC0415 - as above

            return plugins.host_local
        case "loopback":
            import plugins.loopback  # noqa: PLC0415 - as above

            return plugins.loopback
        case "portmap":
            import plugins.portmap  # noqa: PLC0415 - as above

            return plugins.portmap
        case "ptp":
            import plugins.ptp  # noqa: PLC0415 - as above

            return plugins.ptp
        case "static":
            import plugins.static  # noqa: PLC0415 - as above

            return plugins.static
        case "tuning":
            import plugins.tuning  # noqa: PLC0415 - as above

            return plugins.tuning
        case _:
            return None


def load_all() -> None:
    """Import every plugin, and all that their functions import when it is needed.

    For a process that stays: an upgrade may take the files away.
    """
    from cni_common import collect as _  # noqa: F401, PLC0415 - as above
    from plugins import (  # noqa: F401, PLC0415 - as above
        bandwidth,
        bridge,
        firewall,
        loopback,
        portmap,
        ptp,
        static,
        tuning,
    )
    from plugins.bandwidth import drift  # noqa: F401, PLC0415 - as above
    from plugins.firewall import firewalld, survey  # noqa: F401, PLC0415 - as above
    from plugins.host_local import (  # noqa: F401, PLC0415 - as above
        collect,
        fate,
        outlook,
        reclaim,
        renewal,
        resolv,
        sweep,
    )
    from plugins.portmap import conditions, iptables  # noqa: F401, PLC0415 - as above
