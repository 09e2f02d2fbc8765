"""What pulsar asks of the machine and the interpreter that it runs on.

Owns: the choice of an event loop, and the check for a foreign ``pulsar``.
Leaves: processes to ``actors``, sockets to ``sockets``.
"""

import asyncio
from pathlib import Path

from pulsar.errors import ImproperlyConfigured

__all__ = ["new_event_loop", "refuse_mixed_installation"]

# Files of Apache Pulsar's client, which is also imported as ``pulsar``.
_APACHE_FILES = ("tableview.py", "schema", "functions")


def new_event_loop(kind: str = "auto") -> asyncio.AbstractEventLoop:
    """A new event loop: ``uvloop``, ``asyncio``, or ``auto``, uvloop where it is installed.

    Raises ``ImproperlyConfigured`` when uvloop is asked for and not installed.
    """
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError as exc:
            if kind == "uvloop":
                raise ImproperlyConfigured(
                    "event_loop is uvloop, which is not installed: install it, or choose auto"
                ) from exc
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()


def refuse_mixed_installation(package: Path) -> None:
    """Refuse to be imported from a folder that is shared with Apache Pulsar's client.

    Both are imported as ``pulsar``; installed into one environment, their files mix.
    Raises ``ImportError``.
    """
    for name in _APACHE_FILES:
        if (package / name).exists():
            raise ImportError(
                f"{package} holds files of two distributions: pulsar, the socket server, and "
                "pulsar-client, the client of Apache Pulsar, which is imported by the same name; "
                "install them into separate virtual environments"
            )
