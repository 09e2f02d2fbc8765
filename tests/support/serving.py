"""An application served in a thread of the test's own process.

Owns: ``serving``, and ``logging_kept`` for tests that start one themselves.
Leaves: servers in a process of their own to process.py, loops to loops.py.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from pulsar.application import Application

A = TypeVar("A", bound=Application)

# Seconds for anything that a healthy server does at once, on a machine that has other work.
PATIENCE = 30.0


@contextmanager
def serving(application: A) -> Iterator[A]:
    """Run ``application.start()`` in a thread; enter when it serves, stop it at the end.

    What ``start`` raises, ``SystemExit`` included, is raised here.
    """
    raised: list[BaseException] = []
    settled = threading.Event()
    application.bind_event("start", lambda _arg, exc=None: settled.set())

    def serve() -> None:
        try:
            application.start()
        except BaseException as exc:
            raised.append(exc)
        finally:
            settled.set()

    thread = threading.Thread(target=serve, name=f"{application.name} of a test")
    with logging_kept():
        thread.start()
        try:
            assert settled.wait(PATIENCE), "the application does not start"
            if not raised:
                yield application
        finally:
            application.stop()
            thread.join(PATIENCE)
    if raised:
        raise raised[0]
    assert not thread.is_alive(), "the application does not stop"


@contextmanager
def logging_kept() -> Iterator[None]:
    """Undo at the end what serving does to the logging of the process."""
    logger = logging.getLogger("pulsar")
    level, handlers, propagate = logger.level, [*logger.handlers], logger.propagate
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
