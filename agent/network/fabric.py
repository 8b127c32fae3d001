"""The network between nodes, as one thing: applied to a cluster, watched, removed."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.network import (
    bridge,
    masquerade,
    masquerade_config,
    overlay,
    plan,
    routes,
    uplink,
    vxlan,
    wireguard,
)
from agent.network.kernel import Kernel, Route
from agent.network.own import OwnNetNS
from agent.network.plan import Peer
from agent.network.settings import AUTO, DIRECT, VXLAN, VXLAN_DEVICE, WIREGUARD, WIREGUARD_DEVICE
from agent.network.watched import LOST, PODS, Watched
from cni_common.node.veth import enable_forwarding
from cni_common.spec.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from typing import Protocol

    from agent.cluster import Address, Cluster, Member, Network
    from agent.network.kernel import Device, Found
    from agent.network.settings import Settings
    from agent.network.uplink import Uplinks
    from cni_common.kernel.netns import NetNS

    class Closeable(Protocol):
        """A thing that ends."""

        def close(self) -> None:
            """End, and wait for the end."""


_PROBLEMS_MAX = 50  # sentences of one application


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of one application."""

    mtu: int  # bytes, for the interfaces of pods; 0: the node has no uplink yet
    public_key: str  # the node's WireGuard key in base64, "" in other modes
    problems: tuple[str, ...]  # sentences: each says what is wrong, where, and what to do
    repaired: int = 0  # objects of pods that are back
    # Those of the problems by which a new pod would not reach others: masquerading, forwarding.
    unfit: tuple[str, ...] = ()


