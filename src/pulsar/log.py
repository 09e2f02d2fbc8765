"""Logging: how a server process writes down what pulsar's loggers say.

Owns: the levels and formats, ``setup_logging``, and reopening log files.
Leaves: what is logged, and when, to everybody else. A library user who never
calls ``setup_logging`` gets plain ``logging`` behaviour.

Nothing here needs a thread or holds a lock between records, so a process may
be forked at any time; processes that share a file append whole records.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from .errors import ImproperlyConfigured

__all__ = ["LOG_FORMATS", "LOG_LEVELS", "reopen_logs", "setup_logging"]

LOG_LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

LOG_FORMATS = ("plain", "json")

DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"

# What every record has; anything else in one came with ``extra``.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(
    level: str = "info",
    format: str = "plain",
    file: str | Path | None = None,
    *,
    name: str | None = None,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write down the records of ``pulsar`` loggers of ``level`` and above.

    :param level: one of ``LOG_LEVELS``
    :param format: ``plain``, lines for people, where a traceback takes many lines; or
        ``json``, one object per line, whatever a message may contain: ``time``
        (ISO 8601), ``level``, ``logger``, ``pid``, ``message``, the traceback as
        ``exception``, and what the record was given as ``extra``
    :param file: appended to; ``None`` or ``-``: standard error
    :param name: what this process is called in its records
    :param owner: user and group, as numbers, to whom root gives a file that is
        new: those who will have to reopen it

    Called again, it replaces what it did before, as after a fork or for new
    settings; the same ``file`` is opened anew, as ``reopen_logs`` does. Handlers that
    the application has put on the ``pulsar`` logger or on the root logger are left
    alone; without a ``file``, they are left in charge.

    Raises ``ImproperlyConfigured`` when another ``file`` cannot be opened; then nothing
    changes.
    """
    path = None if file is None or str(file) == "-" else str(Path(file).absolute())
    logger = logging.getLogger("pulsar")
    handler = _our_handler()
    if handler is not None:
        if path is not None and path == handler.path:
            # Who runs as another user by now may write on, but not open.
            handler.owner = owner
            handler.reopen()
        else:
            handler.write_to(path, owner)
    elif path is not None or not logger.hasHandlers():
        handler = _Handler()
        handler.write_to(path, owner)
        if not logger.hasHandlers():
            logger.propagate = False
        logger.addHandler(handler)
    if handler is not None:
        handler.setFormatter(_JsonFormatter(name) if format == "json" else _plain_formatter(name))
    logger.setLevel(LOG_LEVELS[level])


def reopen_logs() -> None:
    """Open our log file anew, by its name: somebody has moved it, as logrotate does.

    When it cannot be opened that is logged, and the old file is written on.
    """
    handler = _our_handler()
    if handler is not None:
        handler.reopen()


def _our_handler() -> _Handler | None:
    handlers = logging.getLogger("pulsar").handlers
    return next((handler for handler in handlers if isinstance(handler, _Handler)), None)


class _Handler(logging.StreamHandler[TextIO]):
    """What ``setup_logging`` puts on the logger: to standard error, or to a file."""

    path: str | None = None
    owner: tuple[int, int] | None = None
    _file: TextIO | None = None

    def write_to(self, path: str | None, owner: tuple[int, int] | None) -> None:
        """Write to ``path``, or to standard error, from the next record on."""
        old, self._file = self._file, None if path is None else _open(path, owner)
        self.path, self.owner = path, owner
        self.setStream(self._file or sys.stderr)
        if old is not None:
            old.close()

    def reopen(self) -> None:
        if self.path is not None:
            try:
                self.write_to(self.path, self.owner)
            except ImproperlyConfigured as exc:
                logging.getLogger("pulsar.server").error("%s; the old file is written on", exc)

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.close()


def _open(path: str, owner: tuple[int, int] | None) -> TextIO:
    def opener(path: str, flags: int) -> int:
        if owner is not None and os.geteuid() == 0:
            try:
                descriptor = os.open(path, flags | os.O_EXCL, 0o666)
            except FileExistsError:
                pass  # whoever made it has said whose it is
            else:
                os.fchown(descriptor, *owner)
                return descriptor
        return os.open(path, flags, 0o666)

    try:
        # A text file hands each record to the system in one piece, at its flush.
        return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)
    except OSError as exc:
        raise ImproperlyConfigured(f"cannot write the log file {path}: {exc.strerror}") from exc


def _plain_formatter(name: str | None) -> logging.Formatter:
    process = "%(process)d" if name is None else f"%(process)d {name.replace('%', '%%')}"
    return logging.Formatter(f"%(asctime)s [{process}] [%(levelname)s] %(message)s", DATE_FORMAT)


class _JsonFormatter(logging.Formatter):
    def __init__(self, name: str | None) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone()
        fields: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
        }
        if self._name is not None:
            fields["name"] = self._name
        fields["message"] = record.getMessage()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        written = {key: json.dumps(value) for key, value in fields.items()}
        for key, value in vars(record).items():
            if key not in _STANDARD and key not in written:
                try:
                    written[key] = json.dumps(value, allow_nan=False)
                except (TypeError, ValueError, RecursionError):
                    pass  # no JSON could say it
        line = ", ".join(f"{json.dumps(key)}: {value}" for key, value in written.items())
        # JSON's own escapes are for ASCII, whose last control character they leave out.
        return f"{{{line}}}".replace("\x7f", "\\u007f")
