"""Whether this is the long target, `make test-all`: all cases, no samples, both edges."""

from __future__ import annotations

import os

VARIABLE = "PYCNI_TEST_ALL"
EVERYTHING = os.environ.get(VARIABLE) == "1"
