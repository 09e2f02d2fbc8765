"""An echo server and its client: one protocol, two small differences.

Run the server with ``python manage.py``; call it from another shell, in this
directory, with ``from manage import Echo``.
"""

from functools import partial

from pulsar import AbstractClient, Connection, Pool, ProtocolConsumer, task
from pulsar.apps.socket import SocketServer
from pulsar.framing import DelimiterFramer


class EchoProtocol(ProtocolConsumer):
    """A message ends with ``separator``. For server and client."""

    separator = b"\r\n\r\n"
    buffer = b""  # what has come of a long message: a framer, once the consumer is in use

    def connection_made(self, connection):
        self.buffer = DelimiterFramer(self.separator)

    def data_received(self, data):
        """Look for a whole message; what follows it belongs to the next one."""
        message, rest = self.buffer.split(data)
        if message is not None:
            self.finished(self.response(message))
        return rest

    def eof_received(self):
        """The peer ends in the middle of a message: its rest will never come."""
        self.connection.close()

    def start_request(self):
        """Clients: send the message."""
        self.write(self.buffer.encode(self.request))

    def response(self, data):
        """Clients: the message is the result of the request."""
        return data


class EchoServerProtocol(EchoProtocol):
    """The server's side: send the message back."""

    def response(self, data):
        self.write(self.buffer.encode(data))
        return data


class Echo(AbstractClient):
    """A client for the echo server: ``Echo(('localhost', 8060))(b'Hello!')``.

    :param address: the server's address
    :param full_response: return the ``EchoProtocol`` instead of the message
    :param pool_size: the maximum number of open connections
    """

    protocol_factory = partial(Connection, EchoProtocol)

    def __init__(self, address, full_response=False, pool_size=10, loop=None):
        super().__init__(loop)
        self.address = address
        self.full_response = full_response
        self.pool = Pool(self.connect, pool_size, loop)

    def connect(self):
        return self.create_connection(self.address)

    @task
    async def __call__(self, message):
        async with self.pool.connect() as connection:
            consumer = connection.current_consumer()
            consumer.start(message)
            result = await consumer.on_finished
            return consumer if self.full_response else result


def server(name=None, description=None, **kwargs):
    """The ``SocketServer`` with ``EchoServerProtocol`` as protocol."""
    return SocketServer(
        EchoServerProtocol, name=name or "echo", description=description or "Echo server", **kwargs
    )


if __name__ == "__main__":
    server().start()
