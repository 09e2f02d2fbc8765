"""What systemd is told of the server: the protocol of sd_notify(3), without a library.

Owns: ``Notifier``: the messages, and the variables that say where they go.
Leaves: when something is to be told, and the watchdog's timer, to the arbiter.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping

__all__ = ["Notifier"]

logger = logging.getLogger("pulsar.server")

# Seconds to wait for room in systemd's queue, with the loop standing still.
_PATIENCE = 0.1


class Notifier:
    """Tells the service manager how the server is; without one, nothing at all.

    It takes ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` out of ``environ``,
    so that processes made later do not take them for their own.

    No method raises: what cannot be told is logged, once, at level debug.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        where = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        self._failed = False
        self._address: str | None = None
        if where.startswith(("/", "@")):
            # An abstract name begins with a zero byte.
            self._address = f"\0{where[1:]}" if where.startswith("@") else where
        elif where:
            self._fail(f"{where!r} is no address of a Unix socket")
        self._interval: float | None = None
        is_ours = pid in ("", str(os.getpid()))
        if self._address is not None and is_ours and microseconds.isdecimal():
            self._interval = int(microseconds) / 2e6 or None

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of ``watchdog``, half of what is allowed; None: not wanted."""
        return self._interval

    def ready(self, status: str | None = None) -> None:
        """The start, or a reload, is complete. ``status`` is a line for people."""
        self._send("READY=1", status)

    def reloading(self, status: str | None = None) -> None:
        """A reload begins; ``ready`` ends it, also when it has failed."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", status)

    def stopping(self, status: str | None = None) -> None:
        """The stop begins."""
        self._send("STOPPING=1", status)

    def status(self, text: str) -> None:
        """One line for people, shown by ``systemctl status``."""
        self._send(None, text)

    def watchdog(self) -> None:
        """The server is alive."""
        self._send("WATCHDOG=1")

    def _send(self, state: str | None, status: str | None = None) -> None:
        if self._address is None:
            return
        lines = [state] if state is not None else []
        if status is not None:
            # A line of its own would be taken for another message.
            lines.append(f"STATUS={' '.join(status.split())}")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as exc:
            self._fail(exc)

    def _fail(self, reason: object) -> None:
        if not self._failed:
            self._failed = True
            logger.debug("the service manager cannot be told anything: %s", reason)
