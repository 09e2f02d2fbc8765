"""The same short answer to every request: as WSGI, and as a protocol."""

import asyncio

BODY = b"Hello, World!\n"
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 14\r\nConnection: close\r\n\r\n"
)


def application(environ, start_response):
    """WSGI."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


class Served(asyncio.Protocol):
    """A protocol that answers what looks like a whole request, and closes."""

    def connection_made(self, transport):
        self.transport = transport
        self.head = b""

    def data_received(self, data):
        self.head += data
        if self.head.endswith(b"\r\n\r\n"):
            self.transport.write(HEAD + BODY)
            self.transport.close()
