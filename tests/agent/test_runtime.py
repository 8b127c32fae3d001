"""The question to the runtime, answered by gRPC's own server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc as services

from agent.runtime import RuntimeUnknownError, sandboxes


class Runtime(services.RuntimeServiceServicer):
    """A runtime with these pods, or one that fails."""

    def __init__(self, *pods: str, code: Any = None) -> None:
        self.pods, self.code = pods, code

    def ListPodSandbox(self, _request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Answer."""
        if self.code:
            context.abort(self.code, "not now")
        labels = {"io.kubernetes.pod.namespace": "default", "filler": "x" * 300}
        metadata = api.PodSandboxMetadata(name="p", uid="u", namespace="default", attempt=3)
        items = [
            api.PodSandbox(
                id=one,
                metadata=metadata,
                labels=labels,
                created_at=1 << 60,
                state=api.SANDBOX_NOTREADY,
            )
            for one in self.pods
        ]
        return api.ListPodSandboxResponse(items=items)


@contextmanager
def served(path: Path, runtime: Runtime) -> Iterator[None]:
    """Serve on a socket."""
    server = grpc.server(ThreadPoolExecutor(1))
    services.add_RuntimeServiceServicer_to_server(runtime, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("number", [0, 1, 3000])
def test_pods(tmp_path: Path, number: int) -> None:
    """All of them: the answer for 3,000 is larger than a window of HTTP/2."""
    ids = [f"{one:064x}" for one in range(number)]

    with served(tmp_path / "cri.sock", Runtime(*ids)):
        assert sandboxes(str(tmp_path / "cri.sock")) == frozenset(ids)


def test_a_failure_of_the_runtime(tmp_path: Path) -> None:
    """It is no empty list."""
    runtime = Runtime(code=grpc.StatusCode.UNAVAILABLE)

    with (
        served(tmp_path / "cri.sock", runtime),
        pytest.raises(RuntimeUnknownError, match="gRPC status 14"),
    ):
        sandboxes(str(tmp_path / "cri.sock"))


def test_without_a_runtime(tmp_path: Path) -> None:
    """The words name the socket."""
    with pytest.raises(RuntimeUnknownError, match=r"cri.sock': .*No such file"):
        sandboxes(str(tmp_path / "cri.sock"))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64])
def test_another_program(tmp_path: Path, answer: bytes) -> None:
    """One that ends the connection, or speaks otherwise."""
    path = str(tmp_path / "cri.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RuntimeUnknownError):
            sandboxes(path)
        thread.join()
