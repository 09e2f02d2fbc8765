"""A worker of the tests that need several processes: it serves an inherited socket.

Run as ``python worker.py LOOP SOCKET TABLE CELL [CERTIFICATE KEY]``: the kind of loop, the
descriptors of the listening socket and of the table of connections (-1: none), the worker's
number, which is its cell in the table, and the files with which it speaks TLS. It prints
``ready``, then a line for each command on standard input, and when it is told to ``close``,
or standard input ends, how many connections it has accepted.
"""

import asyncio
import socket
import sys
from collections.abc import Callable

from pulsar.framing import LineFramer
from pulsar.protocols import ProtocolConsumer, TcpServer
from pulsar.protocols.balance import Balance
from pulsar.tls import server_context
from tests.support import loops


class Numbered(ProtocolConsumer):
    """Answers a line with the worker's number."""

    number = b""

    def connection_made(self, connection: object) -> None:
        self.framer = LineFramer()

    def data_received(self, data: bytes) -> bytes:
        line, rest = self.framer.split(data)
        if line is not None:
            self.write(self.framer.encode(self.number))
            self.finished()
        return rest


async def main(listener: int, table: int, cell: int, *certificate: str) -> None:
    loop = asyncio.get_running_loop()
    Numbered.number = b"%d" % cell
    balance = Balance.attach(table, cell) if table >= 0 else None
    sock = socket.socket(fileno=listener)
    server = TcpServer(Numbered, sockets=[sock], balance=balance)
    await server.start_serving(sslcontext=server_context(*certificate) if certificate else None)
    commands: dict[str, Callable[[], object]] = {"pause": server.pause, "nothing": int}
    print("ready", flush=True)
    while (line := await loop.run_in_executor(None, sys.stdin.readline)) not in ("", "close\n"):
        commands[line.strip()]()
        print("done", flush=True)
    await server.close(30, linger=10)
    if balance is not None:
        balance.close()
    print(server.sessions, flush=True)


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:5]
    loops.run(main(*map(int, numbers), *sys.argv[5:]), loop=kind)
