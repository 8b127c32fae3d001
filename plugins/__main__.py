"""The single executable: the name it is called by selects the plugin."""

import sys

from cni_common.main import main
from plugins import TYPES, load


def run() -> int:
    """Serve one request and return the exit status."""
    return main(load, TYPES)


if __name__ == "__main__":
    sys.exit(run())
