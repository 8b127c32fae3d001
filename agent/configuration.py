"""The list of plugins that the runtime reads: written last, by a rename, only when it changes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import files
from agent.network.settings import BRIDGE_DEVICE
from agent.snapshot import overlaps
from cni_common.node.host import STATE_DIR
from cni_common.node.interface import VethFacts
from cni_common.node.journal import make_private_directory
from cni_common.node.record import Records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.cluster import Member, Network
    from agent.snapshot import Snapshot
    from cni_common.node.record import Record

PTP, BRIDGE = "ptp", "bridge"
KINDS = (PTP, BRIDGE)
AUTO_VERSION, OLD_VERSION, NEW_VERSION = "auto", "1.0.0", "1.1.0"
VERSIONS = (AUTO_VERSION, OLD_VERSION, NEW_VERSION)
FAMILIES: Mapping[str, frozenset[int]] = {
    "auto": frozenset(),
    "ipv4": frozenset({4}),
    "ipv6": frozenset({6}),
    "dual": frozenset({4, 6}),
}
# Files that a runtime takes for configurations; it uses the first by name (libcni, ConfFiles).
_EXTENSIONS = (".conf", ".conflist", ".json")
_DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
_BRIDGE_CALLS = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
_BRIDGE_SYSCTLS = Path("/proc/sys/net/bridge")
# From these versions of runtimes on, their libcni reads CNI 1.1.0 (and calls STATUS). containerd
# before 2.0.3 can deadlock in STATUS (go-cni 1.1.11).
_READS_NEW = {"containerd": (2, 0, 3), "cri-o": (1, 32, 0)}
_PLACEHOLDER = re.compile(r"^\$\{(\w+)\}$")


class ConfigurationError(Exception):
    """The list cannot be written, and the file was left as it is; the message names the remedy."""


@dataclass(frozen=True)
class Choice:
    """The operator's choices for the list.

    `families` is a key of FAMILIES, `cni_version` one of VERSIONS, `kind` one of KINDS. `template`
    is a list of the operator's own, None for ours. Without the file `indicator`, of which no boot
    knows, host-local refuses new pods. Its directory has nothing else.
    """

    directory: Path = Path("/etc/cni/net.d")
    name: str = "10-pycni.conflist"
    network: str = "pycni"
    cni_version: str = AUTO_VERSION
    kind: str = PTP
    families: str = "auto"
    portmap: bool = True
    bandwidth: bool = True
    firewall: bool = False
    template: Path | None = None
    indicator: Path = Path(STATE_DIR) / "agent" / "ready"

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.name


def cni_version(choice: Choice, runtime: str) -> str:
    """Return the version of the list: the newest that the runtime of the node reads.

    `runtime` is as the kubelet reports it, "containerd://2.4.2". An unknown one gets 1.0.0, which
    all runtimes of Kubernetes 1.24 and later read.
    """
    if choice.cni_version != AUTO_VERSION:
        return choice.cni_version
    name, _, version = runtime.partition("://")
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if name not in _READS_NEW or not numbers:
        return OLD_VERSION
    found = tuple(int(one or 0) for one in numbers.groups())
    return NEW_VERSION if found >= _READS_NEW[name] else OLD_VERSION


def lacking(choice: Choice, own: Member) -> str:
    """Return which ranges the node has to get before the list can be written, "" for none."""
    have = {one.version for one in own.ranges}
    missing = FAMILIES[choice.families] - have
    if missing:
        return f"IPv{' and IPv'.join(map(str, sorted(missing)))}"
    return "" if have else "any family"


def render(choice: Choice, snapshot: Snapshot, mtu: int) -> bytes:
    """Return the text of the list. `mtu` is of the pods' interfaces, in bytes.

    Raises ConfigurationError where the node has no ranges yet, or for a template that is none.
    """
    own = snapshot.cluster.own
    missing = lacking(choice, own)
    if missing:
        raise ConfigurationError(
            f"the Node '{own.name}' has no podCIDR of {missing} yet: the controller manager gives"
            " it with --allocate-node-cidrs, kubeadm with podSubnet"
        )
    wanted = FAMILIES[choice.families]
    ranges = [one for one in own.ranges if not wanted or one.version in wanted]
    version = cni_version(choice, snapshot.runtime)
    ipam: dict[str, Any] = {
        "type": "host-local",
        "ranges": [[{"subnet": str(one)}] for one in ranges],
        "routes": [{"dst": _DEFAULT_ROUTES[one.version]} for one in ranges],
        "readinessIndicatorFile": str(choice.indicator),
    }
    closed = why_closed(snapshot)
    if closed:
        ipam["closed"] = closed
    if choice.template:
        found = {"name": choice.network, **_from_template(choice.template, ipam, mtu)}
        if found["name"] != choice.network:  # by which pods and leases are found again
            raise ConfigurationError(
                f"the template '{choice.template}' has the name '{found['name']}', and the agent's"
                f" network is '{choice.network}': leave the name out, or choose it by --network"
            )
        return _text({"cniVersion": version, **found})
    return _text(
        {
            "cniVersion": version,
            "name": choice.network,
            "plugins": list(_plugins(choice, ipam, mtu)),
        }
    )


def why_closed(snapshot: Snapshot) -> str:
    """Return why new pods are refused, "" where they are not.

    Two nodes with one range would give one address to two pods. Neither can know which of the two
    is right, so both refuse; pods that run stay, and can be deleted.
    """
    found = overlaps(snapshot.cluster)
    if not found:
        return ""
    own, other, theirs = found[0]
    return (
        f"podCIDR {own} of node {snapshot.cluster.own.name} overlaps {theirs} of node {other.name}:"
        " delete one of the two Nodes and have it registered again"
    )


def taker(snapshot: Snapshot) -> str:
    """Return the node to which others send packets for pods of this node, "" where it is this one.

    Where ranges overlap, the first node by name has them on each other node (network/plan.py).
    """
    own = snapshot.cluster.own.name
    first = min((other.name for _, other, _ in overlaps(snapshot.cluster)), default=own)
    return first if first < own else ""


def _plugins(choice: Choice, ipam: dict[str, Any], mtu: int) -> list[dict[str, Any]]:
    # ipMasq stays false: the agent masquerades what leaves the cluster, for all pods at once.
    interface: dict[str, Any] = {"type": choice.kind, "mtu": mtu, "ipam": ipam}
    if choice.kind == BRIDGE:
        interface |= {"bridge": BRIDGE_DEVICE, "isDefaultGateway": True, "hairpinMode": True}
        # The bridge is of this network alone, and keeps the gateway of a range that the node had
        # before. The plugin leaves an address alone that a living container needs.
        interface["forceAddress"] = True
    plugins = [interface]
    if choice.portmap:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    if choice.bandwidth:
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    if choice.firewall:
        plugins.append({"type": "firewall"})
    return plugins


def _text(found: dict[str, Any]) -> bytes:
    return json.dumps(found, indent=2).encode() + b"\n"


# --- a list of the operator's own ---


def _from_template(path: Path, ipam: dict[str, Any], mtu: int) -> dict[str, Any]:
    """Return the template's list with its placeholders filled in. Raises ConfigurationError."""
    try:
        found = json.loads(files.read(path) or b"")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the template '{path}' cannot be read: {error}") from None
    plugins = found.get("plugins") if isinstance(found, dict) else None
    if not isinstance(plugins, list) or not all(_has_type(one) for one in plugins) or not plugins:
        raise ConfigurationError(
            f"the template '{path}' is no list of plugins: it needs \"plugins\", each with a type"
        )
    filled: dict[str, Any] = _fill(found, {**ipam, "mtu": mtu}, path)
    kept = {key: ipam[key] for key in ("readinessIndicatorFile", "closed") if key in ipam}
    for plugin in filled["plugins"]:
        own = plugin.get("ipam")
        if isinstance(own, dict) and own.get("type") == ipam["type"]:
            own |= kept
    return filled


