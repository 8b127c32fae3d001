"""/healthz, /readyz and /metrics over HTTP."""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from agent.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.metrics import Metrics

_Request = socket.socket | tuple[bytes, socket.socket]

_CONNECTIONS_MAX = 16
_IDLE_SECONDS = 3600.0
_SECONDS = 5.0  # that a client may take for a request
_TEXT = "text/plain; charset=utf-8"


class Health:
    """Answers probes from what the loop has last found; nothing of it asks the API server."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        alive: Callable[[], str],
        ready: Callable[[], tuple[str, ...]],
        metrics: Metrics,
    ) -> None:
        """`alive` and `ready` return what is wrong, nothing where all is well.

        Raises OSError where the address is taken.
        """
        self._alive, self._ready, self._metrics = alive, ready, metrics
        self._server = _Server(address, self._handler())
        self.address = self._server.server_address[:2]
        # The server wakes by itself only to see whether it is to end, which is with the process.
        serve = threading.Thread(
            target=self._server.serve_forever, args=(_IDLE_SECONDS,), name="health", daemon=True
        )
        serve.start()

    def close(self) -> None:
        """Close the socket."""
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body for a path."""
        if path == "/healthz":
            problem = self._alive()
            return _verdict((problem,) if problem else ())
        if path == "/readyz":
            return _verdict(self._ready())
        if path == "/metrics":
            self._metrics.ready(is_ready=not self._ready())
            return 200, CONTENT_TYPE, self._metrics.text()
        return 404, _TEXT, b"there are /healthz, /readyz and /metrics\n"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            timeout = _SECONDS

            def do_GET(self) -> None:
                status, kind, body = answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log no request: probes come every few seconds."""

        return Handler


def _verdict(problems: tuple[str, ...]) -> tuple[int, str, bytes]:
    if problems:
        return 503, _TEXT, "".join(f"{one}\n" for one in problems).encode()
    return 200, _TEXT, b"ok\n"


class _Server(ThreadingHTTPServer):
    """A thread for each connection, and a bound on both: slow clients keep no probe away.

    For a moment there may be more, as a thread ends after its connection.
    """

    daemon_threads = True
    request_queue_size = 128  # a burst of connections does not have a probe wait for a second

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = AF_INET6 if ip_address(address[0]).version == 6 else AF_INET
        self._lock, self._open = threading.Lock(), deque[_Request]()
        super().__init__(address, handler)

    def process_request(self, request: _Request, client_address: object) -> None:
        """Serve a connection in place of the oldest one where too many are open."""
        with self._lock:
            self._open.append(request)
            oldest = self._open.popleft() if len(self._open) > _CONNECTIONS_MAX else None
        if isinstance(oldest, socket.socket):
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
        super().process_request(request, client_address)

    def process_request_thread(self, request: _Request, client_address: object) -> None:
        """Serve a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock, suppress(ValueError):
                self._open.remove(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave a client that has gone alone: that is no failure of ours."""
