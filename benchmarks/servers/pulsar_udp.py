"""UDP echo by a ``pulsar.DatagramProtocol``."""

from typing import Any

import pulsar
from pulsar.apps.socket import UdpSocketServer


class Echo(pulsar.DatagramProtocol):
    """Answers each datagram to where it came from."""

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.transport.sendto(data, addr)


if __name__ == "__main__":
    UdpSocketServer(Echo).start()
