"""A small Redis: strings and lists in the memory of one process, for clients that speak RESP2.

Run it with ``python manage.py``; then ``redis-cli -p 8060``, ``redis-benchmark -p 8060 -t
set,get`` or ``redis.Redis(port=8060, protocol=2)``. How much it keeps has no limit.
"""

from functools import partial

from commands import execute
from resp import CommandReader, ReplyError, encode

from pulsar import ProtocolConsumer, ProtocolError
from pulsar.apps.socket import SocketServer


class RespProtocol(ProtocolConsumer):
    """Reads one command, executes it on ``data`` and replies; the next has its own consumer."""

    def __init__(self, data):
        super().__init__()
        self.data = data
        self.reader = CommandReader()

    def data_received(self, data):
        try:
            words, rest = self.reader.split(data)
        except ProtocolError as exc:
            self.write(encode(ReplyError(f"ERR Protocol error: {exc}")))
            raise  # the connection is closed: nobody knows where the next command starts
        if words is not None:
            self.write(encode(execute(self.data, words)))
            self.finished(words)
            if words[0].upper() == b"QUIT":
                self.connection.close()
        return rest

    def eof_received(self):
        self.connection.close()  # in the middle of a command: the rest will never come


def server(name=None, description=None, **kwargs):
    """The ``SocketServer`` of a new, empty set of data."""
    return SocketServer(
        partial(RespProtocol, {}),
        name=name or "resp",
        description=description or "A small Redis in memory",
        # The data is in the memory of one process.
        **{"workers": 0, **kwargs},
    )


if __name__ == "__main__":
    server().start()
