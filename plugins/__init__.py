"""Which plugins are ours, each imported on demand."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_common.protocol import Plugin

TYPES = ("bridge", "host-local", "loopback", "ptp", "static", "tuning")


def load(type: str) -> "Plugin | None":  # noqa: A002 - the spec's word
    """Return the module of the plugin `type`, or None when it is not ours.

    Each import is spelled out: mypy checks the module against Plugin, and a frozen build finds it.
    """
    match type:
        case "bridge":
            import plugins.bridge  # noqa: PLC0415 - only the plugin that is asked for

            return plugins.bridge
        case "host-local":
            import plugins.host_local  # noqa: PLC0415 - as above

            return plugins.host_local
        case "loopback":
            import plugins.loopback  # noqa: PLC0415 - as above

            return plugins.loopback
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
