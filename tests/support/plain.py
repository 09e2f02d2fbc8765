"""Plain blocking sockets as the peers of a server.

Owns: connecting and reading with a deadline.
Leaves: what is said, and TLS, to the tests.
"""

import socket

from tests.support.process import PATIENCE


def connect(address: tuple[str, int]) -> socket.socket:
    """A TCP connection that sends at once what is written, and has a deadline."""
    sock = socket.create_connection(address, PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read(sock: socket.socket, size: int) -> bytes:
    """The next ``size`` bytes; ``EOFError`` when the peer ends before."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"the peer has ended after {bytes(data)!r}")
        data += piece
    return bytes(data)


def read_to_the_end(sock: socket.socket) -> bytes:
    """Everything until the peer ends its side."""
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)
