"""`pycni leases`, `audit`, `reclaim` and `explain` on a pretend host."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from commands import DONE, FAILED, FOUND
from commands.verb import OnTheNode
from commands.verbs import VERBS, verb
from plugins.host_local.lease import GRACE_SECONDS
from tests import aging
from tests.kernel import forked
from tests.machine import CNI_BIN, REFERENCE_BIN, Json, Machine, files_below
from tests.mounts import bind, detach
from tests.scope import ALL, one_in
from tests.waits import GENEROUS, wait_until

OLD = GRACE_SECONDS + 40
NOTHING: Json = {"findings": [], "missing": []}
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"
THESE = ("audit", "explain", "leases", "reclaim")  # the others have tests of their own
ON_THE_NODE = [name for name in VERBS if isinstance(verb(name).run, OnTheNode)]
alone = pytest.mark.without_engine("the commands know nothing of it")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def config(machine: Machine, **keys: object) -> Json:
    """Return a network whose attachments leave something of every kind on the host.

    No other test has its subnet: addresses that are seen in use are spared.
    """
    a, b = uuid4().bytes[:2]
    ranges = [[{"subnet": f"10.{a}.{b}.0/24"}]]
    ipam = {"type": "host-local", "dataDir": machine.data_dir, "ranges": ranges}
    return machine.network(**{"ipMasq": True, "macspoofchk": True, "ipam": ipam, **keys})


def words_of(machine: Machine, *words: str) -> list[str]:
    """Return a command line for this machine."""
    places = ("--state-dir", machine.state_dir, "--data-dir", machine.data_dir)
    return [str(CNI_BIN / "pycni"), *words, "--any-netns", *places]


def pycni(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the machine's host."""
    return forked.pycni(machine.host, *words_of(machine, *words)[1:])