class Fabric:
    """The network between the nodes, in the network namespace of the thread that calls.

    One thread at a time may call `apply` and `remove`.
    """

    def __init__(self, settings: Settings, log: Callable[[str], object]) -> None:
        self._settings = settings
        self._log = log
        self._config = masquerade_config.Masquerading()  # the last one that could be read
        self._watched = Watched()
        self.broken: Mapping[str, str] = {}  # what pods lacked after the last look, by container
        self._netns: OwnNetNS | None = None
        # Whether pods may lack something: at the start, since the agent may have been away.
        self._pods_suspected = threading.Event()
        self._pods_suspected.set()

    def apply(self, cluster: Cluster) -> Applied:
        """Read the kernel anew and bring it to what `cluster` asks for; changes nothing else.

        Objects that are right already are left alone. A request that the kernel refuses is a
        problem, and the others go on. While the node has no range for pods, nothing is changed:
        ranges that a Node object has lost may come back. Raises OSError where there is no netlink.
        """
        with Kernel(self._own_netns()) as kernel:
            mtu, key = kernel.attempt(lambda: self._connect(kernel, cluster), (0, ""))
            problems = kernel.problems
        repaired, unfit = 0, tuple[str, ...]()
        if cluster.own.ranges:
            problems += self._prepare_masquerading()
            unfit = (*self._forward(cluster), *self._masquerade(cluster))
            problems += unfit
            repaired, words = self._put_back()
            problems += words
        more = len(problems) - _PROBLEMS_MAX
        if more > 0:
            problems[_PROBLEMS_MAX:] = [f"{more} more problems of the network are not listed"]
        return Applied(mtu, key, tuple(problems), repaired, unfit)

    def listen(self, wake: Callable[[str], None]) -> Closeable:
        """Call `wake` with a reason, from a thread, when others have changed something of ours.

        Raises OSError.
        """
        from agent.network.listener import Listener

        def known() -> tuple[Watched, float]:
            return self._watched, self._config.resync_seconds

        def notice(reason: str) -> None:
            if reason in (PODS, LOST):
                self._pods_suspected.set()
            wake(reason)

        return Listener(notice, known, path=self._settings.masquerade_config)

    def remove(self) -> tuple[str, ...]:
        """Remove all that `apply` has made, and nothing else; return the problems.

        Forwarding stays on: others may rely on it by now.
        """
        self._watched = Watched()
        with Kernel(self._own_netns()) as kernel:
            kernel.attempt(lambda: self._disconnect(kernel), None)
            problems = kernel.problems
        try:
            masquerade.remove(self._own_netns())
        except OSError as error:
            problems.append(f"cannot remove '{masquerade.TABLE}': {error.strerror}")
        try:
            os.unlink(f"{self._settings.state_dir}/{wireguard.KEY_FILE}")
        except FileNotFoundError:
            pass
        except OSError as error:
            problems.append(f"cannot remove the WireGuard key: {error}")
        return tuple(problems)

    def close(self) -> None:
        """Close what stays open between applications."""
        if self._netns:
            self._netns.close()
            self._netns = None

    def _disconnect(self, kernel: Kernel) -> None:
        routes.remove(kernel)
        overlay.remove(kernel, VXLAN_DEVICE, vxlan.KIND)
        overlay.remove(kernel, WIREGUARD_DEVICE, wireguard.KIND)
        bridge.remove(kernel, self._log)

    # --- parts of an application ---

    def _connect(self, kernel: Kernel, cluster: Cluster) -> tuple[int, str]:
        """Make devices and routes; return the MTU of pods and the node's public key."""
        own, mode = cluster.own, self._settings.mode
        addresses = kernel.addresses()
        uplinks = uplink.find(kernel, own, addresses, self._settings.uplink)
        version = plan.underlay(own)
        mtu = uplinks.mtu(mode, version)
        if not own.ranges or not mtu:
            return mtu, ""
        uplink.refuse_small(kernel, mtu, {one.version for one in own.ranges})
        local = {interface.ip for _, interface in addresses}
        peers, problems = plan.peers(cluster, local)
        kernel.problems += problems
        bridge.remove_old_gateways(kernel, own, self._settings.leases, self._log)
        work = _Connection(kernel, self._own_netns(), self._settings, own, mtu=mtu)
        work.make_device()
        present = kernel.routes()
        wanted = work.plan(peers, present)
        self._watched = self._expected(work, wanted, uplinks, local=local)
        work.connect()
        routes.converge(kernel, wanted, present)
        work.remove_others()
        return mtu, work.public_key

    def _expected(
        self,
        work: _Connection,
        wanted: dict[Network, Route],
        uplinks: Uplinks,
        *,
        local: Collection[Address],
    ) -> Watched:
        """Return what events may contradict; called before the changes that cause events."""
        devices = [*uplinks.devices.values(), *([work.device] if work.device else [])]
        inner = map(overlay.inner, work.own.ranges) if work.device else ()
        return Watched(
            wanted,
            {one.name: (one.index, one.mtu) for one in devices},
            {one: one in local for one in work.own.addresses} | dict.fromkeys(inner, True),
            overlay=work.device.index if work.device else 0,
            neighbours=work.neighbours,
            versions={one.version for one in work.own.ranges},
            nft_ports=(self._own_netns().netfilter.sock.getsockname()[0],),
        )

    def _forward(self, cluster: Cluster) -> list[str]:
        versions: set[int] = {one.version for one in cluster.own.ranges}
        try:
            enable_forwarding(self._own_netns(), versions, self._log)
        except (CNIError, OSError) as error:
            return [f"the node does not forward packets of pods: {error}"]
        return []

    def _prepare_masquerading(self) -> list[str]:
        """Read which ranges the operator leaves out; switched off, remove an earlier agent's."""
        path, problems = self._settings.masquerade_config, []
        if path:
            try:
                self._config = masquerade_config.load(path)
            except (OSError, ValueError) as error:
                problems.append(f"'{path}' is not used, the last good one is: {error}")
        if not self._settings.masquerade:
            try:
                masquerade.remove(self._own_netns())
            except OSError as error:
                problems.append(f"cannot remove '{masquerade.TABLE}': {error.strerror}")
        return problems

    def _masquerade(self, cluster: Cluster) -> list[str]:
        if not self._settings.masquerade:
            return []
        members = (cluster.own, *cluster.others)
        inside = [one for member in members for one in member.ranges]
        inside += self._settings.unmasqueraded
        own = cluster.own.ranges
        try:
            if masquerade.converge(self._own_netns(), own, inside, self._config):
                self._log(f"masquerading was set: '{masquerade.TABLE}'")
        except OSError as error:
            return [f"packets of pods are not masqueraded: {error.strerror}"]
        return []

    def _put_back(self) -> tuple[int, tuple[str, ...]]:
        """Put back what pods lack; return how much that was, and the problems."""
        if not self._settings.pods_state_dir or not self._pods_suspected.is_set():
            return 0, ()
        self._pods_suspected.clear()
        from agent.network import pods

        found = pods.put_back(self._settings.pods_state_dir, self._own_netns(), self._log)
        if found.problems:  # which may pass: firewalld starts
            self._pods_suspected.set()
        self.broken = found.broken
        return found.repaired, found.problems

    def _own_netns(self) -> OwnNetNS:
        """Return the namespace, whose channel for nftables stays the same."""
        if self._netns is None:
            self._netns = OwnNetNS(self._settings.host_root)
        return self._netns


