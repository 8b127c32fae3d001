"""Connections to the API server, by lightkube."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import httpx2
from lightkube import Client, KubeConfig
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightkube.config.kubeconfig import SingleConfig

    from agent.access import Access

_SECONDS = 10.0  # for a connection, and for an answer that is not a watch
# A watch may be silent for long. So the kernel asks whether the peer is still there (tcp(7)), and a
# server that has vanished without a word is noticed after half a minute.
_IDLE_SECONDS, _PROBE_SECONDS, _PROBES = 15, 5, 3
_USER_TIMEOUT_MS = 1000 * (_IDLE_SECONDS + _PROBES * _PROBE_SECONDS)
# A server that answers the kernel, and nothing else: a watch has ended by then, as it was asked to.
_SILENCE_SECONDS = 660.0
_PAUSE_SECONDS = 0.5  # between two reads of a watch
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS),
)
_BURST, _REQUESTS_PER_SECOND = 100, 2.0  # a list of 5,000 nodes is 50 requests

# Errors of a request: of the server, of the way to it, of its certificate or ours.
ERRORS = (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError, ssl.SSLError)


def connect(access: Access) -> Client:
    """Return a client with connections of its own; close it. Raises one of ERRORS."""
    config, token = _config_of(access)
    params = ConnectionParams(timeout=httpx2.Timeout(_SECONDS), trust_env=False)
    verify = params.httpx_params(config)["verify"]
    verify.sslsocket_class = _Gathering
    return Client(
        config,
        timeout=params.timeout,
        trust_env=False,
        transport=_Transport(verify, token),
    )


def _config_of(access: Access) -> tuple[SingleConfig, Path | None]:
    """Return the configuration, and the file with the token of each request, None for none."""
    if access.kubeconfig:
        config = _chosen(KubeConfig.from_file(access.kubeconfig))
        if access.server:
            config.cluster.server = _url(access.server)
        return config, None
    server = access.server or (_host_and_port(access.host, access.port) if access.host else "")
    if not server:
        raise ConfigError(
            "there is no API server: this is no pod, so name one by --kubeconfig, or by"
            " --api-server and --service-account"
        )
    authority = access.service_account / "ca.crt"
    if not authority.exists():
        raise ConfigError(f"there is no '{authority}': mount the service account")
    cluster = Cluster(server=_url(server), certificate_auth=str(authority))
    config = _chosen(KubeConfig.from_one(cluster=cluster, user=User()))
    return config, access.service_account / "token"


def _url(server: str) -> str:
    return server if "://" in server else f"https://{server}"


def _chosen(config: KubeConfig) -> SingleConfig:
    """Return the configuration of the current context. Raises ConfigError where there is none."""
    found = config.get()
    if found is None or found.user is None:
        raise ConfigError("the kubeconfig's current context names no user: choose another context")
    return found


def _host_and_port(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Gathering(ssl.SSLSocket):
    """Reads all that has come. A server in Go sends an object as many records of 1.4 kB.

    `pause_seconds` pass after a read that has left nothing. The Nodes of a large cluster report
    several times a second, mostly nothing new: so a few of them are read at once.
    """

    pause_seconds = 0.0
    _rests_until = 0.0

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Wait for data, and add what is there without waiting."""
        time.sleep(max(min(self._rests_until - time.monotonic(), self.pause_seconds), 0))
        found = super().recv(buflen, flags)
        seconds = self.gettimeout()
        self.settimeout(0)
        try:
            while found and len(found) < buflen:
                more = super().recv(buflen - len(found), flags)
                if not more:
                    break
                found += more
        except OSError:  # mostly: it would have to wait; an error comes again at the next call
            self._rests_until = time.monotonic() + self.pause_seconds
        finally:
            self.settimeout(seconds)
        return found


class _Transport(httpx2.HTTPTransport):
    """HTTP with bounded rates, and the token as it is on the disk at each request.

    The kubelet replaces the token before it expires, after an hour.
    """

    def __init__(self, verify: ssl.SSLContext, token: Path | None) -> None:
        super().__init__(verify=verify, trust_env=False, socket_options=_SOCKET_OPTIONS)
        self._token = token
        self._pace = Pace(_BURST, _REQUESTS_PER_SECOND)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        self._pace.wait()
        seconds = request.extensions.get("timeout", {})
        is_watch = seconds.get("read") is None
        if is_watch:
            seconds["read"] = _SILENCE_SECONDS
        if self._token:
            token = self._token.read_text(encoding="ascii").strip()
            request.headers["Authorization"] = f"Bearer {token}"
        response = super().handle_request(request)
        response.headers.setdefault("Content-Type", "")  # lightkube takes it to be there
        stream = response.extensions.get("network_stream")
        sock = stream.get_extra_info("socket") if stream else None
        if isinstance(sock, _Gathering):
            sock.pause_seconds = _PAUSE_SECONDS if is_watch else 0.0
        return response


class Pace:
    """Lets `burst` steps through at once, and `per_second` in the long run."""

    def __init__(
        self,
        burst: int,
        per_second: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._burst, self._per_second = burst, per_second
        self._now, self._sleep = now, sleep
        self._left, self._at = float(burst), now()
        self._lock = threading.Lock()

    def _fill(self) -> None:
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now

    def try_step(self) -> bool:
        """Take a step if one is left."""
        with self._lock:
            self._fill()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def wait(self) -> None:
        """Take a step, after a pause where none is left."""
        with self._lock:
            self._fill()
            self._left -= 1
            if self._left < 0:
                self._sleep(-self._left / self._per_second)
