"""The Kubernetes API over HTTPS: objects as JSON, and waits that a watch ends."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from tests.machine import Json
from tests.resident import visiting

REQUEST_SECONDS = 30.0
WATCH_SECONDS = (
    5.0  # after which a watch is renewed: a condition may depend on more than its objects
)
MERGE = "application/merge-patch+json"
PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"
NODES = "/api/v1/nodes"
EVENTS = "/api/v1/events"


class RefusedError(Exception):
    """The API server has answered with an error; `status` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Watched(NamedTuple):
    """A line of a watch: what happened to an object."""

    type: str
    object: Json


class Api:
    """A client with the rights of a kubeconfig."""

    def __init__(self, config: Json, directory: Path, netns: str = "") -> None:
        """Take the first cluster and user of a kubeconfig; `directory` gets their certificates.

        It asks from the network namespace `netns`, "" for its own.
        """
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        where = urlsplit(cluster["server"])
        assert where.hostname, cluster["server"]
        self.host, self.port = where.hostname, where.port or 443
        self._netns, self._token = netns, user.get("token", "")
        files = {}
        for name, source in (
            ("ca", cluster["certificate-authority-data"]),
            ("certificate", user.get("client-certificate-data")),
            ("key", user.get("client-key-data")),
        ):
            if source:
                files[name] = directory / f"{name}.pem"
                files[name].write_bytes(base64.b64decode(source))
        self._tls = ssl.create_default_context(cafile=str(files["ca"]))
        if "key" in files:
            self._tls.load_cert_chain(files["certificate"], files["key"])

    def _open(self, method: str, path: str, body: bytes | None, kind: str, seconds: float) -> Any:
        connection = http.client.HTTPSConnection(
            self.host, self.port, context=self._tls, timeout=seconds
        )
        headers = {"Content-Type": kind, "Accept": "application/json", "Connection": "close"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with visiting(self._netns) if self._netns else nullcontext():
                connection.connect()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise RefusedError(answer.status, answer.read().decode(errors="replace"))
        except BaseException:
            connection.close()
            raise
        return answer

    def request(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json"
    ) -> Json:
        """Send one request and return the object of the answer. Raises RefusedError, OSError."""
        data = None if body is None else json.dumps(body).encode()
        with self._open(method, path, data, kind, REQUEST_SECONDS) as answer:
            text = answer.read()
        found: Json = json.loads(text) if text.startswith(b"{") else {"text": text.decode()}
        return found

    def answers(self) -> bool:
        """Tell whether the server is ready."""
        try:
            self.request("GET", "/readyz")
        except (RefusedError, OSError, http.client.HTTPException):
            return False
        return True

    def get(self, path: str) -> Json:
        """Return an object. Raises RefusedError."""
        return self.request("GET", path)

    def find(self, path: str) -> Json | None:
        """Return an object, None where there is none."""
        try:
            return self.get(path)
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    def list(self, path: str) -> list[Json]:
        """Return all objects of a kind."""
        items: list[Json] = self.get(path)["items"]
        return items

    def create(self, path: str, body: Json) -> Json:
        """Create an object below the path of its kind."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: Json) -> Json:
        """Merge something into an object."""
        return self.request("PATCH", path, body, MERGE)

    def delete(self, path: str, **options: Any) -> None:
        """Delete an object, or all of a kind; nothing happens where there is none."""
        try:
            self.request("DELETE", path, options or None)
        except RefusedError as error:
            if error.status != 404:
                raise

    # --- waiting ---

    def _watch(self, path: str, version: str, seconds: float) -> Iterator[Watched]:
        """Give what happens to objects of a kind, for so long at most."""
        query = urlencode(
            {"watch": 1, "resourceVersion": version, "timeoutSeconds": max(1, int(seconds))}
        )
        with self._open("GET", f"{path}?{query}", None, "", seconds + 5) as answer:
            for line in answer:
                told = json.loads(line)
                yield Watched(told["type"], told["object"])

    def wait(
        self,
        path: str,
        condition: Callable[[Mapping[str, Json]], object],
        what: str,
        seconds: float = 120.0,
    ) -> dict[str, Json]:
        """Wait until the objects of a kind, by name, fulfil a condition; return them.

        Raises AssertionError, which says `what` was waited for.
        """
        deadline = time.monotonic() + seconds
        found: dict[str, Json] = {}
        while True:
            try:
                for found in self._states(path, min(WATCH_SECONDS, seconds)):
                    if condition(found):
                        return found
                    if time.monotonic() > deadline:
                        break
            except (RefusedError, OSError, http.client.HTTPException, json.JSONDecodeError):
                time.sleep(0.05)  # the server is away, or starts
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}: {_brief(found)}"

    def _states(self, path: str, seconds: float) -> Iterator[dict[str, Json]]:
        """Give the objects of a kind now, and after each change, until the watch ends."""
        listed = self.get(path)
        found = {item["metadata"]["name"]: item for item in listed["items"]}
        yield found
        for event in self._watch(path, listed["metadata"]["resourceVersion"], seconds):
            if event.type == "ERROR":
                return
            name = event.object["metadata"]["name"]
            found.pop(name, None)
            if event.type != "DELETED":
                found[name] = event.object
            yield found


def condition_of(item: Json, type: str) -> Json:
    """Return a condition of an object's status, {} where it has none of this type."""
    conditions = item.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == type), {})


def is_ready(item: Json) -> bool:
    """Tell whether a node or a pod is Ready."""
    return condition_of(item, "Ready").get("status") == "True"


def _brief(found: Mapping[str, Json]) -> str:
    """Return the states of objects in a line, for messages."""
    return "; ".join(
        f"{name} {item.get('status', {}).get('phase', '')} Ready={is_ready(item)}"
        for name, item in list(found.items())[:20]
    )
