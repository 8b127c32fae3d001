"""`make release`: the same bytes each time, a tarball that runs where it is unpacked, a bill."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agent import shell_files
from cni_common.spec.names import VERSION
from deploy.freeze import glibc_of
from deploy.release import __main__ as release
from deploy.release import chroot, packages
from plugins import TYPES
from tests import scope
from tests.packages.conftest import Debian
from tests.rebuild import assert_the_same_again

GLIBC = {"bullseye": (2, 31), "bookworm": (2, 36), "trixie": (2, 41)}
CONFIG = {
    "cniVersion": "1.0.0",
    "name": "mynet",
    "type": "bridge",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.7.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
_ATTACH = """
mkdir -p /run/netns
unshare --net sleep 60 &
sleep 0.5
call() {
    CNI_COMMAND=$1 CNI_CONTAINERID=c1 CNI_NETNS=/proc/$!/ns/net CNI_IFNAME=eth0 \
        CNI_PATH=/opt/cni/bin "${prefix[@]}" /opt/cni/bin/bridge <<<"$2"
}
"""


def test_twice_the_same_bytes(
    made: release.Made, files: Mapping[str, Path], tmp_path: Path
) -> None:
    """Other times, another umask, links instead of copies: the files are the same."""
    copy = shutil.copytree(made.bin, tmp_path / "bin")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        if path.is_file():
            path.chmod(path.stat().st_mode & 0o700)
    previous = os.umask(0o077)  # noqa: TID251 - of this process, and put back
    try:
        again = release.make(release.Made(copy, made.origin, made.stdlib), tmp_path / "again")
    finally:
        os.umask(previous)  # noqa: TID251 - as above

    assert {path.name for path in again} == {path.name for path in files.values()}
    for path in again:
        assert path.read_bytes() == files["SHA256SUMS"].with_name(path.name).read_bytes()


def test_names(files: Mapping[str, Path]) -> None:
    """Names have version and architecture; the sums are of all others."""
    listed = [line.split("  ")[1] for line in files["SHA256SUMS"].read_text().splitlines()]

    assert f"pycni-{VERSION}-linux-{packages.architecture()}.tar.gz" in listed
    assert {*listed, "SHA256SUMS"} == {path.name for path in files.values()}
    assert len(listed) == 4


def test_layout_of_the_tarball(files: Mapping[str, Path]) -> None:
    """18 plugins, pycni, the program behind them, texts; everything is root's."""
    with tarfile.open(files[".tar.gz"]) as archive:
        members = archive.getmembers()
    top = {one.name.split("/")[1] for one in members}

    assert top == {*TYPES, "pycni", ".pycni", "README.md", "LICENSE", "NOTICE", "share"}
    share = {one.name.removeprefix("./share/") for one in members if one.isfile()}
    assert share >= set(shell_files.PLACES.values())
    assert len(TYPES) == 18
    assert {(one.uid, one.gid, one.uname) for one in members} == {(0, 0, "root")}
    assert {oct(one.mode) for one in members} == {"0o755", "0o644"}
    assert {one.mtime for one in members} == {packages.epoch()}
    assert all(one.isfile() or one.isdir() for one in members)


@pytest.mark.parametrize("name", GLIBC)
def test_unpacked_it_runs(
    name: str,
    made: release.Made,
    files: Mapping[str, Path],
    debian: Callable[[str], Debian],
) -> None:
    """In each Debian, unpacked and nothing else done, an attachment is made and removed.

    Libraries of the runtime's that no program could use are in LD_LIBRARY_PATH meanwhile.
    """
    needed = tuple(map(int, glibc_of(next((made.bin / ".pycni").iterdir())).split(".")))
    if needed > GLIBC[name]:
        pytest.skip(f"the Python of this machine needs glibc {needed}")
    machine = debian(name)
    script = f"""
        sha256sum --check --ignore-missing --quiet /release/SHA256SUMS
        mkdir -p /opt/cni/bin && tar -xzf /release/{files[".tar.gz"].name} -C /opt/cni/bin
        mkdir /foreign
        for name in libc.so.6 libz.so.1 libffi.so.7 libpython3.13.so.1.0; do
            echo broken >/foreign/$name
        done
        prefix=(env LD_LIBRARY_PATH=/foreign)
        {_ATTACH}
        call ADD '{json.dumps(CONFIG)}'
        echo =
        call DEL '{json.dumps(CONFIG)}'
        ls /var/lib/cni/networks/mynet
        echo =
        /opt/cni/bin/pycni version
    """

    added, left, told = machine.run(
        f"cd /release; {script}", binds={files["SHA256SUMS"].parent: "/release"}
    ).split("=\n")

    assert json.loads(added)["ips"][0]["address"] == "10.7.0.2/24"
    assert "10.7.0.2" not in left
    rows = dict(line.split(maxsplit=1) for line in told.splitlines())
    assert rows["version"] == VERSION
    assert rows["python"].partition(",")[0] == made.origin.python


