"""Logging: the names of pulsar's loggers and how a server process sets them up.

Owns: ``LOG_LEVELS`` and ``setup_logging``.
Leaves: what is logged, and when, to everybody else. A library user who never
calls ``setup_logging`` gets plain ``logging`` behaviour.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["LOG_LEVELS", "setup_logging"]

LOG_LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"


def setup_logging(level: str = "info") -> None:
    """Send the records of ``pulsar`` loggers of ``level`` and above to stderr.

    Handlers that the application has put on the ``pulsar`` logger, or on the
    root logger, are left in charge: then only the level is set.
    """
    logger = logging.getLogger("pulsar")
    logger.setLevel(LOG_LEVELS[level])
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False
