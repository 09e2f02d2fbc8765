"""The way in: which server a test gets for what it wants to be served.

Owns: ``serve``.
Leaves: serving in this process to ``local``, in others to ``program``.
"""

from __future__ import annotations

from typing import Any

from .server import Server

__all__ = ["serve"]


def serve(app: Any, **settings: Any) -> Server:
    """A server for ``app``: it serves inside ``with`` or ``async with``.

    :param app: a thing, which is served in this process: what ``pulsar serve`` serves, or an
        application, such as ``WSGIServer`` or ``MultiApp``. ``with`` serves it in a thread
        that has a loop of its own, ``async with`` in the loop that runs. Or a text,
        ``MODULE:THING`` as behind ``pulsar serve``: then it is a program of its own, with
        worker processes.
    :param settings: by name; where they say nothing, ``bind`` is ``127.0.0.1:0`` and
        ``graceful_timeout`` 5 seconds. Command line, environment and files are not read.

    Raises ``ImproperlyConfigured`` here, for settings that cannot be; at the beginning of the
    block, what keeps the server from serving; at its end, an ``ExceptionGroup`` of the errors
    that the server has logged and nobody has taken (``Server.take_errors``).
    """
    # Not before: which of them is not needed, nobody should have to wait for.
    if isinstance(app, str):
        from .program import ProgramServer

        return ProgramServer(app, settings)
    from .local import LocalServer

    return LocalServer(app, settings)
