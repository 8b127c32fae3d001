"""`pycni support` on a node with secrets in every place that it reads."""

from __future__ import annotations

import json
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from zipfile import ZipFile

import pytest

from commands import DONE, FAILED
from tests.kernel.test_commands import Alive, asked, config, dead, pycni
from tests.machine import Machine

pytestmark = [
    pytest.mark.without_engine("the commands know nothing of it"),
    pytest.mark.timeout(300),
]
# In none of these is a word that a pattern would find: only where they stand tells.
PLANTED = [f"PLANTED-{number:04}-{'xyzzy' * 3}" for number in range(8)]


def plant(machine: Machine, conf_dir: Path) -> None:
    """Put each of PLANTED somewhere."""
    files = {
        "10-a.conflist": json.dumps(
            {
                "cniVersion": "1.1.0",
                "name": "a",
                "datastore": {"auth": [PLANTED[0]]},
                "plugins": [{"type": "bridge", "extra": PLANTED[1]}],
            }
        ),
        "20-b.conf": json.dumps({"type": "calico", "name": "b", "kubernetes": {"x": PLANTED[2]}}),
        "30-c.conf": f"{{ half {PLANTED[3]}",
        "calico-kubeconfig": PLANTED[4],
    }
    for name, text in files.items():
        (conf_dir / name).write_text(text)
    # The value of an unknown key, in a place that is dumped as it is.
    table = f'table inet other {{\nchain c {{\ncomment "{PLANTED[0]}"\n}}\n}}'
    machine.command(machine.host, "nft", "-f", "-", stdin=f"{table}\n")


def read(path: Path) -> dict[str, str]:
    """Return the files of an archive."""
    with ZipFile(path) as archive:
        return {one.filename: archive.read(one).decode() for one in archive.infolist()}


def test_nothing_secret_leaves_the_node(machine: Machine, tmp_path: Path) -> None:
    """All that was planted is found nowhere in the archive, and all else is in it."""
    conf_dir, path = tmp_path / "net.d", tmp_path / "report.zip"
    conf_dir.mkdir()
    plant(machine, conf_dir)
    with ExitStack() as stack:
        conf = config(machine, custom={"deep": [PLANTED[5]]})
        alive = Alive(machine, stack, conf, "alive")
        dead(machine, conf)
        container = machine.container()
        args = f"IgnoreUnknown=1;OTHER={PLANTED[6]}"
        machine.ok("bridge", "ADD", conf, container, containerid="args", args=args)

        words = ("support", "-o", str(path), "--conf-dir", str(conf_dir))
        done = pycni(machine, *words)

        assert (done.returncode, done.stderr) == (DONE, "")
        assert done.stdout.splitlines()[0] == str(path)
        files = read(path)
        everything = "\n".join([*files, *files.values()])
        assert [one for one in PLANTED if one in everything] == []
        assert everything.count("(redacted)") >= 6
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert pycni(machine, *words).returncode == FAILED  # it is there

    has_all(machine, files, alive.address)


def has_all(machine: Machine, files: dict[str, str], address: str) -> None:
    """Assert that all else is in the archive."""
    names = {name.removeprefix("pycni-support/") for name in files}
    assert names >= {"verbs/leases.txt", "verbs/audit.txt", "verbs/topology.txt"}
    assert names >= {
        "configurations/10-a.conflist",
        "containers/alive.txt",
        "verbs/version.txt",
    }
    assert address in files["pycni-support/verbs/leases.txt"]
    assert "dead" in files["pycni-support/verbs/audit.txt"]
    assert address in files["pycni-support/containers/alive.txt"]
    assert "table inet pycni" in files["pycni-support/kernel/nft-ruleset.txt"]
    assert "br0" in files["pycni-support/kernel/ip-address.txt"]
    assert len([name for name in names if name.startswith("records/")]) == len(
        os.listdir(Path(machine.state_dir, "attachments"))
    )
    assert "calico-kubeconfig" in files["pycni-support/configurations/files.txt"]


def test_an_empty_node(machine: Machine, tmp_path: Path) -> None:
    """Where there is nothing, and programs are missing, the report says so."""
    path = tmp_path / "report.zip"
    found = asked(machine, "support", "-o", str(path), "--conf-dir", str(tmp_path / "none"))

    assert found["file"] == str(path)
    files = read(path)
    assert sorted(files) == sorted(f"pycni-support/{name}" for name in found["files"])
    assert "No such file" in files["pycni-support/configurations/unread.txt"]
    assert files["pycni-support/verbs/leases.txt"] == "no leases\n"


def test_directories_of_runtimes(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each directory of a runtime is in it, but for the first in a folder of its own."""
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        (directory / "10-net.conflist").write_text('{"name": "x", "plugins": []}')
    config = tmp_path / "config.toml"
    config.write_text(f'[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "{second}"\n')
    monkeypatch.setattr("commands.runtimes.CONF_DIR", str(first))
    monkeypatch.setattr("commands.runtimes._CONTAINERD", (str(config),))
    path = tmp_path / "report.zip"

    pycni(machine, "support", "-o", str(path))

    folder = str(second).strip("/").replace("/", "-")
    assert {name for name in read(path) if "/configurations/" in name} == {
        f"pycni-support/configurations/{place}{name}"
        for place in ("", f"{folder}/")
        for name in ("files.txt", "10-net.conflist")
    }
