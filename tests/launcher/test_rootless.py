"""Plugins in a user namespace of another user, as under `unshare -Urn`, rootlesskit and in LXD.

The network namespace there is older than the user namespace's map, so /proc/net/ip_tables_names
belongs to no user that the plugins could be.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins import TYPES

pytestmark = pytest.mark.timeout(300)  # the first test may have to wait for the build

_SCRIPT = """
set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mkdir /run/netns
ip link set lo up
ip netns add c1
if cat /proc/net/ip_tables_names; then echo "it can be read: this would show nothing"; exit 9; fi
for call in ADD CHECK DEL; do
    CNI_COMMAND=$call CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/c1 CNI_IFNAME=eth0 CNI_PATH=$0 \
        $0/firewall <<<"$1" >/dev/null
    nft list ruleset | grep -c 10.4.0.2 || true
done
"""


@pytest.fixture
def place(dist: Path) -> Iterator[Path]:
    """A bin directory that every user can read, where the script mounts nothing."""
    place = Path("/etc/cni") / f"rootless-{uuid.uuid4().hex}"  # in memory: tests/in-sandbox
    shutil.copytree(dist, place)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("backend", ["", "nftables", "iptables"])
def test_firewall(place: Path, backend: str) -> None:
    """The list of iptables-legacy tables cannot be read: ADD, CHECK and DEL do without."""
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "x0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": [{"interface": 1, "address": "10.4.0.2/24"}],
    }
    config = {"cniVersion": "1.0.0", "name": "n", "type": "firewall", "prevResult": result}
    config |= {"backend": backend} if backend else {}
    user = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
    enter = ("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc")

    done = subprocess.run(
        [*user, *enter, "--kill-child", "bash", "-c", _SCRIPT, str(place), json.dumps(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    added, checked, deleted = done.stdout.split()
    assert int(added) == int(checked) > 0
    assert deleted == "0"


_FOREIGN = """
for directory in /run /var/lib; do mount -t tmpfs none $directory; done
mkdir /run/netns
ip netns add c1
exec unshare --user --map-root-user --mount --net "$@"
"""
INTERFACES = sorted({*TYPES} - {"dhcp", "host-local", "static"})


def test_a_container_that_cannot_be_entered(place: Path) -> None:
    """Its namespace is of another user namespace: ADD says which one, and DEL succeeds after it."""
    script = """
import json, os, subprocess, sys
place, config = sys.argv[1], json.loads(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "none", "/var/lib"], check=True)
for plugin in sys.argv[3:]:
    for call in ("ADD", "DEL"):
        previous = {} if call == "DEL" else {"prevResult": config["prevResult"]}
        text = json.dumps({**config, "prevResult": None, "type": plugin, **previous})
        names = {"COMMAND": call, "CONTAINERID": "c1", "IFNAME": "eth0", "PATH": place}
        names["NETNS"] = "/run/netns/c1"
        env = os.environ | {f"CNI_{key}": value for key, value in names.items()}
        done = subprocess.run([f"{place}/{plugin}"], input=text, env=env, text=True,
                              stdout=subprocess.PIPE)
        print(json.dumps([plugin, call, done.returncode, done.stdout]))
"""
    config = {
        "cniVersion": "1.0.0",
        "name": "n",
        "bridge": "br7",
        "master": "lo",
        "vlanId": 5,
        "vrfname": "blue",
        "device": "lo",
        "ingressRate": 10_000_000,
        "ingressBurst": 1_000_000,
        "sysctl": {"net.ipv4.conf.all.arp_filter": "1"},
        "ipam": {"type": "host-local", "subnet": "10.4.0.0/24"},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "x0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
            "ips": [{"interface": 1, "address": "10.4.0.2/24"}],
        },
    }
    done = subprocess.run(
        [
            *("unshare", "--mount", "bash", "-ec", _FOREIGN, "bash"),
            *("/usr/bin/python3", "-c", script, str(place), json.dumps(config), *INTERFACES),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    assert [status for _, call, status, _ in calls if call == "DEL"] == [0] * len(INTERFACES)
    told = {plugin: text for plugin, call, _, text in calls if call == "ADD"}
    for plugin in ("bridge", "loopback", "ptp", "tuning"):
        assert "cannot enter network namespace '/run/netns/c1'" in json.loads(told[plugin])["msg"]
