"""Write deploy/kubernetes/pycni.yaml: the files of the kustomize base, one after the other.

    python -m deploy.manifests

The base is the only truth; tests compare the written file with it, as text and by kubectl. Not by
kubectl itself, which drops the comments.
"""

from __future__ import annotations

import re
from pathlib import Path

from cni_common.spec.names import VERSION

FOLDER = Path(__file__).resolve().parent / "kubernetes"
BASE = FOLDER / "base"
FILE = FOLDER / "pycni.yaml"
UNINSTALL = FOLDER / "uninstall.yaml"
_HEAD = """\
# pycni as the network of a cluster: kubectl apply --filename pycni.yaml
# docs/kubernetes.md tells how it works, how to upgrade it and, with uninstall.yaml, to remove it.
# Written by `make manifests` from deploy/kubernetes/base: change that. overlays/ has other modes.
"""


def resources(folder: Path = BASE) -> list[Path]:
    """Return the files that a kustomization names, in its order."""
    text = (folder / "kustomization.yaml").read_text()
    block = re.search(r"^resources:[^\n]*\n((?: +- \S+\n)+)", text, re.MULTILINE)
    if not block:
        raise SystemExit(f"{folder}/kustomization.yaml has no list of resources")
    return [folder / name for name in re.findall(r"- (\S+)", block[1])]


def render() -> str:
    """Return the text of the one file."""
    return _HEAD + "---\n" + "---\n".join(path.read_text() for path in resources())


def name_image(text: str) -> str:
    """Return a manifest with the image of this version."""
    return re.sub(r"(?<= image: )localhost/pycni:\S+", f"localhost/pycni:{VERSION}", text)


def main() -> int:
    """Write it, and the version into what the base names."""
    for path in (BASE / "daemonset.yaml", UNINSTALL):
        path.write_text(name_image(path.read_text()))
    FILE.write_text(render())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