def _has_type(plugin: object) -> bool:
    return isinstance(plugin, dict) and isinstance(plugin.get("type"), str) and bool(plugin["type"])


def _fill(value: Any, values: dict[str, Any], path: Path) -> Any:
    """Replace each string "${ranges}", "${routes}" and "${mtu}". Raises ConfigurationError."""
    if isinstance(value, dict):
        return {key: _fill(one, values, path) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, values, path) for one in value]
    if isinstance(value, str) and (found := _PLACEHOLDER.match(value)):
        if found[1] not in ("ranges", "routes", "mtu"):
            raise ConfigurationError(
                f"the template '{path}' has {value}; there are ${{ranges}}, ${{routes}}, ${{mtu}}"
            )
        return values[found[1]]
    return value


# --- the file, and what is beside it ---


def open_node(choice: Choice) -> None:
    """Have pods start from now on until the node's next boot: its network is made.

    Raises OSError.
    """
    make_private_directory(str(choice.indicator.parent))
    files.replace(choice.indicator, b"", 0o600)


def waits(choice: Choice) -> bool:
    """Tell whether the list that is there keeps pods from starting without the indicator."""
    return str(choice.indicator).encode() in (files.read(choice.path) or b"")


def write(choice: Choice, text: bytes, bin_dir: Path) -> bool:
    """Put the list into its file; return False if it is there already.

    containerd accepts a list whose executables are missing, and then leaks what the first of them
    have taken. So this refuses it with ConfigurationError. Raises OSError.
    """
    found = json.loads(text)
    types = [one["type"] for one in found["plugins"]]
    ipams = [one["ipam"] for one in found["plugins"] if isinstance(one.get("ipam"), dict)]
    types += [one["type"] for one in ipams if isinstance(one.get("type"), str) and one["type"]]
    missing = sorted({type for type in types if not (bin_dir / type).is_file()})
    if missing:
        raise ConfigurationError(
            f"'{bin_dir}' lacks {', '.join(missing)}: install it there, or leave it out of the list"
        )
    return files.replace(choice.path, text)


