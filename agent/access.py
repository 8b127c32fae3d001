"""The address of the API server, and the account by which the agent asks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightkube import Client

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True)
class Access:
    """Address of the API server, and the agent's credentials.

    `server` is a URL, or host:port; "" takes that of the kubeconfig, or of the pod's environment,
    which are `host` and `port`. `kubeconfig` is a file, "" for the service account of the pod.
    """

    server: str = ""
    kubeconfig: str = ""
    service_account: Path = Path(SERVICE_ACCOUNT)
    host: str = ""
    port: str = "443"

    def connect(self) -> Client:
        """Return a client with connections of its own; close it. Raises one of api.ERRORS."""
        from agent import api  # a quarter of the agent's start: the plugins are installed meanwhile

        return api.connect(self)
