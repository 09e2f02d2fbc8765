"""What our layers add to a connection that carries one message, in microseconds.

As ``layers.py``: a fake transport and ``timeit``. A connection is accepted (the
server's factory is called), made, fed one message, ended by its peer and lost.
"""

from __future__ import annotations

import asyncio
import platform
import timeit

from layers import MESSAGE, Bare, LongLived, PerMessage, Transport

from pulsar.protocols import TcpServer

NUMBER = 5_000
ROUNDS = 25


def life(factory):
    protocol = factory()
    transport = Transport()
    transport.protocol = protocol
    protocol.connection_made(transport)
    protocol.data_received(MESSAGE)
    if not protocol.eof_received():
        transport.close()
    protocol.connection_lost(None)


async def main() -> None:
    cases = {"bare asyncio.Protocol": Bare}
    servers = []
    for thing in (Bare, LongLived, PerMessage):
        server = TcpServer(
            thing,
            address=("127.0.0.1", 0),
            keep_alive=75 if thing is not Bare else None,
            max_connections=1000,
        )
        await server.start_serving()
        servers.append(server)
        cases[f"TcpServer of {thing.__name__}"] = server.create_protocol
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, factory in cases.items():
            seconds = timeit.timeit(lambda f=factory: life(f), number=NUMBER)
            best[name] = min(best[name], seconds / NUMBER * 1e6)
    base = best["bare asyncio.Protocol"]
    print(f"Python {platform.python_version()}, best of {ROUNDS} rounds of {NUMBER}")
    for name, value in best.items():
        print(f"{name:45} {value:6.2f} us   added {value - base:6.2f} us")
    for server in servers:
        await server.close(0)


if __name__ == "__main__":
    asyncio.run(main())
