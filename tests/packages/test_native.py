"""The .deb and the .rpm: installed, upgraded under load and removed, in a Debian of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from cni_common.spec.names import VERSION
from deploy.release.packages import UNITS
from plugins import TYPES
from tests.other_build import OTHER_VERSION
from tests.packages.conftest import Debian

Make = Callable[[str], Debian]


class Kind(NamedTuple):
    """A kind of package, and the words of its tool."""

    end: str
    release: str  # of Debian, with the tool
    install: str
    upgrade: str
    remove: str
    files: str  # lists the package's files
    configuration: str  # lists those that are kept as the administrator's


# The dependency on glibc is rpm's own business: the database of rpm is empty in a Debian.
KINDS = {
    "deb": Kind(
        ".deb",
        "trixie",
        "dpkg --install",
        "dpkg --install",
        "dpkg --remove pycni",
        "dpkg --listfiles pycni",
        "dpkg-query --show --showformat='${Conffiles}' pycni",
    ),
    "rpm": Kind(
        ".rpm",
        "trixie",
        "rpm --install --nodeps",
        "rpm --upgrade --nodeps",
        "rpm --erase pycni",
        "rpm --query --list pycni",
        "rpm --query --configfiles pycni",
    ),
}
# Another vendor's plugins, as a file and as a link.
_OTHERS = """
mkdir -p /opt/cni/bin
echo theirs >/opt/cni/bin/bridge
chmod 755 /opt/cni/bin/bridge
ln -s /usr/lib/cni/portmap /opt/cni/bin/portmap
echo theirs >/opt/cni/bin/flannel
"""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of package."""
    return KINDS[request.param]


def test_installed_and_removed(kind: Kind, files: Mapping[str, Path], debian: Make) -> None:
    """The package sets everything up, keeps another vendor's plugins, and leaves nothing behind."""
    machine = debian(kind.release)
    package = files[kind.end]
    machine.run(_OTHERS)
    before = _all(machine)

    machine.run(f"{kind.install} /release/{package.name}", binds={package.parent: "/release"})

    assert machine.names("/opt/cni/bin") == {*TYPES, "pycni", ".pycni", "flannel"}
    told = machine.run("CNI_COMMAND=VERSION /opt/cni/bin/bridge; pycni version")
    assert "supportedVersions" in told
    assert f"version  {VERSION}\n" in told
    assert machine.run(kind.configuration).strip() == ""
    listed = machine.run(kind.files).splitlines()
    assert {f"/usr/lib/systemd/system/{unit}" for unit in UNITS} <= set(listed)
    assert "/usr/share/doc/pycni/NOTICE" in listed
    assert "/usr/share/man/man1/pycni.1.gz" in listed
    assert "/usr/share/bash-completion/completions/pycni" in listed
    assert sum(path.endswith("/_pycni") for path in listed) == 1
    assert not [path for path in listed if path.startswith(("/opt/", "/etc/"))]

    machine.run(kind.remove)

    assert _all(machine) == before
    assert (machine.root / "opt/cni/bin/bridge").read_text() == "theirs\n"
    assert (machine.root / "opt/cni/bin/portmap").readlink() == Path("/usr/lib/cni/portmap")


def _all(machine: Debian) -> set[str]:
    """Return the paths of all files, without logs and the data bases of the tools."""
    found = machine.run(
        "find / -xdev \\( -path /proc -o -path /run -o -path /tmp -o -path /var/lib/dpkg"
        " -o -path /var/lib/rpm -o -path /root -o -path /release -o -path /var/log"
        " -o -path /var/cache"
        " -o -path /usr/lib/sysimage \\) -prune -o -print"
    )
    return set(found.splitlines())


def with_systemctl(machine: Debian, status: int = 0) -> None:
    """Give a Debian a systemctl that notes its words: minimal ones have no systemd."""
    systemctl = machine.root / "usr/bin/systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >>/calls\nexit {status}\n')
    systemctl.chmod(0o755)


def test_units(files: Mapping[str, Path], debian: Make) -> None:
    """Where systemd is installed, its units are enabled, and not any more after the removal."""
    machine = debian("trixie")
    package = files[".deb"]
    with_systemctl(machine)

    machine.run(f"dpkg --install /release/{package.name}", binds={package.parent: "/release"})
    machine.run(f"dpkg --install /release/{package.name}", binds={package.parent: "/release"})
    machine.run("dpkg --remove pycni")

    enabled, disabled = (machine.root / "calls").read_text().splitlines()  # not again by an upgrade
    assert enabled == "enable --quiet pycni-engine.socket pycni-engine.service"
    assert disabled.split() == ["disable", "--quiet", *sorted(UNITS, key=_as_disabled)]


_ENGINE = "pycni-engine.socket pycni-engine.service"


def test_a_package_that_comes_again_starts_the_engine(
    files: Mapping[str, Path], debian: Make
) -> None:
    """dpkg names the old version also after a removal: that is no upgrade."""
    machine = debian("trixie")
    package = files[".deb"]
    with_systemctl(machine)

    machine.run(
        f"""
        mkdir -p /run/systemd/system
        dpkg --install /release/{package.name}
        dpkg --remove pycni
        rm /calls
        dpkg --install /release/{package.name}
        """,
        binds={package.parent: "/release"},
    )

    calls = (machine.root / "calls").read_text().splitlines()
    assert calls == [f"enable --quiet {_ENGINE}", "daemon-reload", f"start {_ENGINE}"]


