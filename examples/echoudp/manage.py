"""The echo server and its client over UDP.

Run the server with ``python manage.py``; call it from another shell, in this
directory, with ``from manage import EchoUdp``.
"""

import asyncio

from pulsar import AbstractUdpClient, DatagramProtocol, task
from pulsar.apps.socket import UdpSocketServer


class EchoUdpServerProtocol(DatagramProtocol):
    """Send each datagram back."""

    def datagram_received(self, data, addr):
        self.sendto(data, addr)


class EchoUdpProtocol(DatagramProtocol):
    """The client's side: one answer to wait for at a time."""

    answer = None

    def request(self, data):
        """Send ``data``; returns a Future of the answer."""
        self.answer = asyncio.get_running_loop().create_future()
        self.sendto(data)
        return self.answer

    def datagram_received(self, data, addr):
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc):
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc)


class EchoUdp(AbstractUdpClient):
    """A client for the echo server: ``EchoUdp(('127.0.0.1', 8060))(b'Hello!')``.

    Each call has a socket of its own, so that no answer is taken for another's.

    :param address: the server's address; of a name with several, IPv6 and IPv4,
        only the first is asked, for datagrams make no connection that could fail
    :param timeout: seconds to wait for an answer; datagrams may be lost
    """

    protocol_factory = EchoUdpProtocol

    def __init__(self, address, timeout=5, loop=None):
        super().__init__(loop)
        self.address = address
        self.timeout = timeout

    @task
    async def __call__(self, message):
        protocol = await self.create_endpoint(self.address)
        try:
            async with asyncio.timeout(self.timeout):
                return await protocol.request(message)
        finally:
            await protocol.close()


def server(name=None, description=None, **kwargs):
    """The ``UdpSocketServer`` with ``EchoUdpServerProtocol`` as protocol."""
    return UdpSocketServer(
        EchoUdpServerProtocol,
        name=name or "echoudp",
        description=description or "Echo server over UDP",
        **kwargs,
    )


if __name__ == "__main__":
    server().start()
