"""What the bundle runs first: it prepares the process and runs plugins/__main__.py."""

import os

# What the bootloader put into the environment would steer the programs that are started from here.
for name in ("_PYI_ARCHIVE_FILE", "_PYI_LINUX_PROCESS_NAME", "_PYI_PARENT_PROCESS_LEVEL"):
    os.environ.pop(name, None)
os.environ.pop("LD_LIBRARY_PATH", None)
original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if original is not None:
    os.environ["LD_LIBRARY_PATH"] = original

status = 1
try:
    if not hasattr(os, "setns"):
        from _setns import setns  # type: ignore[import-not-found] # compiled by deploy/freeze.py

        os.setns = setns  # type: ignore[attr-defined] # new in Python 3.12

    from plugins.__main__ import run

    status = run()
except Exception:  # noqa: BLE001 - the runtime must get a CNI error object all the same
    from traceback import format_exc

    os.write(2, format_exc().encode())
    if os.environ.get("CNI_COMMAND"):
        os.write(
            1,
            b'{"cniVersion":"1.1.0","code":999,'
            b'"msg":"pycni cannot start, see its stderr; install it again"}\n',
        )
finally:
    os._exit(status)  # taking every module apart would take milliseconds