def test_another_engine_than_systemds(files: Mapping[str, Path], debian: Make) -> None:
    """With ENGINE=none an upgrade stops the one that systemd runs; the next one leaves it so."""
    machine = debian("trixie")
    package = files[".deb"]
    with_systemctl(machine)

    machine.run(
        f"""
        mkdir -p /run/systemd/system
        dpkg --install /release/{package.name}
        rm /calls
        ENGINE=none dpkg --install /release/{package.name}
        dpkg --install /release/{package.name}
        ENGINE=systemd dpkg --install /release/{package.name}
        """,
        binds={package.parent: "/release"},
    )

    calls = (machine.root / "calls").read_text().splitlines()
    restart = "try-restart pycni-engine.service pycni-dhcp.service"  # of those that run
    assert [words for words in calls if words != "daemon-reload"] == [
        *(f"disable --quiet {_ENGINE}", f"stop {_ENGINE}", restart),
        restart,  # the choice is kept
        *(f"enable --quiet {_ENGINE}", f"start {_ENGINE}", restart),
    ]


def test_systemd_that_refuses(files: Mapping[str, Path], debian: Make) -> None:
    """The plugins are installed, and removed, whatever becomes of the engine: no call needs it."""
    machine = debian("trixie")
    package = files[".deb"]
    with_systemctl(machine, status=1)

    machine.run(
        f"""
        mkdir -p /run/systemd/system
        dpkg --install /release/{package.name} 2>/told
        """,
        binds={package.parent: "/release"},
    )
    installed = machine.names("/opt/cni/bin")
    machine.run("mkdir -p /run/systemd/system; dpkg --remove pycni 2>>/told")

    assert installed == {*TYPES, "pycni", ".pycni"}
    assert machine.names("/opt/cni/bin") == set()
    told = (machine.root / "told").read_text()
    assert f"pycni: installed, but 'systemctl start {_ENGINE}' failed: no call needs" in told
    assert "failed; the removal goes on" in told


def _as_disabled(unit: str) -> tuple[bool, bool]:
    return ("dhcp" in unit, unit.endswith("service"))


_UNDER_LOAD = """
call() {
    CNI_COMMAND=$1 CNI_CONTAINERID=c CNI_NETNS=/run/netns/none CNI_IFNAME=eth0 \
        CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge <<<'{}'
}
calls() {
    while [[ ! -e /ended ]]; do
        [[ $(call VERSION) == *supportedVersions* ]] || echo "VERSION failed" >>/failed
        [[ $(call ADD) == *"missing network name"* ]] || echo "ADD failed" >>/failed
        echo >>/calls
    done
}
calls &
until [[ -e /calls ]]; do sleep 0.05; done
"""


def test_upgraded_under_load(
    kind: Kind, files: Mapping[str, Path], newer: Mapping[str, Path], debian: Make
) -> None:
    """While another version takes over, and this one comes back, no call fails."""
    machine = debian(kind.release)
    old, new = files[kind.end], newer[kind.end]
    back = kind.upgrade + (" --oldpackage" if kind.end == ".rpm" else "")
    told = machine.run(
        f"""
        {_OTHERS}
        {kind.install} /old/{old.name}
        {_UNDER_LOAD}
        {kind.upgrade} /new/{new.name}
        pycni version
        {back} /old/{old.name}
        pycni version
        touch /ended
        wait
        """,
        binds={old.parent: "/old", new.parent: "/new"},
    )

    assert not (machine.root / "failed").exists(), (machine.root / "failed").read_text()
    assert len((machine.root / "calls").read_text()) >= 5
    assert f"version  {OTHER_VERSION}\n" in told
    assert f"version  {VERSION}\n" in told.partition(OTHER_VERSION)[2]
    machine.run(kind.remove)
    assert machine.names("/opt/cni/bin") == {"bridge", "portmap", "flannel"}


def test_removal_after_pycni_uninstall(files: Mapping[str, Path], debian: Make) -> None:
    """Where the plugins were taken away by hand, the package still can be removed."""
    machine = debian("bookworm")
    package = files[".deb"]

    machine.run(
        f"dpkg --install /release/{package.name}; pycni uninstall; dpkg --remove pycni",
        binds={package.parent: "/release"},
    )

    assert machine.names("/opt/cni/bin") == set()


def test_description(files: Mapping[str, Path], debian: Make) -> None:
    """Name, version, architecture and the C library that is needed are in the package."""
    machine = debian("trixie")
    folder = files[".deb"].parent
    told = machine.run(
        f"dpkg-deb --field /release/{files['.deb'].name};"
        f"rpm --query --package --info --requires /release/{files['.rpm'].name}",
        binds={folder: "/release"},
    )

    for line in (f"Version: {VERSION}", "Depends: libc6 (>= 2.", "License     : Apache-2.0"):
        assert line in told
    assert "glibc >= 2." in told