def set_aside(choice: Choice) -> bool:
    """Take the list away if it is of our network, so that `restore` can bring it back.

    Return whether there was one. Raises OSError.
    """
    try:
        found = json.loads(files.read(choice.path) or b"")
    except ValueError:
        return False
    if not isinstance(found, dict) or found.get("name") != choice.network:
        return False
    choice.path.rename(_aside(choice))
    return True


def restore(choice: Choice) -> None:
    """Bring back the list that was set aside, also by a process that was killed.

    One that has come since stays. Raises OSError.
    """
    if choice.path.exists():
        forget(choice)
    elif _aside(choice).exists():
        _aside(choice).rename(choice.path)


def forget(choice: Choice) -> None:
    """Remove for good what was set aside. Raises OSError."""
    _aside(choice).unlink(missing_ok=True)


def _aside(choice: Choice) -> Path:
    return choice.path.with_name(f".{choice.name}.removed")  # no runtime reads it


def problems(choice: Choice, ranges: tuple[Network, ...]) -> list[str]:
    """Return what keeps the list from being used or from working. Raises OSError."""
    found = []
    try:
        names = sorted(path.name for path in choice.directory.iterdir())
    except FileNotFoundError:
        names = []
    first = next((name for name in names if name.endswith(_EXTENSIONS)), choice.name)
    if first < choice.name:
        found.append(
            f"the runtime uses '{choice.directory / first}', whose name comes first: remove that"
            f" file, or choose another name than {choice.name} by --conf-name"
        )
    if choice.kind == BRIDGE and not choice.template:
        found += _bridge_problems({one.version for one in ranges})
    return found


def of_another_plugin(choice: Choice, state_dir: str = STATE_DIR) -> list[str]:
    """Return what is wrong where pods were attached by another plugin than new ones are.

    Pods on a bridge look for all of their range there, and so do not find the others. Raises
    CNIError, OSError where the records cannot be read.
    """
    if choice.template:
        return []
    records = Records(state_dir)
    try:
        found = [one for one, _ in records.listing() if one.network == choice.network]
    finally:
        records.close()
    others = {one.plugin for one in found if one.plugin in KINDS and _has_link(one)} - {choice.kind}
    return [
        f"pods of this node were attached by the plugin {other}, and do not reach those of"
        f" {choice.kind}: drain the node, and delete its pods of DaemonSets"
        for other in sorted(others)
    ]


def _has_link(record: Record) -> bool:
    """Tell whether the host's end is there: a DEL by another plugin leaves the record."""
    facts = record.get(VethFacts)
    return facts is not None and Path("/sys/class/net", facts.host_end or ".none").exists()


def _bridge_problems(versions: set[int]) -> list[str]:
    """Return what a Service of a pod on the same bridge fails by.

    Replies between two ports of a bridge are switched, so conntrack does not see them and does not
    undo kube-proxy's redirection, unless br_netfilter passes them by.
    """
    if not _BRIDGE_SYSCTLS.exists():
        return [
            "br_netfilter is not loaded, so pods on this node do not reach Services whose pod is on"
            " this node, too: run 'modprobe br_netfilter', or use --interface ptp"
        ]
    return [
        f"net.bridge.{_BRIDGE_CALLS[version]} is 0, so pods on this node do not reach Services"
        f" whose pod is on this node, too: run 'sysctl net.bridge.{_BRIDGE_CALLS[version]}=1'"
        for version in sorted(versions)
        if (_BRIDGE_SYSCTLS / _BRIDGE_CALLS[version]).read_text().strip() == "0"
    ]
