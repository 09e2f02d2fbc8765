"""Deadlines: one sweep per server closes what has been silent for too long.

Owns: the marks that a connection leaves, ``Sweep``, and ``Watched``: what can be
told of a connection whose requests we do not see.
Leaves: what silence means where requests are seen to ``Connection``.

There is no timer and no clock reading per request. A connection stores a mark
when it reads or writes; the sweep turns a fresh mark into a seen one and notes
the time, so that silence is measured from the first sweep after the last byte:
never cut short, and at most one interval late.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["READ", "SEEN", "WROTE", "Sweep", "Watched", "silence"]

# The last thing that happened on a connection, as it was marked ...
READ = 1
WROTE = 2
# ... and what the sweep adds to a mark that it has seen.
SEEN = 2

# Seconds between sweeps, and how many of them a deadline is divided into.
_MIN_INTERVAL = 0.02
_MAX_INTERVAL = 1.0
_FRACTION = 10


class Sweep:
    """Calls ``check(now)`` every so often, for as long as it returns True.

    :param check: looks at every connection; ``now`` is the loop's clock, in
        seconds; False: there is nothing to look at, sleep until ``arm``
    """

    __slots__ = ("_check", "_handle", "_interval", "_loop", "idle")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        check: Callable[[float], bool],
        *deadlines: float | None,
    ) -> None:
        self._loop = loop
        self._check = check
        self._handle: asyncio.TimerHandle | None = None
        shortest = min((deadline for deadline in deadlines if deadline), default=0.0)
        self._interval = (
            max(_MIN_INTERVAL, min(_MAX_INTERVAL, shortest / _FRACTION)) if shortest else 0.0
        )
        # True when it does not run and could.
        self.idle = bool(self._interval)

    def arm(self) -> None:
        """Start sweeping, unless it goes on already or there is no deadline."""
        if self.idle:
            self.idle = False
            self._handle = self._loop.call_later(self._interval, self._run)

    def cancel(self) -> None:
        """Stop sweeping."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self.idle = False

    def _run(self) -> None:
        self._handle = None
        self.idle = True
        if self._check(self._loop.time()):
            self.arm()


# struct tcp_info of linux/tcp.h: eight bytes of flags and state, then 32-bit
# words, of which the tenth and twelfth are the milliseconds since data was last sent
# and last received; later, the numbers of segments with data in and out.
_TCP_INFO_SIZE = 160
_LAST_DATA_SENT = 8 + 4 * 9
_LAST_DATA_RECV = 8 + 4 * 11
_DATA_SEGMENTS_IN = 152


def silence(transport: Any) -> tuple[float, float] | None:
    """Seconds since data was last received and last sent, as the kernel knows it.

    None where it does not say: on a Unix socket, or off Linux.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None) or sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        (sent,) = struct.unpack_from("=I", info, _LAST_DATA_SENT)
        (received,) = struct.unpack_from("=I", info, _LAST_DATA_RECV)
        inward, outward = struct.unpack_from("=II", info, _DATA_SEGMENTS_IN)
    except (AttributeError, OSError, struct.error):
        return None  # closed meanwhile
    if inward and not outward:
        # The clock of the kernel is coarse: it may count the accept as a sending.
        sent = max(sent, received + 1)
    return received / 1000, sent / 1000


class Watched:
    """Mixin: the life of a connection as far as the kernel can tell it.

    For foreign protocols, which nothing of ours stands in front of, and for
    ``Protocol`` subclasses, whose requests are their own business.
    """

    __slots__ = ()

    transport: Any
    timeout: float | None

    def close(self) -> Any:
        """Close once everything written has been sent."""
        self.transport.close()

    @property
    def busy(self) -> bool:
        """True when the last byte came from the peer, so that it may be owed an answer.

        Also where the kernel does not say: better to wait than to cut off.
        """
        if self.transport.is_closing():
            return False
        times = silence(self.transport)
        return times is None or times[0] < times[1]

    def finish(self) -> None:
        """Close unless the peer may be owed an answer."""
        if not self.busy:
            self.close()

    def check_deadlines(self, now: float, stall_timeout: float | None) -> None:
        """Called by the server's sweep: close after ``timeout`` seconds of silence.

        One that is closing and has been silent for ``stall_timeout`` seconds, since
        its peer does not read, is aborted.
        """
        closing = self.transport.is_closing()
        limit = stall_timeout if closing else self.timeout
        if not limit:
            return
        times = silence(self.transport)
        if times is None or min(times) < limit:
            return
        if closing:
            self.transport.abort()
        else:
            self.close()
