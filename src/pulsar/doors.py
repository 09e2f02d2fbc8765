"""Doors that open when somebody goes through: names imported on first use.

Owns: ``lazy``.
Leaves: which names there are to the packages that have such a door.

Who serves a protocol with one kind of server should not wait for, nor have in memory,
all the others, the clients and the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` (PEP 562) for the module ``package``.

    :param names: each name, and the module below ``package`` that has it; a module that
        is itself the thing has an empty one
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - it becomes the module's
        where = names.get(name)
        if where is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not where:
            return import_module(f".{name}", package)
        found = getattr(import_module(f".{where}", package), name)
        setattr(sys.modules[package], name, found)
        return found

    return __getattr__
