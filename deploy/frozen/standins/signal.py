"""signal, with numbers for its constants: making enumerations of them takes a while."""

from _signal import *  # type: ignore[import-not-found]  # noqa: F403 - whatever there is
