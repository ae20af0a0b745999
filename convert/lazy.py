"""Packages whose names are imported when they are first used, so that a command's `--help` need not wait for torch."""

import importlib
from collections.abc import Callable, Mapping


def lazily(package: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        places: what it offers, and where that is: `module:name`.
    """

    def get(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, original = places[name].partition(":")
        return getattr(importlib.import_module(module), original)

    return get
