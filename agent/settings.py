"""The agent's settings: each is a flag, a variable of the environment or a file."""

from __future__ import annotations

import ipaddress
import re
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import configuration, leases
from agent.access import SERVICE_ACCOUNT, Access
from agent.configuration import Choice
from agent.install import BIN_DIR
from agent.leftovers import AUTO
from agent.logs import LEVELS
from agent.network.settings import MODES
from agent.network.settings import Settings as NetworkSettings
from cni_common.spec.names import VERSION

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence

    from agent.cluster import Network

PREFIX = "PYCNI_"  # of the variables: --api-server is PYCNI_API_SERVER
DIRECTORY = "PYCNI_SETTINGS"  # the variable that names the directory of files
_VALUE_MAX = 4096  # bytes of such a file
STATE_DIR = "/var/lib/cni/pycni-agent"
LISTEN = "127.0.0.1:9632"
_PORT_MAX = 65535
# Kubernetes: an RFC 1123 subdomain names a Node; "" is refused later. libcni: a network's name.
_NODE = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?")
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}")
_FILE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,199}\.conflist")


@dataclass(frozen=True)
class Settings:
    """All settings of the agent."""

    node: str
    access: Access
    choice: Choice
    network: NetworkSettings
    dist: Path | None  # what to install; None: nothing
    bin_dir: Path
    has_engine: bool
    host_process: int  # its mount namespace is the host's
    runtime_socket: str  # CRI; "auto", or "" for none
    state_dir: Path
    has_condition: bool  # NetworkUnavailable of the Node is the agent's
    listen: tuple[str, int] | None
    log_level: str


@dataclass(frozen=True)
class _Option:
    flag: str
    default: str
    what: str
    parse: Callable[[str], Any]
    metavar: str
    variable: str = ""  # where it is not PREFIX and the flag

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    def value_of(self, environ: Mapping[str, str]) -> str:
        """Return the default, from the environment where it has one."""
        return environ.get(self.variable or f"{PREFIX}{self.name.upper()}", "") or self.default


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ArgumentTypeError(f"'{text}' is none of {', '.join(words)}")
        return text

    return parse


def _like(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ArgumentTypeError(f"'{text}' is no {what}")
        return text

    return parse


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ArgumentTypeError(f"'{text}' is no number from {least} to {most}")
        return int(text)

    return parse


def _flag(text: str) -> bool:
    return _one_of(("true", "false"))(text) == "true"


def _directory(text: str) -> Path:
    if not text.startswith("/"):
        raise ArgumentTypeError(f"'{text}' is no absolute path")
    return Path(text)


def _optional_path(text: str) -> Path | None:
    return _directory(text) if text else None


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip())
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _address(text: str) -> tuple[str, int] | None:
    if not text or text == "none":
        return None
    host, _, port = text.rpartition(":")
    try:
        return str(ipaddress.ip_address(host.strip("[]"))), _number(0, _PORT_MAX)(port)
    except (ValueError, ArgumentTypeError):
        raise ArgumentTypeError(f"'{text}' is no ADDRESS:PORT with an IP address") from None


def _socket(text: str) -> str:
    return "" if text == "none" else text


_SWITCH = "{true,false}"
_CHOICE = Choice()
_NETWORK_DEFAULTS = NetworkSettings()
_OPTIONS = (
    _Option(
        *("--node-name", "", "name of this Node (spec.nodeName of the pod)"),
        *(_like(_NODE, "name of a Node"), "NAME", "NODE_NAME"),
    ),
    _Option("--api-server", "", "URL or HOST:PORT of the API server", str, "URL"),
    _Option("--kubeconfig", "", "kubeconfig file, outside of a pod", str, "FILE"),
    _Option(
        "--service-account", SERVICE_ACCOUNT, "directory of the pod's token", _directory, "DIR"
    ),
    _Option("--mode", _NETWORK_DEFAULTS.mode, "way to other nodes", _one_of(MODES), "MODE"),
    _Option(
        "--uplink",
        "",
        "device to other nodes; by default that of the node's address",
        str,
        "DEVICE",
    ),
    _Option("--vni", str(_NETWORK_DEFAULTS.vni), "VXLAN network", _number(1, 0xFFFFFF), "N"),
    _Option(
        *("--vxlan-port", str(_NETWORK_DEFAULTS.vxlan_port), "UDP port of VXLAN"),
        *(_number(1, _PORT_MAX), "N"),
    ),
    _Option(
        *("--wireguard-port", str(_NETWORK_DEFAULTS.wireguard_port), "UDP port of WireGuard"),
        *(_number(1, _PORT_MAX), "N"),
    ),
    _Option("--masquerade", "true", "masquerade what leaves the cluster", _flag, _SWITCH),
    _Option("--masquerade-config", "", "file in the format of ip-masq-agent", str, "FILE"),
    _Option(
        "--unmasqueraded", "", "more ranges that are not masqueraded, by commas", _networks, "CIDRS"
    ),
    _Option(
        "--interface",
        configuration.PTP,
        "plugin of the pods' interfaces",
        _one_of(configuration.KINDS),
        "PLUGIN",
    ),
    _Option("--portmap", "true", "host ports", _flag, _SWITCH),
    _Option("--bandwidth", "true", "bandwidth annotations", _flag, _SWITCH),
    _Option("--firewall", "false", "the plugin firewall", _flag, _SWITCH),
    _Option(
        "--families",
        "auto",
        "families that the Node must have ranges of; auto: those it has",
        _one_of(tuple(configuration.FAMILIES)),
        "FAMILIES",
    ),
    _Option(
        "--cni-version",
        configuration.AUTO_VERSION,
        "version of the list; auto: by the Node's runtime",
        _one_of(configuration.VERSIONS),
        "VERSION",
    ),
    _Option("--template", "", "list of plugins of one's own", _optional_path, "FILE"),
    _Option(
        "--conf-dir", str(_CHOICE.directory), "the runtime's configurations", _directory, "DIR"
    ),
    _Option("--conf-name", _CHOICE.name, "file of the list", _like(_FILE, "*.conflist"), "NAME"),
    _Option(
        "--network",
        _CHOICE.network,
        "name of the network",
        _like(_NETWORK, "network's name"),
        "NAME",
    ),
    _Option("--bin-dir", BIN_DIR, "the runtime's plugins, on the host too", _directory, "DIR"),
    _Option("--install", "true", "install the plugins; false: read-only host", _flag, _SWITCH),
    _Option("--dist", "", "what to install; by default beside the program", _optional_path, "DIR"),
    _Option("--engine", "true", "run the engine on the host", _flag, _SWITCH),
    _Option(
        *("--host-process", "1", "process whose mount namespace is the host's"),
        *(_number(1, 1 << 22), "PID"),
    ),
    _Option(
        *("--runtime-socket", AUTO, "the runtime's CRI socket, to find leftovers; none: they stay"),
        *(_socket, "PATH"),
    ),
    _Option("--state-dir", STATE_DIR, "last known cluster, WireGuard key", _directory, "DIR"),
    _Option("--condition", "false", "set the Node's condition NetworkUnavailable", _flag, _SWITCH),
    _Option("--listen", LISTEN, "probes and metrics; none: nowhere", _address, "ADDRESS:PORT"),
    _Option("--log-level", "info", "least level of the log", _one_of(LEVELS), "LEVEL"),
)
_ENVIRONMENT = f"""\
Each option has a variable of the environment: {PREFIX} and its name, {PREFIX}API_SERVER for
--api-server; the flag wins. --node-name has NODE_NAME. A file with the name of a variable, in the
directory that {DIRECTORY} names, stands for a variable that is not set.
"""