def asked(machine: Machine, *words: str, status: int = DONE) -> Json:
    """Return the JSON that a command prints."""
    done = pycni(machine, *words, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    found: Json = json.loads(done.stdout)
    return found


def kinds(findings: list[Json]) -> list[str]:
    """Return what kinds of things were found."""
    return sorted(one["kind"] for one in findings)


def age(machine: Machine, seconds: float = OLD) -> None:
    """Have that much time pass for records, leases and all that was noted."""
    for path in (*map(Path, files_below(machine.state_dir)), *Path(machine.data_dir).rglob("*")):
        aging.age(path, seconds)


def records(machine: Machine) -> list[Path]:
    """Return all attachment records."""
    return sorted(Path(machine.state_dir, "attachments").iterdir())


def lease(machine: Machine, address: str, text: str) -> Path:
    """Write a lease as the Go plugin does."""
    path = Path(machine.data_dir, machine.name, address)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def end(machine: Machine, container: str, ports: list[str]) -> None:
    """End a container's namespace, and wait until `ports` are all that is left."""
    machine.forget(container)
    # The kernel does it in the background.
    wait_until(lambda: machine.ports() == ports, "the kernel keeps the veth")


def dead(machine: Machine, conf: Json, containerid: str = "dead") -> str:
    """Attach a container whose namespace then ends, and its veth with it; return its address."""
    container, ports = machine.container(), machine.ports()
    added = machine.ok("bridge", "ADD", conf, container, containerid=containerid)
    end(machine, container, ports)
    return str(added["ips"][0]["address"].partition("/")[0])


class Alive:
    """A container with a living process."""

    def __init__(self, machine: Machine, stack: ExitStack, conf: Json, containerid: str) -> None:
        self.netns = machine.container()
        stack.enter_context(machine.process_in(self.netns))
        added = machine.ok("bridge", "ADD", conf, self.netns, containerid=containerid, args=POD)
        self.address = str(added["ips"][0]["address"].partition("/")[0])


def test_leases(machine: Machine) -> None:
    """Each lease with its owner, pod and state: living, dead, and unknown for one of Go's."""
    with ExitStack() as stack:
        conf = config(machine)
        alive = Alive(machine, stack, conf, "alive")
        address = dead(machine, conf)
        other = f"{alive.address.rpartition('.')[0]}.200"
        lease(machine, other, "gomade\r\neth7")
        elsewhere = config(machine, name="elsewhere", bridge="br1")
        elsewhere["ipam"]["dataDir"] = f"{machine.data_dir}-2"
        dead(machine, elsewhere, "far")

        found = asked(machine, "leases")["leases"]
        page = pycni(machine, "leases", "--network", machine.name).stdout.splitlines()

    rows = [
        (o["address"], o["network"], o["containerid"], o["ifname"], o["pod"], o["alive"])
        for o in found
    ]
    assert sorted(rows) == sorted(
        [
            (alive.address, machine.name, "alive", "eth0", "shop/web-1", True),
            (address, machine.name, "dead", "eth0", "", False),
            (other, machine.name, "gomade", "eth7", "", None),
            (found[0]["address"], "elsewhere", "far", "eth0", "", False),
        ]
    )
    assert all(Path(one["file"]).exists() for one in found)
    assert {tuple(one) for one in found} == {
        ("address", "network", "containerid", "ifname", "pod", "since", "netns", "alive", "file")
    }
    assert page[:3] == ["3 leases of 3 containers", "", "container alive"]
    assert page[3].split() == ["pod", "shop/web-1"]
    assert page[4].split()[:6] == [
        alive.address,
        "eth0",
        "on",
        "network",
        *[f"{machine.name},", "alive,"],
    ]
    states = [line.partition(f"{machine.name}, ")[2].partition(",")[0] for line in page]
    assert [one for one in states if one] == ["alive", "gone", "unknown whether alive"]
    assert max(map(len, page)) <= 80


@alone
def test_nothing(machine: Machine) -> None:
    """Where there is nothing at all, every command says so."""
    assert pycni(machine, "leases").stdout == "no leases\n"
    assert asked(machine, "audit") == NOTHING
    assert pycni(machine, "reclaim").stdout == "nothing to reclaim\n"
    done = pycni(machine, "explain", "c1")
    assert (done.returncode, done.stdout) == (FOUND, "")
    assert done.stderr == "pycni explain: nothing is known of container 'c1'\n"
    assert not Path(machine.state_dir).exists()


@alone
def test_what_is_foreign(machine: Machine) -> None:
    """Objects of the living, and objects that others have made, are neither shown nor touched."""
    with ExitStack() as stack:
        Alive(machine, stack, config(machine), "alive")
        machine.do(
            machine.host,
            "ip link add veth0a type veth peer name veth0b",
            "ip link set veth0a master br0",
            "nft add table inet other",
            "nft add chain inet other CNI-0123456789abcdef01234567",
            "iptables -t nat -N CNI-0123456789abcdef01234567",
            "iptables -t nat -N CNI-DN-0123456789abcdef01234",
            "iptables -t nat -A POSTROUTING -s 10.1.2.3/32 -j CNI-0123456789abcdef01234567",
        )
        lease(machine, "notes.txt", "nobody's")
        Path(machine.data_dir, "empty").mkdir()
        Path(machine.data_dir, "file").touch()
        age(machine)
        before = kept(machine), files_below(machine.data_dir)

        audit, reclaim = pycni(machine, "audit"), pycni(machine, "reclaim")

        assert (audit.returncode, audit.stderr) == (DONE, "")
        assert audit.stdout == "nothing: everything belongs to a living container\n"
        assert (reclaim.returncode, reclaim.stdout) == (DONE, "nothing to reclaim\n")
        assert (kept(machine), files_below(machine.data_dir)) == before


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_reclaim(machine: Machine, backend: str) -> None:
    """Leftovers of the dead are seen once, noted, seen again and removed; the living are spared."""
    with ExitStack() as stack:
        conf = config(machine, ipMasqBackend=backend)
        Alive(machine, stack, conf, "alive")
        clean = kept(machine)
        address = dead(machine, conf)
        age(machine)

        found = asked(machine, "audit", status=FOUND)["findings"]
        masquerading = "masquerade" if backend == "nftables" else "iptables"
        assert kinds(found) == sorted(["lease", "mac-filter", masquerading, "record"])
        assert {one["containerid"] for one in found} == {"dead"}
        assert {one["reclaim"] for one in found} == {"later"}
        assert f"{machine.data_dir}/{machine.name}/{address}" in [one["what"] for one in found]
        before = kept(machine), files_below(machine.state_dir)
        assert kinds(asked(machine, "reclaim", "--dry-run", status=FOUND)["later"]) == kinds(found)
        assert (kept(machine), files_below(machine.state_dir)) == before

        first = asked(machine, "reclaim", status=FOUND)
        assert (first["removed"], len(first["later"]), first["kept"]) == ([], 4, [])
        age(machine)
        planned = asked(machine, "reclaim", "--dry-run", status=FOUND)
        assert (kinds(planned["removed"]), planned["later"]) == (kinds(found), [])
        done = pycni(machine, "reclaim")

        assert (done.returncode, done.stdout.splitlines()[0]) == (
            DONE,
            "removed: 1 lease and 3 other objects of 1 dead container",
        )
        assert "pycni reclaim: removes dead eth0 of network" in done.stderr
        assert done.stderr.rstrip().endswith("is gone")
        assert kept(machine) == clean
        assert asked(machine, "audit") == NOTHING


def kept(machine: Machine) -> Json:
    """Return what attachments own, without what is in the files."""
    files = [path for path in files_below(machine.state_dir) if "/attachments/" in path]
    return {
        "files": files,
        "leases": machine.leases(),
        "ports": machine.ports(),
        "nft": machine.nft(),
    }


@alone
def test_the_young_stay(machine: Machine) -> None:
    """An ADD may be at work in what looks gone: its time begins when it is old enough."""
    dead(machine, config(machine))
    before = kept(machine)

    assert len(asked(machine, "reclaim", status=FOUND)["later"]) == 4
    assert "gone_since" not in "".join(path.read_text() for path in records(machine)[:1])
    assert kept(machine) == before


@alone
def test_a_namespace_without_its_path_lives(machine: Machine, tmp_path: Path) -> None:
    """A container lives as long as a process does, wherever its namespace was mounted."""
    container = machine.container()
    path = tmp_path / "netns"
    bind(container, path)
    machine.ok("bridge", "ADD", config(machine), str(path))
    with machine.process_in(container):
        detach(path)
        age(machine)

        assert asked(machine, "audit") == NOTHING
        assert [one["alive"] for one in asked(machine, "leases")["leases"]] == [True]


@alone
def test_a_namespace_that_comes_back(machine: Machine, tmp_path: Path) -> None:
    """A container that is found alive again begins anew: two sightings must follow each other."""
    container = machine.container()
    path = tmp_path / "netns"
    bind(container, path)
    machine.ok("bridge", "ADD", config(machine), str(path))
    # A pair that leads into the namespace would prove that it lives.
    machine.do(container, f"ip link set eth0 netns {machine.host} name of-c1")
    detach(path)
    path.unlink()
    age(machine)
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []

    with machine.process_in(container):
        age(machine)
        assert asked(machine, "reclaim")["removed"] == []
    age(machine)

    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    assert machine.ports() != []
    age(machine)
    assert "veth" in kinds(asked(machine, "reclaim")["removed"])
    assert machine.ports() == []


@alone
def test_without_records(machine: Machine) -> None:
    """Elements that no record tells of go after two sightings, unless their address is in use."""
    with ExitStack() as stack:
        conf = config(machine)
        Alive(machine, stack, conf, "alive")
        clean = machine.nft()
        address = dead(machine, conf)
        for path in records(machine):
            path.unlink()
        age(machine)

        found = asked(machine, "audit", status=FOUND)["findings"]
        assert kinds(found) == ["lease", "mac-filter", "masquerade"]
        assert [one["reclaim"] for one in found if one["kind"] == "lease"] == ["no"]
        assert any(f"element {address} " in one["what"] for one in found)
        first = asked(machine, "reclaim", status=FOUND)
        assert (first["removed"], kinds(first["kept"])) == ([], ["lease"])
        age(machine)
        second = asked(machine, "reclaim")

        assert kinds(second["removed"]) == ["mac-filter", "masquerade"]
        assert machine.nft() == clean
        assert address in machine.leases()


@alone
def test_a_sighting_is_forgotten(machine: Machine) -> None:
    """An object that was not there in between has to be seen twice again."""
    conf = config(machine)
    address = dead(machine, conf)
    for path in records(machine):
        path.unlink()
    Path(machine.data_dir, machine.name, address).unlink()
    assert asked(machine, "reclaim", status=FOUND)["removed"] == []
    with ExitStack() as stack:
        netns = machine.container()
        stack.enter_context(machine.process_in(netns))
        machine.do(netns, f"ip address add {address}/24 dev lo")
        age(machine)
        assert kinds(asked(machine, "reclaim")["removed"]) == ["mac-filter", "masquerade"][:1]
    assert kinds(asked(machine, "reclaim", status=FOUND)["later"]) == ["masquerade"]


@alone
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_of_the_reference(machine: Machine, backend: str) -> None:
    """The Go plugins' masquerading is shown; it goes when its lease is gone and nobody uses it."""
    conf = config(machine, ipMasqBackend=backend)
    container = machine.container()
    with machine.process_in(container):
        done = machine.execute(REFERENCE_BIN / "bridge", "ADD", conf, container)
        assert done.returncode == 0, done.stdout
        age(machine)
        assert asked(machine, "audit") == NOTHING
    end(machine, container, [])
    (address,) = machine.leases()

    found = asked(machine, "audit", status=FOUND)["findings"]
    assert kinds(found) == sorted(["lease", "mac-filter", backend])
    assert {one["reclaim"] for one in found if one["kind"] in ("lease", backend)} == {"no"}
    ours = next(one for one in found if one["kind"] == backend)
    assert (ours["network"], ours["containerid"]) == (machine.name, "c1")

    Path(machine.data_dir, machine.name, address).unlink()
    assert len(asked(machine, "reclaim", status=FOUND)["later"]) == 2
    age(machine)
    assert kinds(asked(machine, "reclaim")["removed"]) == sorted(["mac-filter", backend])
    assert "c1" not in json.dumps(machine.nft())


@alone
def test_litter(machine: Machine) -> None:
    """Files that killed calls have left are shown once they are old, and removed at once."""
    lease(machine, ".pycni-new", "half")
    empty = Path(machine.data_dir, "other", "10.77.0.9")
    empty.parent.mkdir()
    empty.touch()
    attachments = Path(machine.state_dir, "attachments")
    attachments.mkdir(parents=True)
    (attachments / ".probe-1").touch()
    (attachments / "bridge-0-0").touch()
    assert asked(machine, "audit") == NOTHING
    age(machine)

    assert kinds(asked(machine, "audit", status=FOUND)["findings"]) == [
        *("file", "file", "lease", "record")
    ]
    assert len(asked(machine, "reclaim")["removed"]) == 4
    assert list(attachments.iterdir()) == []
    assert not empty.exists()
    assert not Path(machine.data_dir, machine.name, ".pycni-new").exists()


def test_explain(machine: Machine) -> None:
    """Every object of a container, by the beginning of its id."""
    with ExitStack() as stack:
        conf = config(machine)
        one = Alive(machine, stack, conf, "abc1")
        Alive(machine, stack, conf, "abd2")

        found = asked(machine, "explain", "abc")
        shown = pycni(machine, "explain", "abc1")
        several = pycni(machine, "explain", "ab")

        assert set(found) == {"containerid", "attachments"}
        (attachment,) = found["attachments"]
        assert list(attachment) == [
            *("network", "ifname", "pod", "netns", "records", "addresses", "objects", "shared"),
            "gateway",
        ]
        assert (found["containerid"], attachment["pod"]) == ("abc1", "shop/web-1")
        assert attachment["netns"] == {"path": one.netns, "alive": True}
        assert [o["plugin"] for o in attachment["records"]] == ["bridge", "host-local"]
        assert [(o["address"], o["present"]) for o in attachment["addresses"]] == [
            (one.address, True)
        ]
        assert [(o["kind"], o["present"]) for o in attachment["objects"]] == [
            *(("veth", True), ("mac", True), ("mtu", True), ("address", True)),
            *(("masquerade", True), ("mac-filter", True)),
        ]
        assert [(o["kind"], o["present"]) for o in attachment["shared"]] == [
            *(("bridge", True), ("gateway", True), ("forwarding", True))
        ]
        assert attachment["gateway"]["interface"] == "br0"
        assert all(o["file"] in shown.stdout for o in attachment["addresses"])
        assert (several.returncode, several.stdout) == (FAILED, "")
        assert several.stderr == "pycni explain: 'ab' is the beginning of several ids: abc1, abd2\n"

        machine.do(machine.host, "nft flush map inet pycni masquerade4")
        Path(machine.data_dir, machine.name, one.address).unlink()
        (attachment,) = asked(machine, "explain", "abc1", status=FOUND)["attachments"]
        lost = [o["kind"] for o in attachment["objects"] if not o["present"]]
        assert lost == ["masquerade"]
        assert [o["present"] for o in attachment["addresses"]] == [False]


@alone
def test_explain_of_iptables(machine: Machine) -> None:
    """With the other backend the chain is named."""
    with ExitStack() as stack:
        Alive(machine, stack, config(machine, ipMasqBackend="iptables"), "c1")

        (attachment,) = asked(machine, "explain", "c1")["attachments"]

    assert ("iptables", True) in [(o["kind"], o["present"]) for o in attachment["objects"]]


# --- how it looks ---


def on_terminal(machine: Machine, *words: str, **environ: str) -> str:
    """Return what a command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        ["nsenter", f"--net={machine.host}", *words_of(machine, *words)],
        stdout=theirs,
        stderr=theirs,
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "COLUMNS": "100", **environ},
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            output += chunk
    except OSError:  # EIO: the other side has closed it
        pass
    finally:
        os.close(ours)
    assert done.wait(timeout=GENEROUS) == DONE
    return output.decode()


@alone
def test_colour(machine: Machine) -> None:
    """A terminal gets colour, unless NO_COLOR or TERM says otherwise; ids are whole."""
    containerid = "0123456789abcdef" * 4
    with ExitStack() as stack:
        Alive(machine, stack, config(machine), containerid)

        coloured = on_terminal(machine, "leases")
        plain = [
            on_terminal(machine, "leases", NO_COLOR="1"),
            on_terminal(machine, "leases", TERM="dumb"),
            pycni(machine, "leases").stdout,
        ]

    bare = COLOUR.sub("", coloured)
    assert bare != coloured
    assert containerid in bare
    assert max(map(len, bare.splitlines())) <= 100
    assert all("\x1b" not in text and containerid in text for text in plain)


@alone
def test_many_leases(machine: Machine) -> None:
    """Of thousands each has its line."""
    for number in range(2001):
        lease(machine, f"10.77.{number >> 8}.{number & 255}", "c1\r\neth0")

    shown = on_terminal(machine, "leases")

    assert shown.count("  10.77.") == 2001


@alone
def test_nothing_steers_the_terminal(machine: Machine) -> None:
    """The content of a lease file is shown, not obeyed, and brackets are no style."""
    lease(machine, "10.77.0.9", "[red]\x7f\u009b31mé世\r\neth0")

    for text in (on_terminal(machine, "leases", COLUMNS="150"), pycni(machine, "leases").stdout):
        assert "[red]\\x7f\\x9b31mé世" in text
        assert "\x7f" not in text


@alone
def test_examples(machine: Machine, tmp_path: Path) -> None:
    """Every example in the help runs and ends as the help says."""
    with ExitStack() as stack:
        Alive(machine, stack, config(machine), "3f2c9a0000")
        options = " ".join(words_of(machine)[1:])
        shims = {"pycni": f'exec {CNI_BIN}/pycni "$@" {options}', "sleep": "exit 0"}
        for name, line in shims.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
        for name in THESE:
            examples = verb(name).examples
            assert len(examples) > 1
            for example in examples if ALL else one_in(2, examples):
                assert f"pycni {name}" in example
                done = machine.try_command(
                    machine.host, "sh", "-c", example, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
                )
                assert (done.returncode, done.stderr) == (DONE, ""), example


# --- what it refuses ---


@alone
@pytest.mark.parametrize("name", ON_THE_NODE)
def test_wrong_namespace(machine: Machine, name: str) -> None:
    """In a namespace that is not the host's nothing could be judged."""
    words = [
        w
        for w in words_of(machine, name, *["c1"] * (name in ("explain", "inspect", "repair")))
        if w != "--any-netns"
    ]

    done = machine.try_command(machine.host, *words)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
    assert "network namespace of process 1" in done.stderr


@alone
def test_wrong_pid_namespace(machine: Machine) -> None:
    """A pod with hostNetwork only, which does not see every process, may look, but not remove."""
    dead(machine, config(machine))
    age(machine)
    before = kept(machine), files_below(machine.state_dir)

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        words = tuple(one for one in words_of(machine, *words) if one != "--any-netns")
        unshare = ("unshare", "--pid", "--fork", "--mount", "--mount-proc")
        return machine.try_command(machine.host, *unshare, *words)

    for words in (["reclaim"], ["reclaim", "--dry-run"]):
        done = inside(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
        assert "first PID namespace" in done.stderr
    assert inside("leases").returncode == DONE
    assert inside("audit").returncode == FOUND
    assert inside("explain", "dead").returncode == FOUND  # its veth went with its namespace
    assert (kept(machine), files_below(machine.state_dir)) == before


@alone
def test_what_is_no_namespace(machine: Machine, tmp_path: Path) -> None:
    """A path whose mount cannot be seen tells nothing: nobody is taken for dead by it."""
    conf, at = config(machine), tmp_path / "netns"
    container = machine.container()
    bind(container, at)
    try:
        machine.ok("bridge", "ADD", conf, str(at), containerid="hidden")
    finally:
        detach(at)
    machine.end(container)  # while its pair is there, that tells that it is gone
    for _ in range(2):
        age(machine)
        assert pycni(machine, "reclaim").returncode == DONE
    assert [one["alive"] for one in asked(machine, "leases")["leases"]] == [None]
    assert len(records(machine)) == 2

    at.unlink()
    for status in (FOUND, DONE):
        age(machine)
        assert pycni(machine, "reclaim").returncode == status
    assert (records(machine), machine.leases()) == ([], [])


@alone
def test_errors_are_one_line(machine: Machine) -> None:
    """A directory that cannot be read is named in one line, and a usage error has status 2."""
    lease(machine, "10.77.0.9", "c1\r\neth0")
    lock = Path(machine.data_dir, machine.name, "lock")
    lock.mkdir()

    done = pycni(machine, "leases")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (FAILED, "", 1)
    assert done.stderr.startswith("pycni leases: cannot use the lease directory")
    assert pycni(machine, "leases", "--no-such-option").returncode == 2
    assert pycni(machine, "explain").returncode == 2


@alone
def test_one_failure_does_not_stop_the_rest(machine: Machine) -> None:
    """A failed removal is reported at the end; all other objects have gone."""
    conf = config(machine)
    dead(machine, conf, "stuck")
    dead(machine, conf, "loose")
    for path in records(machine):
        if '"stuck"' in path.read_text() and path.name.startswith("bridge-"):
            path.write_text(path.read_text().replace('{"type":"host-local"}', '{"type":"nosuch"}'))
    age(machine)
    assert pycni(machine, "reclaim").returncode == FOUND
    age(machine)

    done = pycni(machine, "reclaim")

    assert done.returncode == FAILED
    assert 'failed to find plugin "nosuch"' in done.stderr.splitlines()[-1]
    found = asked(machine, "audit", status=FOUND)["findings"]
    assert {one["containerid"] for one in found} == {"stuck"}
    assert machine.leases() == []  # host-local finds gone owners by itself
