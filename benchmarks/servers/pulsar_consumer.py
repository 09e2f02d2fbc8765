"""TCP echo by a ``ProtocolConsumer`` that lives as long as its connection."""

import pulsar
from pulsar.apps.socket import SocketServer


class Echo(pulsar.ProtocolConsumer):
    """Never finishes: what arrives on a connection goes to one consumer."""

    def data_received(self, data: bytes) -> None:
        self.write(data)


if __name__ == "__main__":
    SocketServer(Echo).start()
