"""The doctor reads other programs' files."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cni_common.serve import status
from cni_common.serve.worker import PROTOCOL
from commands import runtimes
from commands.doctor import engine, neighbours, state
from commands.doctor.lines import Line

NOBODY: Any = None  # a patient that is not asked


def only(lines: Any) -> Line:
    """Return the one line."""
    (line,) = lines
    assert isinstance(line, Line)
    return line


class TestNetworkd:
    """Units that match the host's ends of containers."""

    @pytest.fixture
    def units(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A node where networkd runs, and its directory of units."""
        monkeypatch.setattr(neighbours, "_NETWORKD", str(tmp_path))
        monkeypatch.setattr(neighbours, "_UNITS", (str(tmp_path / "etc"), str(tmp_path / "usr")))
        for name in ("etc", "usr"):
            (tmp_path / name).mkdir()
        return tmp_path

    @pytest.mark.parametrize(
        ("match", "takes"),
        [
            ("Name=*", True),
            ("Type=ether", True),
            ("Name=en* veth*", True),
            ("Kind=veth", True),
            ("Name=en*", False),
            ("Name=*\nDriver=virtio_net", False),
            ("Type=wlan", False),
            ("MACAddress=02:00:00:00:00:01", False),
            ("", False),
        ],
    )
    def test_match(self, units: Path, match: str, takes: bool) -> None:
        """A unit without a name or kind of its own takes every interface."""
        (units / "etc/50-x.network").write_text(f"[Match]\n{match}\n\n[Network]\nDHCP=yes\n")

        line = only(neighbours._networkd())

        assert line.level == ("error" if takes else "ok")
        assert ("50-x.network" in line.text, bool(line.remedy)) == (takes, takes)

    def test_remedy(self, units: Path) -> None:
        """The unit that the remedy writes, which comes first, is found to be enough."""
        (units / "usr/50-x.network").write_text("[Match]\nName=*\n[Network]\nDHCP=yes\n")
        remedy = only(neighbours._networkd()).remedy
        text = remedy.partition("'")[2].rpartition("'")[0].replace("\\n", "\n")
        (units / "etc/05-pycni.network").write_text(text)

        assert only(neighbours._networkd()).level == "ok"

    def test_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No line where it does not run."""
        monkeypatch.setattr(neighbours, "_NETWORKD", "/no/such")

        assert list(neighbours._networkd()) == []


class TestNetworkManager:
    """Files that keep it from the host's ends."""

    @pytest.fixture
    def conf(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A node where it runs, and its directory of configurations."""
        monkeypatch.setattr(neighbours, "_MANAGER", str(tmp_path))
        monkeypatch.setattr(neighbours, "_MANAGER_RULES", str(tmp_path / "rules"))
        monkeypatch.setattr(neighbours, "_MANAGER_CONF", (f"{tmp_path}/*.conf",))
        return tmp_path

    def test_unprotected(self, conf: Path) -> None:
        """Without any, a warning tells how to write one, which is found to be enough."""
        line = only(neighbours._network_manager())
        text = line.remedy.partition("'")[2].rpartition("'")[0].replace("\\n", "\n")
        (conf / "pycni.conf").write_text(text)

        assert line.level == "warning"
        assert only(neighbours._network_manager()).level == "ok"

    def test_rules(self, conf: Path) -> None:
        """The rules of udev that come with it are enough."""
        (conf / "rules").write_text('ENV{ID_NET_DRIVER}=="veth", ENV{NM_UNMANAGED}="1"\n')

        assert only(neighbours._network_manager()).level == "ok"


class TestRuntimes:
    """Where runtimes look, by their own files."""

    @pytest.fixture(autouse=True)
    def node(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A node with no runtime but those whose files a test writes."""
        monkeypatch.setattr(runtimes, "_CONTAINERD", (str(tmp_path / "containerd.toml"),))
        monkeypatch.setattr(runtimes, "_CRIO", (f"{tmp_path}/crio.conf", f"{tmp_path}/crio.d/*"))
        monkeypatch.setattr(runtimes, "_PODMAN", (str(tmp_path / "containers.conf"),))
        monkeypatch.setattr("shutil.which", lambda _name: None)
        return tmp_path

    def test_none(self) -> None:
        """Nothing is found on a node without one."""
        assert runtimes.found() == []

    @pytest.mark.parametrize(
        "text",
        [
            '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/b"\nconf_dir = "/c"\n',
            '[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dirs = ["/b"]\nconf_dir = "/c"\n',
        ],
        ids=["1.x", "2.x"],
    )
    def test_containerd(self, node: Path, text: str) -> None:
        """Both versions of its configuration."""
        (node / "containerd.toml").write_text(text)

        (one,) = runtimes.found()

        assert (one.name, one.conf_dir, one.bin_dirs, one.takes_first) == (
            "containerd",
            "/c",
            ("/b",),
            True,
        )

    def test_no_toml(self, node: Path) -> None:
        """A damaged configuration counts as an empty one."""
        (node / "containerd.toml").write_text("[[[")

        assert [one.conf_dir for one in runtimes.found()] == ["/etc/cni/net.d"]

    def test_crio(self, node: Path) -> None:
        """Its drop-in files count, too."""
        (node / "crio.d").mkdir()
        (node / "crio.d/1.conf").write_text(
            '[crio.network]\nnetwork_dir = "/n"\ncni_default_network = "blue"\n'
        )

        (one,) = runtimes.found()

        assert (one.name, one.conf_dir, one.takes_first, one.network) == (
            "CRI-O",
            "/n",
            False,
            "blue",
        )

    def test_podman(self, node: Path) -> None:
        """podman uses CNI only if its configuration says so."""
        path = node / "containers.conf"
        path.write_text("[network]\n")
        assert runtimes.found() == []
        path.write_text('[network]\nnetwork_backend = "cni"\nnetwork_config_dir = "/n"\n')

        assert [(one.name, one.conf_dir) for one in runtimes.found()] == [("podman", "/n")]

    def test_order(self, node: Path) -> None:
        """Files are read in the order of their names, and only those with a name of libcni's."""
        (node / "containerd.toml").write_text(
            f'[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "{node}/net.d"\n'
        )
        (node / "net.d").mkdir()
        for name in ("9-b.conflist", "10-a.conf", "1.yaml", "2.conflist.bak"):
            (node / "net.d" / name).write_text("{}")

        (one,) = runtimes.found()

        assert [Path(path).name for path in one.files()] == ["10-a.conf", "9-b.conflist"]


class Greeting:
    """A socket where an engine of a build answers, or `build` "": something else does."""

    def __init__(self, path: str, build: str) -> None:
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.bind(path)
        self._server.listen()
        text = status._GREETING.pack(b"pycni\0", PROTOCOL, bytes(16)) + build.encode()
        self._answer = text if build else b"hello"
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._server.accept()[0] as client:
            client.sendall(self._answer)

    def end(self) -> None:
        """Listen no more."""
        self._thread.join()
        self._server.close()


def test_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent, serving, of another build than the launchers, too large, and dead."""

    class Patient:
        bin_dirs = (str(tmp_path),)

    def look(build: str) -> list[Line]:
        path.unlink(missing_ok=True)
        server = Greeting(str(path), build)
        found = list(engine.check(patient))
        server.end()
        return found

    patient: Any = Patient
    path = tmp_path / "engine.sock"
    monkeypatch.setattr(engine, "ENGINE_SOCKET", str(path))
    (absent,) = engine.check(patient)
    (serving,) = look("abc")
    (tmp_path / "bridge").write_bytes(b"\x7fELF pycni launcher abc bridge\0")
    (fitting,) = look("abc")
    _, other = look("def")
    monkeypatch.setattr(engine, "_MEMORY_KIB", 0)
    large = look("abc")[0]
    (dead,) = engine.check(patient)

    assert [one.level for one in (absent, serving, fitting)] == ["ok"] * 3
    assert "build abc" in serving.text
    assert "workers" in serving.text
    assert [one.level for one in (other, large, dead)] == ["warning"] * 3
    assert "is of build def, the launchers" in other.text
    assert "takes much memory" in large.text
    assert all("systemctl restart" in one.remedy for one in (other, large, dead))


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room on the disk, and inodes."""

    class Found:
        f_bavail, f_frsize, f_favail, f_files = 1 << 20, 4096, 1 << 20, 1 << 20

    class Patient:
        class options:  # noqa: N801
            data_dir = str(tmp_path / "not/yet/made")

        class host:  # noqa: N801
            state_dir = str(tmp_path)

    patient: Any = Patient
    monkeypatch.setattr("os.statvfs", lambda _path: Found)
    levels = []
    for key, value in (("f_files", 1 << 20), ("f_favail", 100), ("f_bavail", 10)):
        setattr(Found, key, value)
        levels.append({one.level for one in state.room(patient)})

    assert levels == [{"ok"}, {"warning"}, {"error"}]
