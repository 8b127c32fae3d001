"""The operators' commands: `pycni VERB`.

These commands know the plugins, which cni_common does not: plugins/__main__.py hands them in.
commands/verbs/ has the command line of each verb, and the other modules do the work.
"""

from __future__ import annotations

# host-local's default, written here as well: --help and a command's start import no plugin.
DATA_DIR = "/var/lib/cni/networks"
DONE, FOUND, FAILED, LACKING = 0, 1, 3, 4  # exit statuses; argparse has 2
