"""The kernel's queue of connections that nobody has accepted yet.

Owns: ``refuse_new`` and ``has_queued``, for a server that stops without losing them.
Leaves: accepting to ``accept``.

Closing a listening socket resets every connection in its queue, and accepting
until it is empty does not end while new ones come. So the door is shut first: a
filter on the socket drops each SYN, as if it had been lost on the way. A client
that sends one again, a second later, finds the port closed, or the next server.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys

__all__ = ["has_queued", "refuse_new"]

_SO_ATTACH_FILTER = 26

# Classic BPF (linux/filter.h), run on a segment from its TCP header on: load the byte
# with the flags; SYN (2) is among them: drop it, else keep all of it.
_PROGRAM = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # ld byte [13]
        (0x45, 0, 1, 0x02),  # jset #2, next, skip one
        (0x06, 0, 0, 0),  # ret 0
        (0x06, 0, 0, 0xFFFFFFFF),  # ret all
    )
)


def refuse_new(sock: socket.socket) -> bool:
    """Let no new connection into the queue of a TCP socket; those in it stay.

    Whoever else listens on the same socket is affected, too. Returns False where
    it cannot be done: on a Unix socket, and off Linux.
    """
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    # struct sock_fprog: the number of instructions, and a pointer to them.
    option = struct.pack("HP", len(_PROGRAM) // 8, ctypes.addressof(program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    except OSError:
        return False  # a sandbox may forbid it: then the queue is emptied without
    return True


def has_queued(sock: socket.socket) -> bool:
    """True when a connection waits to be accepted."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
