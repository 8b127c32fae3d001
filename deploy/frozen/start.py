"""What the frozen program runs first: it prepares the process and runs plugins/__main__.py."""

import gc
import os
import sys

import _boot  # type: ignore[import-not-found] # it is in boot.c

from plugins.__main__ import run

if not hasattr(os, "setns"):
    os.setns = _boot.setns  # type: ignore[attr-defined] # new in Python 3.12
if os.path.basename(sys.argv[0]) != "pycni":
    # One request makes less garbage than looking for it costs. The engine is called pycni.
    gc.disable()
os._exit(run())  # taking every module apart would take milliseconds