def with_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, and the files of the directory for those variables that it lacks.

    A mounted ConfigMap is such a directory. The kubelet starts a container again without the API
    server if its ConfigMap is mounted, but not if the environment is made of it.

    Raises OSError where the directory or one of its files cannot be read, ValueError for a file
    that is too long or no text.
    """
    found = dict(environ)
    if not environ.get(DIRECTORY):
        return found
    for path in Path(environ[DIRECTORY]).iterdir():
        if path.name.startswith(PREFIX) and path.name not in found:
            found[path.name] = _read(path)
    return found


def _read(path: Path) -> str:
    with path.open("rb") as file:
        value = file.read(_VALUE_MAX + 1)
    if len(value) > _VALUE_MAX:
        raise ValueError(f"'{path}' is longer than {_VALUE_MAX} bytes")
    try:
        return value.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is no text") from None


def add_options(parser: ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add all options, with the defaults of the environment."""
    for option in _OPTIONS:
        parser.add_argument(
            option.flag,
            type=option.parse,
            default=option.value_of(environ),
            metavar=option.metavar,
            help=f"{option.what} (default: {option.default or 'none'})",
        )


def parser(environ: Mapping[str, str]) -> ArgumentParser:
    """Return the parser of the agent's command line."""
    found = ArgumentParser(
        prog="pycni agent",
        description=f"pycni agent {VERSION}: the network of a Kubernetes node",
        epilog=_ENVIRONMENT,
        formatter_class=RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "command",
        nargs="?",
        choices=("run", "uninstall"),
        default="run",
        help="run: until SIGTERM, which changes nothing on the node (default); uninstall: remove"
        " what the agent has made",
    )
    found.add_argument("--force", action="store_true", help="uninstall although pods use it")
    found.add_argument(
        "--stay",
        action="store_true",
        help="after uninstall: answer probes until SIGTERM, as pods of a DaemonSet do not end",
    )
    found.add_argument("--version", action="version", version=VERSION)
    add_options(found, environ)
    return found


def settings_of(options: Namespace, environ: Mapping[str, str], beside: Path) -> Settings:
    """Return the settings. `beside` is what is installed without --dist."""
    choice = Choice(
        directory=options.conf_dir,
        name=options.conf_name,
        network=options.network,
        cni_version=options.cni_version,
        kind=options.interface,
        families=options.families,
        portmap=options.portmap,
        bandwidth=options.bandwidth,
        firewall=options.firewall,
        template=options.template,
    )
    network = NetworkSettings(
        mode=options.mode,
        uplink=options.uplink,
        vni=options.vni,
        vxlan_port=options.vxlan_port,
        wireguard_port=options.wireguard_port,
        state_dir=str(options.state_dir),
        host_root=f"/proc/{options.host_process}/root",
        masquerade=options.masquerade,
        masquerade_config=options.masquerade_config,
        unmasqueraded=options.unmasqueraded,
        leases=Path(leases.DIRECTORY) / options.network,
    )
    access = Access(
        server=options.api_server,
        kubeconfig=options.kubeconfig,
        service_account=options.service_account,
        host=environ.get("KUBERNETES_SERVICE_HOST", ""),
        port=environ.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    return Settings(
        node=options.node_name,
        access=access,
        choice=choice,
        network=network,
        dist=(options.dist or beside) if options.install else None,
        bin_dir=options.bin_dir,
        has_engine=options.engine,
        host_process=options.host_process,
        runtime_socket=options.runtime_socket,
        state_dir=options.state_dir,
        has_condition=options.condition,
        listen=options.listen,
        log_level=options.log_level,
    )
