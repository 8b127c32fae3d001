"""`pycni lint --node`: configurations compared with a pretend host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import DONE, FOUND
from tests.kernel import forked
from tests.machine import CNI_BIN, Json, Machine

pytestmark = pytest.mark.without_engine("the commands know nothing of it")
ROOT = Path(__file__).resolve().parents[2]


def lint(machine: Machine, path: Path, *words: str) -> list[str]:
    """Return the codes of findings."""
    options = ("--node", "--path", str(CNI_BIN), "--json", *words)
    done = forked.pycni(machine.host, "lint", *options, str(path))
    findings = json.loads(done.stdout)["findings"]
    assert (done.returncode, done.stderr) == (FOUND if findings else DONE, "")
    return [one["code"] for one in findings]


def network(path: Path, **keys: object) -> Path:
    """Write a list with one bridge."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]]}
    bridge: Json = {"type": "bridge", "bridge": "br77", "isGateway": True, "ipam": ipam, **keys}
    file = path / "10-a.conflist"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "a", "plugins": [bridge]}))
    return file


def test_clean(machine: Machine, tmp_path: Path) -> None:
    """A network of its own is clean, also when its bridge exists with its gateway."""
    path = network(tmp_path)
    assert lint(machine, path) == []
    machine.do(
        machine.host,
        "ip link add br77 type bridge",
        "ip link set br77 up",
        "ip address add 10.77.0.1/24 dev br77",
    )

    assert lint(machine, path) == []


def test_plugin(machine: Machine, tmp_path: Path) -> None:
    """A plugin and an IPAM plugin that are not in the directories of plugins."""
    path = network(tmp_path, type="no-such-plugin", ipam={"type": "no-such-ipam"})

    done = forked.pycni(machine.host, "lint", "--node", "--path", str(tmp_path), str(path))

    assert done.stdout.count("[L601]") == 2
    assert "no-such-ipam" in done.stdout


def test_version(machine: Machine, tmp_path: Path) -> None:
    """A plugin of an older suite, as distributions have it; one that answers nonsense is let be."""
    path, older = network(tmp_path), tmp_path / "older"
    older.mkdir()
    answer = json.dumps({"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0"]})
    for name, text in (("bridge", answer), ("host-local", "no JSON")):
        (older / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (older / name).chmod(0o755)

    done = forked.pycni(machine.host, "lint", "--node", "--path", str(older), "--json", str(path))

    (one,) = json.loads(done.stdout)["findings"]
    assert (one["code"], "0.3.1, 0.4.0" in one["message"]) == ("L608", True)


def test_subnet(machine: Machine, tmp_path: Path) -> None:
    """An uplink with an address in the subnet, or a route to it."""
    path = network(tmp_path)
    machine.do(machine.host, "ip link add up0 type bridge", "ip link set up0 up")
    machine.do(machine.host, "ip address add 10.0.0.9/8 dev up0")
    by_address = lint(machine, path)
    machine.do(machine.host, "ip address flush dev up0", "ip address add 192.0.2.9/24 dev up0")
    machine.do(machine.host, "ip route add 10.77.0.0/16 via 192.0.2.1")
    by_route = lint(machine, path)

    assert (by_address, by_route) == (["L602"], ["L602"])


def test_gateway(machine: Machine, tmp_path: Path) -> None:
    """The LAN's bridge, and its router as the gateway: ADD would refuse, unless told otherwise."""
    ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "gateway": "10.77.0.254"}
    machine.do(
        machine.host,
        "ip link add br77 type bridge",
        "ip link set br77 up",
        "ip address add 10.77.0.9/24 dev br77",
    )

    refused = lint(machine, network(tmp_path, ipam=ipam))
    joined = lint(machine, network(tmp_path, ipam=ipam, isGateway=False))
    forced = lint(machine, network(tmp_path, ipam=ipam, forceAddress=True))
    machine.do(machine.host, "ip address add 10.77.0.254/24 dev br77")
    present = lint(machine, network(tmp_path, ipam=ipam))

    assert (refused, joined, forced, present) == (["L610"], [], [], [])


def test_names(machine: Machine, tmp_path: Path) -> None:
    """The bridge's name is that of another interface; the master does not exist."""
    path = network(tmp_path)
    machine.do(machine.host, "ip link add br77 type veth peer name other0")

    taken = lint(machine, path)
    content = json.loads(path.read_text())
    ipam = content["plugins"][0]["ipam"]
    content["plugins"] = [{"type": "macvlan", "master": "up9", "ipam": ipam}]
    path.write_text(json.dumps(content))

    assert (taken, lint(machine, path)) == (["L603"], ["L604"])


def test_mtu(machine: Machine, tmp_path: Path) -> None:
    """Packets that do not fit through the uplink."""
    machine.do(
        machine.host,
        "ip link add up0 mtu 1400 type bridge",
        "ip link set up0 up",
        "ip address add 192.0.2.9/24 dev up0",
        "ip route add default via 192.0.2.1",
    )

    assert lint(machine, network(tmp_path, mtu=1500)) == ["L605"]
    assert lint(machine, network(tmp_path, mtu=1400)) == []


def test_proxy(machine: Machine, tmp_path: Path) -> None:
    """kube-proxy in its mode iptables, where bridged packets pass no iptables."""
    path = network(tmp_path)
    machine.command(machine.host, "nft", "add table ip nat; add chain ip nat KUBE-SERVICES")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if bridged.exists():
        machine.command(machine.host, "sh", "-c", f"echo 0 >{bridged}")

    assert lint(machine, path) == ["L606"]


def test_choice(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that takes the first file of its directory."""
    config = tmp_path / "config.toml"
    config.write_text(f'[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "{tmp_path}/net.d"\n')
    monkeypatch.setattr("commands.runtimes._CONTAINERD", (str(config),))
    (tmp_path / "net.d").mkdir()
    first = network(tmp_path / "net.d")
    second = tmp_path / "net.d" / "20-b.conflist"
    text = first.read_text().replace("10.77", "10.78").replace("br77", "br78")
    second.write_text(text.replace('"name": "a"', '"name": "b"'))

    assert lint(machine, first) == []
    assert lint(machine, second) == ["L607"]


def test_file_name(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman reads lists alone."""
    (tmp_path / "net.d").mkdir()
    config = tmp_path / "containers.conf"
    config.write_text(
        f'[network]\nnetwork_backend = "cni"\nnetwork_config_dir = "{tmp_path}/net.d"\n'
    )
    monkeypatch.setattr("commands.runtimes._PODMAN", (str(config),))
    path = network(tmp_path / "net.d")
    content = json.loads(path.read_text())
    single = {"cniVersion": "1.0.0", "name": "b", **content["plugins"][0]}
    other = path.with_name("20-b.conf")
    other.write_text(json.dumps(single))

    assert lint(machine, path) == []
    assert lint(machine, other) == ["L609"]


def test_page() -> None:
    """All of these codes are tried here."""
    text = Path(__file__).read_text()

    assert [code for code in (f"L6{n:02}" for n in range(1, 11)) if text.count(code) < 1] == []
