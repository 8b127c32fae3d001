"""Traces in OpenTelemetry's JSON (OTLP/HTTP, opentelemetry-proto), to a file or a collector."""

from __future__ import annotations

import json
import os
import socket
from contextlib import nullcontext
from hashlib import sha256
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cni_common.spec.names import VERSION
from commands import view
from commands.verb import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cni_common.spec.wire import JsonObject
    from commands.traces import Call, Step


_SERVER, _INTERNAL = 2, 1  # SpanKind
_ERROR = 2  # StatusCode
_PORT, _PATH = 4318, "/v1/traces"  # of OTLP over HTTP
_SECONDS = 10.0
_ANSWER_MAX = 1 << 16


def export(calls: Sequence[Call], target: str) -> None:
    """Write calls to the file `target`, "-" for stdout, or send them to that URL.

    Raises OSError, and RefusedError for a URL or an answer that is not as it has to be.
    """
    data = spans(calls)
    if "://" in target:
        _send(target, json.dumps(data).encode())
    elif target == "-":
        view.write_json(data, in_line=True)
    else:
        with open(target, "w", encoding="utf-8") as file:
            file.write(f"{json.dumps(data)}\n")


def spans(calls: Sequence[Call]) -> JsonObject:
    """Return the export request. Each call and each step of it is a span.

    A call is in the trace of its caller, or else in one that all calls of its container share. The
    ids follow from the call: a second export says the same.
    """
    found = [span for call in calls for span in _spans(call)]
    resource = {
        "service.name": "pycni",
        "service.version": VERSION,
        "host.name": os.uname().nodename,
    }
    scope: JsonObject = {"scope": {"name": "pycni", "version": VERSION}, "spans": found}
    one: JsonObject = {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}
    return {"resourceSpans": [one]}


def _spans(call: Call) -> list[JsonObject]:
    parent = call.parent
    trace = parent[0] if parent else _digest("container", call.containerid)[:32]
    whole: JsonObject = {
        "traceId": trace,
        "spanId": call.span,
        **({"parentSpanId": parent[1]} if parent else {}),
        "name": f"{call.verb} {call.plugin}",
        "kind": _SERVER,
        **_times(call.at, call.length),
        "attributes": _attributes(_facts(call)),
        "status": {"code": _ERROR, "message": call.message} if call.code else {},
    }
    return [
        whole,
        *(
            _step(call, step, trace=trace, parent=call.span, number=n)
            for n, step in enumerate(call.steps)
        ),
    ]


def _step(call: Call, step: Step, *, trace: str, parent: str, number: int) -> JsonObject:
    return {
        "traceId": trace,
        "spanId": _digest("step", f"{parent} {number}")[:16],
        "parentSpanId": parent,
        "name": step.name,
        "kind": _INTERNAL,
        **_times(call.at + 1000 * step.begin, step.length),
    }


def _times(begin: int, length: int) -> JsonObject:
    """Return begin and end in nanoseconds; `length` is in microseconds."""
    return {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(begin + 1000 * length)}


def _facts(call: Call) -> dict[str, str | int]:
    return {
        "cni.command": call.verb,
        "cni.plugin": call.plugin,
        "cni.network": call.network,
        "cni.ifname": call.ifname,
        "container.id": call.containerid,
        "cni.code": call.code,
        "pycni.served_by": call.by,
    }


def _attributes(values: Mapping[str, str | int]) -> list[JsonObject]:
    return [
        {"key": key, "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}}
        for key, v in values.items()
    ]


def _digest(kind: str, text: str) -> str:
    return sha256(f"{kind} {text}".encode("utf-8", "surrogateescape")).hexdigest()


def _send(url: str, body: bytes) -> None:
    """POST to a collector. By a socket: http.client would bring OpenSSL into the bundle."""
    host, port, head = _request(url, len(body))
    wrap = _tls(host) if urlsplit(url).scheme == "https" else nullcontext
    with (
        socket.create_connection((host, port), timeout=_SECONDS) as plain,
        wrap(plain) as connection,
    ):
        connection.sendall(head + body)
        with connection.makefile("rb") as answer:
            status = answer.readline(_ANSWER_MAX).decode("latin-1").strip()
    if status.split(" ")[1:2] not in (["200"], ["202"]):
        raise RefusedError(f"{url!r} does not take the spans: {status or 'no answer'}")


def _request(url: str, length: int) -> tuple[str, int, bytes]:
    """Return host, port and the head of a request. Raises RefusedError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORT
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise ValueError
        query = f"?{parts.query}" if parts.query else ""
        lines = (
            f"POST {parts.path if parts.path not in ('', '/') else _PATH}{query} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            "Connection: close",
            *("", ""),
        )
        return host, port, "\r\n".join(lines).encode("ascii")
    except ValueError:
        raise RefusedError(
            f"{url!r} is no URL of a collector: http://HOST:PORT/PATH or https://HOST:PORT/PATH,"
            " in ASCII and without a password"
        ) from None


def _tls(host: str) -> Callable[[socket.socket], socket.socket]:
    """Return what makes a connection to `host` one with TLS. Raises RefusedError."""
    try:
        # By its name: an import would bring OpenSSL into the plugins' bundle.
        ssl = import_module("ssl")
    except ImportError:
        raise RefusedError(
            "the installed plugins have no TLS: call 'pycni trace' of the Python package"
            " (pip install pycni), or write a file, and send that by another program"
        ) from None
    context = ssl.create_default_context()
    return lambda plain: context.wrap_socket(plain, server_hostname=host)
