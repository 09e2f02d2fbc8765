"""The fixture for pytest: ``pytest_plugins = ["pulsar.testing.plugin"]`` in ``conftest.py``.

Owns: ``pulsar_server``.
Leaves: the servers to ``serving``, which is imported when the fixture is first used.

It is not an entry point: pytest would load it, and rewrite all of pulsar, in every run of
everybody who has pulsar installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import Server

__all__ = ["pulsar_server"]


@pytest.fixture
def pulsar_server() -> Iterator[Callable[..., Server]]:
    """A function like ``pulsar.testing.serve``; what it starts serves until the test ends."""
    from .serving import serve

    with ExitStack() as stack:
        yield lambda app, **settings: stack.enter_context(serve(app, **settings))
