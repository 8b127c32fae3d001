"""CRI: what the kubelet asks of containerd, by the stubs of container-runtime-interface-api."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc as services

from tests.machine import Json
from tests.runtimes import image
from tests.runtimes.containerd import SOCKET
from tests.runtimes.node import SECONDS, RuntimeNode


class RefusedError(Exception):
    """The runtime has refused a request; the text is what the kubelet would log."""


@dataclass(frozen=True)
class Port:
    """A host port as a pod asks for it."""

    host: int
    container: int = 80
    protocol: str = "TCP"
    address: str = ""


class Kubelet:
    """A client of the CRI on a node."""

    def __init__(self, node: RuntimeNode) -> None:
        self._node = node
        self._channel = grpc.insecure_channel(f"unix://{node.path(SOCKET)}")
        self._runtime: Any = services.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._configs: dict[str, Any] = {}

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _ask(self, method: str, **fields: Any) -> Any:
        request = getattr(api, f"{method}Request")(**fields)
        try:
            return getattr(self._runtime, method)(request, timeout=SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNKNOWN:
                raise RefusedError(error.details()) from None
            raise

    # --- pods ---

    def is_ready(self) -> bool:
        """Tell whether the node would be Ready, as far as its network goes."""
        conditions = self._ask("Status").status.conditions
        return bool(next(one.status for one in conditions if one.type == "NetworkReady"))

    def run(self, name: str, *ports: Port, annotations: Mapping[str, str] | None = None) -> str:
        """Make a pod, and return its id."""
        mappings = [
            api.PortMapping(
                host_port=port.host,
                container_port=port.container,
                protocol=api.Protocol.Value(port.protocol),
                host_ip=port.address,
            )
            for port in ports
        ]
        options = api.NamespaceOption(network=api.POD, pid=api.CONTAINER)
        context = api.LinuxSandboxSecurityContext(namespace_options=options)
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=str(uuid.uuid4()), namespace="default"),
            hostname=name,
            log_directory=f"/run/pods/{name}",
            annotations=annotations or {},
            port_mappings=mappings,
            linux=api.LinuxPodSandboxConfig(security_context=context),
        )
        pod: str = self._ask("RunPodSandbox", config=config).pod_sandbox_id
        self._configs[pod] = config
        return pod

    def stop(self, pod: str) -> None:
        """Stop a pod: DEL, if its network is still there; may be repeated."""
        self._ask("StopPodSandbox", pod_sandbox_id=pod)

    def remove(self, pod: str) -> None:
        """Remove a pod: DEL once more, without a namespace; may be repeated."""
        self._ask("RemovePodSandbox", pod_sandbox_id=pod)

    def end(self, *pods: str) -> None:
        """Stop and remove pods."""
        for pod in pods:
            self.stop(pod)
            self.remove(pod)

    def pods(self) -> list[str]:
        """Return all pods, also those that could not be made."""
        return [pod.id for pod in self._ask("ListPodSandbox").items]

    def addresses(self, pod: str) -> list[str]:
        """Return a pod's addresses."""
        network = self._ask("PodSandboxStatus", pod_sandbox_id=pod).status.network
        return [network.ip, *(more.ip for more in network.additional_ips)] if network.ip else []

    def is_running(self, pod: str) -> bool:
        """Tell whether a pod's process lives, as far as the runtime has noticed."""
        status = self._ask("PodSandboxStatus", pod_sandbox_id=pod).status
        return bool(status.state == api.SANDBOX_READY)

    def _info(self, pod: str) -> Json:
        reply = self._ask("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)
        info: Json = json.loads(reply.info["info"])
        return info

    def pid(self, pod: str) -> int:
        """Return the number, on the node, of the process that a pod consists of."""
        return int(self._info(pod)["pid"])

    def netns(self, pod: str) -> str:
        """Return the path of a pod's network namespace on the node."""
        namespaces = self._info(pod)["runtimeSpec"]["linux"]["namespaces"]
        path = str(next(one["path"] for one in namespaces if one["type"] == "network"))
        return path.removeprefix("/var")  # /var/run is a link, which would lead away from the node

    # --- containers ---

    def start(self, pod: str, *command: str) -> str:
        """Start a container in a pod, and return its id."""
        container: str = self._ask(
            "CreateContainer",
            pod_sandbox_id=pod,
            sandbox_config=self._configs[pod],
            config=api.ContainerConfig(
                metadata=api.ContainerMetadata(name=uuid.uuid4().hex),
                image=api.ImageSpec(image=image.NAME),
                command=command,
                linux=api.LinuxContainerConfig(),
            ),
        ).container_id
        self._ask("StartContainer", container_id=container)
        return container

    def execute(self, container: str, *command: str) -> str:
        """Return what a command prints inside a container, failed or not."""
        reply = self._ask("ExecSync", container_id=container, cmd=command, timeout=int(SECONDS))
        return str(reply.stdout.decode())
