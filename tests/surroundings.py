"""The surroundings of a test process: signals, umask, locale, terminal, limits.

A suite may be started in the background of a script, where SIGINT is ignored, by `nohup`, by a CI
with limits of its own, or from a terminal with a locale and a width.
"""

from __future__ import annotations

import os
import resource
import signal
import time

_BY_DEFAULT = ("SIGQUIT", "SIGHUP", "SIGTERM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGTSTP")
_TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")
_LANGUAGE = ("LANGUAGE", "LANG", "LC_MESSAGES", "LC_CTYPE", "LC_NUMERIC", "LC_TIME", "LC_COLLATE")
_FILES = 4096  # open at a time


def make_usual() -> None:
    """Set all of it for this process and for those that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: TID251 - as it was started
    for name in _BY_DEFAULT:
        signal.signal(signal.Signals[name], signal.SIG_DFL)  # noqa: TID251
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)  # noqa: TID251 - no other thread has begun
    environ = os.environ  # noqa: TID251 - it is that of the tests
    for name in (*_TERMINAL, *_LANGUAGE):
        environ.pop(name, None)
    environ |= {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    time.tzset()
    _limit(resource.RLIMIT_NOFILE, _FILES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)


def _limit(kind: int, wanted: int) -> None:
    """Set a limit, as far as the process may."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        wanted = most if wanted == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(kind, (wanted, most))
