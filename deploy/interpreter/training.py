"""The calls whose branches the compiler learns, as a runtime makes them; run in a sandbox, as root.

    python -m deploy.interpreter.training DIRECTORY

DIRECTORY has the plugins. Each call is a process of its own, then all are repeated by an engine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROUNDS = 3
SOCKET = Path("/run/pycni/engine.sock")
START_SECONDS = 30.0  # in which the engine has to make its socket; a training build is slow
IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/16"}], [{"subnet": "fd77::/64"}]]}
PORTS = [{"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"} for number in range(4)]
# Lists as runtimes hand them to the plugins; the interface's name decides where they attach.
LISTS: Mapping[str, Sequence[Mapping[str, object]]] = {
    "lo": [{"type": "loopback"}],
    "bridged": [
        {
            "type": "bridge",
            "bridge": "training0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {**IPAM, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
        },
        {"type": "portmap", "runtimeConfig": {"portMappings": PORTS}},
        {"type": "firewall"},
        {"type": "bandwidth", "ingressRate": 10**9, "ingressBurst": 10**7},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    ],
    "pair": [
        {
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "subnet": "10.78.0.0/16",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
    "macvlan": [
        {
            "type": "macvlan",
            "master": "training0",
            "ipam": {"type": "host-local", "subnet": "10.79.0.0/16"},
        }
    ],
}
VERBS = ((), ("version",), ("leases",), ("audit",), ("metrics",))


class TrainingError(Exception):
    """A call has failed: a profile of failures would teach the wrong branches."""


def main(arguments: Sequence[str]) -> int:
    """Make the calls without an engine and with one."""
    directory = Path(arguments[0]).absolute()
    attach_all(directory, ROUNDS)
    for verb in VERBS:
        subprocess.run([directory / "pycni", *verb], stdout=subprocess.DEVNULL, check=False)
    engine = subprocess.Popen([directory / "pycni", "engine"])
    try:
        _wait_for_engine(engine)
        attach_all(directory, 2 * ROUNDS)
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(timeout=START_SECONDS)
    return 0


def _wait_for_engine(engine: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not SOCKET.exists():
        if engine.poll() is not None or time.monotonic() > deadline:
            raise TrainingError("the engine has not started")
        time.sleep(0.05)


def attach_all(directory: Path, rounds: int) -> None:
    """Attach by each of LISTS and detach again, so many times.

    Raises TrainingError, CalledProcessError.
    """
    for number in range(rounds):
        for name, plugins in LISTS.items():
            namespace = f"training-{name}-{number}"
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            _attach(directory, name, plugins, f"/run/netns/{namespace}")
            subprocess.run(["ip", "netns", "delete", namespace], check=True)


def _attach(
    directory: Path, name: str, plugins: Sequence[Mapping[str, object]], netns: str
) -> None:
    environ = {
        **os.environ,
        "CNI_CONTAINERID": Path(netns).name,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "lo" if name == "lo" else "eth0",
        "CNI_PATH": str(directory),
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=training",
    }
    common = {"cniVersion": "1.1.0", "name": name}
    result: Mapping[str, object] = {}
    for plugin in plugins:
        config = {**common, **plugin, **result}
        result = {"prevResult": _call(config, {**environ, "CNI_COMMAND": "ADD"})}
    for plugin in plugins:
        _call({**common, **plugin, **result}, {**environ, "CNI_COMMAND": "CHECK"})
    for plugin in reversed(plugins):
        _call({**common, **plugin, **result}, {**environ, "CNI_COMMAND": "DEL"})


def _call(config: Mapping[str, object], environ: Mapping[str, str]) -> object:
    """Return the result of a call, None for an empty one. Raises TrainingError."""
    done = subprocess.run(
        [Path(environ["CNI_PATH"], str(config["type"]))],
        input=json.dumps(config),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        command = environ["CNI_COMMAND"]
        raise TrainingError(f"{command} of {config['type']}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout) if done.stdout else None


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except TrainingError as error:
        sys.stderr.write(f"training: {error}\n")
        raise SystemExit(1) from None
