"""TCP echo by one ``ProtocolConsumer`` per message, with its events and accounting."""

import pulsar
from pulsar.apps.socket import SocketServer


class Echo(pulsar.ProtocolConsumer):
    """Finishes with what it was given: the next bytes make a new consumer."""

    def data_received(self, data: bytes) -> None:
        self.write(data)
        self.finished()


if __name__ == "__main__":
    SocketServer(Echo).start()
