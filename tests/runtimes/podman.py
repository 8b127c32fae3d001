"""Podman on a node, set up as docs/podman.md tells."""

from __future__ import annotations

from tests.e2e.node import Done
from tests.machine import ROOT
from tests.runtimes import image
from tests.runtimes.node import RuntimeNode

PAGE = ROOT / "docs" / "podman.md"
# What makes podman work where there are neither systemd nor a store of images on a disk.
_NODE_CONF = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[containers]
log_driver = "k8s-file"
"""
_STORAGE = """\
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""


def documented_settings() -> str:
    """Return the settings that operators are told to write into containers.conf."""
    return PAGE.read_text().split("```toml\n")[1].split("```")[0]


class Podman:
    """Podman on a node, with the test image in its store."""

    def __init__(self, node: RuntimeNode) -> None:
        self.node = node
        directory = node.path("/etc/containers")
        (directory / "containers.conf.d").mkdir(parents=True, exist_ok=True)
        (directory / "containers.conf").write_text(_NODE_CONF)
        (directory / "containers.conf.d" / "pycni.conf").write_text(documented_settings())
        (directory / "storage.conf").write_text(_STORAGE)
        image.write(node.path("/run/image.tar"))
        self.ok("load", "--input", "/run/image.tar")

    def run(self, *words: str) -> Done:
        """Run podman."""
        return self.node.run("podman", *words, env={"HOME": "/run/home", "TMPDIR": "/run/tmp"})

    def ok(self, *words: str) -> str:
        """Run podman, which must succeed, and return what it prints."""
        done = self.run(*words)
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def refused(self, *words: str) -> str:
        """Run podman, which must fail, and return what it says."""
        done = self.run(*words)
        assert done.returncode, f"podman {' '.join(words)} succeeded: {done.stdout}"
        return done.stderr

    def network(self, name: str, *subnets: str, **options: str) -> str:
        """Make a network; return its bridge."""
        words = [f"--opt={key}={value}" for key, value in options.items()]
        words += [f"--subnet={subnet}" for subnet in subnets]
        if any(":" in subnet for subnet in subnets):
            words.append("--ipv6")
        self.ok("network", "create", *words, name)
        return self.ok("network", "inspect", "--format", "{{.NetworkInterface}}", name)

    def start(self, name: str, *options: str) -> str:
        """Start a container that goes on until it is ended; return its namespace on the node."""
        self.ok("run", "--detach", "--name", name, *options, image.NAME)
        return self.netns(name)

    def netns(self, name: str) -> str:
        """Return the path of a container's network namespace on the node."""
        return self.ok("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name)

    def remove(self, *names: str) -> None:
        """Remove containers, running or not."""
        self.ok("rm", "--force", "--time=0", *names)
