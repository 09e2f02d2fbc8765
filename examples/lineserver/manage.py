"""Lines, and a goodbye: a protocol that loses no request when its server is replaced.

A request is a line, and the answer to ``TEXT`` is ``OK TEXT``. A server that stops says
``BYE``, at any time between two answers: it still answers what it is sent, but the client is
to close the connection when it has its answers, and to ask anything else on a new one. Run
the server with ``python manage.py``, and call it with ``Lines(('localhost', 8060))(b'hello')``.
"""

from functools import partial

from pulsar import AbstractClient, Connection, Pool, ProtocolConsumer, task
from pulsar.apps.socket import SocketServer
from pulsar.framing import LineFramer

BYE = b"BYE"


class LineProtocol(ProtocolConsumer):
    """What the server and the client share: lines, one after the other."""

    def connection_made(self, connection):
        self.framer = LineFramer(ending=b"\r\n")

    def data_received(self, data):
        line, rest = self.framer.split(data)
        return rest if line is None else self.line_received(line, rest)


class LineServerProtocol(LineProtocol):
    """The server's side."""

    def line_received(self, line, rest):
        self.write(self.framer.encode(b"OK " + line))
        self.finished(line)
        return rest

    def goodbye(self):
        """The server stops: the client will end the connection, when it has read this."""
        self.write(self.framer.encode(BYE))
        return True


class LineClientProtocol(LineProtocol):
    """The client's side."""

    def start_request(self):
        self.write(self.framer.encode(self.request))

    def line_received(self, line, rest):
        if line == BYE:
            # The answer is still to come. Without a request, what comes closes the connection.
            self.connection.last_request()
            return self.data_received(rest) if rest else rest
        self.finished(line)
        return rest


class Lines(AbstractClient):
    """A client for the server of lines.

    :param address: the server's address
    :param pool_size: the maximum number of open connections
    """

    protocol_factory = partial(Connection, LineClientProtocol)

    def __init__(self, address, pool_size=10, loop=None):
        super().__init__(loop)
        self.address = address
        self.pool = Pool(self.connect, pool_size, loop)

    def connect(self):
        return self.create_connection(self.address)

    @task
    async def __call__(self, text):
        async with self.pool.connect() as connection:
            consumer = connection.current_consumer()
            consumer.start(text)
            return await consumer.on_finished


def server(name=None, description=None, **kwargs):
    """The ``SocketServer`` with ``LineServerProtocol`` as protocol."""
    return SocketServer(
        LineServerProtocol,
        name=name or "lines",
        description=description or "Lines, and a goodbye",
        **kwargs,
    )


if __name__ == "__main__":
    server().start()
