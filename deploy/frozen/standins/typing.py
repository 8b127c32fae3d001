"""typing, for aliases that nobody looks at."""


class _Anything:
    def __call__(self, *_arguments: object, **_keywords: object) -> "_Anything":
        return self

    def __getitem__(self, _key: object) -> "_Anything":
        return self


_anything = _Anything()


def __getattr__(name: str) -> _Anything:
    if name.startswith("__"):
        raise AttributeError(name)  # the import system asks for such
    return _anything
