"""Entry point of the agent: `python -m agent`, and of its frozen program."""

from __future__ import annotations

import os
import sys

from agent.program import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], os.environ))