def test_install_from_the_unpacked_tarball(
    files: Mapping[str, Path], debian: Callable[[str], Debian]
) -> None:
    """As its README says, without make and Python; `pycni uninstall` restores what was there."""
    machine = debian("trixie")
    with tarfile.open(files[".tar.gz"]) as archive:
        readme = archive.extractfile("./README.md")
        assert readme
        block = re.search(r"(?ms)^    unpacked=.*?^    rm .*?$", readme.read().decode())
    assert block
    told = machine.run(
        f"""
        mkdir -p /usr/lib/cni
        echo theirs >/usr/lib/cni/bridge
        cd /release
        {block[0].replace("pycni install &&", "pycni install /usr/lib/cni &&")}
        ls /root
        bash -c '. /usr/local/share/bash-completion/completions/pycni; complete -p pycni' >&2
        CNI_COMMAND=VERSION /usr/lib/cni/bridge
        """,
        binds={files["SHA256SUMS"].parent: "/release"},
    )

    assert "replacing '/usr/lib/cni/bridge'" in told
    assert "pycni." not in told  # nothing is left
    assert "supportedVersions" in told
    assert machine.names("/usr/lib/cni") == {*TYPES, "pycni", ".pycni"}
    machine.run("/usr/lib/cni/pycni uninstall /usr/lib/cni")
    assert machine.names("/usr/lib/cni") == {"bridge"}
    assert (machine.root / "usr/lib/cni/bridge").read_text() == "theirs\n"


@pytest.mark.parametrize("name", ["files", "files.new"])
def test_the_files_of_others_stay(name: str, made: release.Made, tmp_path: Path) -> None:
    """A release replaces a directory of releases, and no other; nor the one beside it."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")

    with pytest.raises(packages.PackageError, match="it has other files: mine"):
        release.make(made, tmp_path / "files")

    assert [path.name for path in tmp_path.rglob("*")] == [name, "mine"]


@pytest.mark.parametrize("words", ["deb http://archive.example/ubuntu noble main", ""])
def test_no_mirror_of_debian(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system nobody is told to add one: apt would mix the two."""
    (tmp_path / "sources.list").write_text(words)
    monkeypatch.setattr(chroot, "_SOURCES", (str(tmp_path / "sources.list"),))

    with pytest.raises(chroot.ChrootError, match="this works on Debian") as told:
        chroot.mirror()

    assert "add" not in str(told.value)


class TestBill:
    """The bill of materials."""

    def test_it_is_valid(self, files: Mapping[str, Path]) -> None:
        """CycloneDX's own schema accepts it."""
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        text = files[".cdx.json"].read_text()

        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None

    def test_it_has_each_part(self, made: release.Made, files: Mapping[str, Path]) -> None:
        """Each part that the files of the bundle show has version and licence."""
        components = json.loads(files[".cdx.json"].read_text())["components"]

        assert {one["name"] for one in components} == made.parts()
        assert all(one["licenses"] for one in components)
        without = {one["name"] for one in components if one.get("version", "unknown") == "unknown"}
        assert without <= {"std", *_OF_STD}, (
            "only crates of Rust's own library have no version here"
        )

    def test_versions(self, made: release.Made, files: Mapping[str, Path]) -> None:
        """The versions are those of what was frozen."""
        bill = json.loads(files[".cdx.json"].read_text())
        versions = {one["name"]: one["version"] for one in bill["components"]}

        assert bill["metadata"]["component"]["version"] == VERSION
        assert versions["CPython"] == made.origin.python
        lock = (packages.ROOT / "requirements.lock").read_text()
        for name in ("jsonschema", "pyroute2", "rich"):
            assert f"\n{name}=={versions[name]} " in lock


_OF_STD = ("addr2line", "gimli", "hashbrown", "miniz_oxide", "rustc-demangle")


@pytest.mark.skipif(not scope.ALL, reason="it takes a minute: in make test-all")
def test_a_second_bundle_is_the_same(made: release.Made, tmp_path: Path) -> None:
    """Frozen once more, the bundle has the same bytes in each file."""
    assert_the_same_again("deploy.freeze", made.bin, tmp_path / "again")
