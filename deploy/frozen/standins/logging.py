"""logging, loaded when something is to be logged."""


class _Logger:
    def __init__(self, name: str | None) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        import logging

        return getattr(logging.getLogger(self._name), name)


def getLogger(name: str | None = None) -> _Logger:  # noqa: N802 - as logging calls it
    """Return a logger that asks for the real one at each use."""
    return _Logger(name)
