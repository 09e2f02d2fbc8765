"""Watching the application's files, for ``--reload``.

Owns: ``watch_files``.
Leaves: noticing changes to watchfiles, reloading to the arbiter.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ..errors import ImproperlyConfigured

__all__ = ["require_watchfiles", "watch_files"]

logger = logging.getLogger("pulsar.server")


def require_watchfiles() -> None:
    """Raises ``ImproperlyConfigured`` when watchfiles is not installed."""
    try:
        import watchfiles  # noqa: F401
    except ImportError as exc:
        raise ImproperlyConfigured(
            "reload needs watchfiles, which is not installed: pip install 'pulsar[reload]'"
        ) from exc


async def watch_files(
    files: Callable[[], Sequence[str]], changed: Callable[[str], Awaitable[None]]
) -> None:
    """Call ``changed`` with the name of a file whenever one has changed; never returns.

    :param files: tells the files that are part of the application now. Their
        directories are watched, for new Python files count as well.
    """
    from watchfiles import PythonFilter, awatch

    while True:
        directories = _outermost({Path.cwd(), *(Path(file).parent for file in files())})
        logger.debug("watching %s", ", ".join(map(str, directories)))
        async for changes in awatch(
            *directories, watch_filter=PythonFilter(extra_extensions=[".toml"]), recursive=True
        ):
            name = min(path for _, path in changes)
            await changed(os.path.relpath(name))
            if not all(_covered(Path(file), directories) for file in files()):
                break  # there are directories that were not there before


def _outermost(directories: set[Path]) -> list[Path]:
    """Without those that lie in another one of them."""
    found: list[Path] = []
    for directory in sorted(directories):
        if directory.is_dir() and not _covered(directory, found):
            found.append(directory)
    return found


def _covered(path: Path, directories: Sequence[Path]) -> bool:
    return any(path.is_relative_to(directory) for directory in directories)
