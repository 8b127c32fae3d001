"""The overlay of mode wireguard: one device, one peer for each node, keys made on the node.

The private key is in a file for root alone; the public one is for the node's annotation. Packets to
a node that cannot be reached encrypted are refused by a route `unreachable`, so none goes out in
the clear by the default route.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.network import overlay
from agent.network.kernel import UNREACHABLE, Route
from agent.network.settings import WIREGUARD_DEVICE
from cni_common.node.journal import make_private_directory, open_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from agent.cluster import Member, Network
    from agent.network.kernel import Device, Kernel
    from agent.network.plan import Peer
    from agent.network.settings import Settings

KIND = "wireguard"
KEY_FILE = "wireguard.key"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A peer: where it is, and which addresses are behind it."""

    endpoint: tuple[str, int]
    ranges: frozenset[str]


def key_of(state_dir: str) -> str:
    """Return the node's private key in base64, made if there is none. Raises OSError, ValueError.

    A file that holds no key is not replaced: the other nodes may know its public key.
    """
    path = f"{state_dir}/{KEY_FILE}"
    try:
        with open(open_file(path, os.O_RDONLY), encoding="ascii") as file:
            text = file.read(256).strip()
    except FileNotFoundError:
        return _make_key(state_dir, path)
    if not is_key(text):
        raise ValueError(f"'{path}' holds no key; delete it to have another one made")
    return text


def _make_key(state_dir: str, path: str) -> str:
    make_private_directory(state_dir)
    octets = bytearray(os.urandom(_KEY_BYTES))
    octets[0] &= 248  # RFC 7748 section 5
    octets[31] = octets[31] & 127 | 64
    text = b64encode(octets).decode()
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(fd)
    os.rename(temporary, path)
    return text


def is_key(text: str) -> bool:
    """Tell whether a text is a key in base64, in the one form in which WireGuard tells it again."""
    try:
        octets = b64decode(text, validate=True)
        return len(octets) == _KEY_BYTES and b64encode(octets).decode() == text
    except (BinasciiError, ValueError):
        return False


def ensure(kernel: Kernel, settings: Settings, own: Member, mtu: int) -> tuple[Device | None, str]:
    """Return the device with its key and addresses, and the public key; None and "" for failure."""
    try:
        private = key_of(settings.state_dir)
    except (OSError, ValueError) as error:
        kernel.problems.append(f"there is no WireGuard key: {error}")
        return None, ""
    device = overlay.ensure(kernel, WIREGUARD_DEVICE, KIND, mtu=mtu)
    if device is None:
        return None, ""
    overlay.address(kernel, device, own.ranges)
    from pyroute2 import WireGuard

    with WireGuard() as wireguard:
        known = _about(wireguard, device)
        if (known.private, known.port) != (private, settings.wireguard_port):
            kernel.do(
                f"set the key of '{device.name}', or its UDP port {settings.wireguard_port}",
                wireguard.set,
                device.name,
                listen_port=settings.wireguard_port,
                private_key=private,
            )
            known = _about(wireguard, device)
    return device, known.public


def tunnels(
    own: Member, peers: Iterable[Peer], version: int, *, port: int
) -> tuple[dict[str, Tunnel], list[str]]:
    """Return the peers of the device by their public keys, and words about nodes without one."""
    holders = {own.public_key: own.name}
    found: dict[str, Tunnel] = {}
    problems = []
    for peer in peers:
        key, name = peer.member.public_key, peer.member.name
        address = peer.member.address(version)
        words = _words_against(key, holders)
        if not words and not address:
            words = f"it has no IPv{version} address, which the other nodes use"
        if words:
            problems.append(f"no WireGuard tunnel to node '{name}': {words}")
            continue
        holders[key] = name
        found[key] = Tunnel((str(address), port), frozenset(map(str, peer.ranges)))
    return found, problems


def _words_against(key: str, holders: dict[str, str]) -> str:
    if not key:
        return "it has not announced its key yet"
    if not is_key(key):
        return "its annotation holds no key; delete the annotation"
    if key in holders:
        return f"node '{holders[key]}' has the same key; delete the file {KEY_FILE} on one of them"
    return ""


def routes(
    device: Device | None, own: Member, peers: Iterable[Peer], found: dict[str, Tunnel]
) -> dict[Network, Route]:
    """Return the routes to the pods of `peers`: by the device, or `unreachable` without a tunnel.

    Only the node's own IP versions have routes.
    """
    sources = {network.version: overlay.inner(network) for network in own.ranges}
    behind = {text for tunnel in found.values() for text in tunnel.ranges}
    return {
        network: (
            Route(network, device=device.index, source=sources[network.version])
            if device and str(network) in behind
            else Route(network, type=UNREACHABLE)
        )
        for peer in peers
        for network in peer.ranges
        if network.version in sources
    }


def converge(kernel: Kernel, device: Device, wanted: dict[str, Tunnel]) -> None:
    """Have exactly the `wanted` peers, by their public keys."""
    from pyroute2 import WireGuard

    with WireGuard() as wireguard:
        present = _about(wireguard, device).tunnels
        for key in sorted(present.keys() - wanted.keys()):
            peer: dict[str, Any] = {"public_key": key, "remove": True}
            what = f"remove a peer from '{device.name}'"
            kernel.do(what, wireguard.set, device.name, peer=peer)
        for key, tunnel in wanted.items():
            if present.get(key) != tunnel:
                peer = {
                    "public_key": key,
                    "endpoint_addr": tunnel.endpoint[0],
                    "endpoint_port": tunnel.endpoint[1],
                    "replace_allowed_ips": True,
                    "allowed_ips": sorted(tunnel.ranges),
                }
                what = f"set peer {tunnel.endpoint[0]} of '{device.name}'"
                kernel.do(what, wireguard.set, device.name, peer=peer)


@dataclass(frozen=True, slots=True)
class _About:
    """A device as WireGuard tells of it."""

    private: str
    public: str
    port: int
    tunnels: dict[str, Tunnel]


def _about(wireguard: Any, device: Device) -> _About:
    """Return what the device has; a peer with many ranges comes in several messages."""
    private = public = ""
    port = 0
    endpoints: dict[str, tuple[str, int]] = {}
    ranges: dict[str, set[str]] = {}
    for message in wireguard.info(device.name):
        private = _text(message.get("WGDEVICE_A_PRIVATE_KEY")) or private
        public = _text(message.get("WGDEVICE_A_PUBLIC_KEY")) or public
        port = message.get("WGDEVICE_A_LISTEN_PORT") or port
        for peer in message.get("WGDEVICE_A_PEERS") or ():
            key = _text(peer.get("WGPEER_A_PUBLIC_KEY"))
            endpoint = peer.get("WGPEER_A_ENDPOINT")
            if endpoint:
                endpoints[key] = (endpoint["addr"], endpoint["port"])
            allowed = peer.get("WGPEER_A_ALLOWEDIPS") or ()
            ranges.setdefault(key, set()).update(one["addr"] for one in allowed)
    tunnels = {
        key: Tunnel(endpoints.get(key, ("", 0)), frozenset(found)) for key, found in ranges.items()
    }
    return _About(private, public, port, tunnels)


def _text(value: Any) -> str:
    """Return a key as text: pyroute2 has it as bytes, maybe in the dictionary of an attribute."""
    if isinstance(value, dict):
        value = value.get("value")
    return value.decode() if isinstance(value, bytes) else value or ""