class _Connection:
    """Devices and routes of one application."""

    def __init__(
        self, kernel: Kernel, netns: NetNS, settings: Settings, own: Member, *, mtu: int
    ) -> None:
        """`mtu` is that of the overlay, in bytes."""
        self.own = own
        self.device: Device | None = None  # of the overlay
        self.neighbours: dict[Address, str] = {}  # MACs in it, by inner address
        self.public_key = ""
        self._kernel, self._netns, self._settings = kernel, netns, settings
        self._mtu, self._version = mtu, plan.underlay(own)
        self._far: list[Peer] = []  # by vxlan
        self._tunnels: dict[str, wireguard.Tunnel] = {}

    def make_device(self) -> None:
        """Make the device of the mode's overlay, if it has one."""
        kernel, settings = self._kernel, self._settings
        if settings.mode in (VXLAN, AUTO):
            self.device = vxlan.ensure(
                kernel, settings, self.own, version=self._version, mtu=self._mtu
            )
        elif settings.mode == WIREGUARD:
            self.device, self.public_key = wireguard.ensure(kernel, settings, self.own, self._mtu)
        if self.device:
            overlay.set_sysctls(self._netns, self.device.name)

    def remove_others(self) -> None:
        """Remove the devices of other modes, once no route needs them."""
        if self._settings.mode not in (VXLAN, AUTO):
            overlay.remove(self._kernel, VXLAN_DEVICE, vxlan.KIND)
        if self._settings.mode != WIREGUARD:
            overlay.remove(self._kernel, WIREGUARD_DEVICE, wireguard.KIND)

    def plan(self, peers: Sequence[Peer], present: Sequence[Found]) -> dict[Network, Route]:
        """Return the routes to the pods of `peers`; an unreachable node is a problem."""
        mode, version, problems = self._settings.mode, self._version, self._kernel.problems
        if mode == WIREGUARD:
            port = self._settings.wireguard_port
            self._tunnels, words = wireguard.tunnels(self.own, peers, version, port=port)
            problems += words
            return wireguard.routes(self.device, self.own, peers, self._tunnels)
        near, far = self._by_link(peers, present) if mode in (DIRECT, AUTO) else ({}, list(peers))
        if mode == DIRECT:
            problems += [_not_on_link(peer, one) for peer in far for one in peer.ranges]
            return near
        if self.device is None:
            return near
        self._far, words = vxlan.reachable(far, version)
        problems += words
        self.neighbours = vxlan.neighbours(self._far, version)
        return near | vxlan.routes(self.device, self.own, self._far)

    def connect(self) -> None:
        """Have the overlay lead to the nodes to which it is planned to lead."""
        if self.device is None:
            return
        if self._settings.mode == WIREGUARD:
            wireguard.converge(self._kernel, self.device, self._tunnels)
        else:
            vxlan.converge(self._kernel, self.device, self._far, self._version)

    def _by_link(
        self, peers: Iterable[Peer], present: Iterable[Found]
    ) -> tuple[dict[Network, Route], list[Peer]]:
        """Return routes by the nodes' own addresses, and the ranges to which none leads."""
        networks = uplink.Neighbourhood(present)
        near, far = {}, []
        for peer in peers:
            left = []
            for network in peer.ranges:
                address = peer.member.address(network.version)
                index = networks.device_to(address) if address else 0
                if index:
                    near[network] = Route(network, address, index)
                else:
                    left.append(network)
            if left:
                far.append(Peer(peer.member, tuple(left)))
        return near, far


def _not_on_link(peer: Peer, network: Network) -> str:
    address = peer.member.address(network.version)
    if address:
        words = f"its address {address} is in no network that this node is in, too"
    else:
        words = f"it has no IPv{network.version} address"
    return (
        f"no route to the pods of node '{peer.member.name}', {network}: {words}; mode {DIRECT}"
        f" needs that, {AUTO}, {VXLAN} and {WIREGUARD} do not"
    )
