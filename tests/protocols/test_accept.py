"""Renewing TLS: a connection that is accepted at that very moment is served all the same."""

import asyncio
import socket
import ssl
from typing import Any

import pytest

from pulsar.protocols import ProtocolConsumer, TcpServer
from pulsar.protocols.accept import _Listener
from pulsar.tls import client_context, server_context
from tests.support import loops
from tests.support.certs import Certificates, certs

__all__ = ["certs"]


class Echo(ProtocolConsumer):
    def data_received(self, data: bytes) -> None:
        self.write(data)


def test_a_connection_accepted_as_the_certificate_is_renewed_is_served(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    # asyncio makes a connection one turn of the loop after it has accepted it, and needs the
    # server for that. Its servers are replaced here in between.
    accept = socket.socket.accept
    renewing: list[asyncio.Task[None]] = []

    def accept_and_renew(self: socket.socket) -> Any:
        accepted = accept(self)
        acceptor = server._acceptor
        assert acceptor is not None
        if not renewing:
            acceptor._stale = True
            acceptor._settle()
            assert acceptor._settling is not None
            renewing.append(acceptor._settling)
        return accepted

    async def main() -> None:
        await server.start_serving(sslcontext=server_context(certs.server_cert, certs.server_key))
        context = client_context(certs.ca)
        for _ in range(2):
            reader, writer = await asyncio.open_connection(
                *server.address, ssl=context, server_hostname="localhost"
            )
            writer.write(b"Hello!")
            assert await reader.readexactly(6) == b"Hello!"
            writer.close()
            await writer.wait_closed()
        assert renewing[0].done()
        await server.close()

    server = TcpServer(Echo, address="127.0.0.1:0")
    monkeypatch.setattr(_Listener, "accept", accept_and_renew)
    loops.run(main(), loop="asyncio", timeout=10)


def test_no_connection_is_lost_while_certificates_are_renewed(
    certs: Certificates, run: Any
) -> None:
    async def talk(context: ssl.SSLContext, address: Any) -> None:
        for _ in range(25):
            reader, writer = await asyncio.open_connection(
                *address, ssl=context, server_hostname="localhost"
            )
            writer.write(b"Hello!")
            assert await reader.readexactly(6) == b"Hello!"
            writer.close()
            await writer.wait_closed()

    async def main() -> None:
        server = TcpServer(Echo, address="127.0.0.1:0")
        contexts = [
            server_context(certs.server_cert, certs.server_key),
            server_context(certs.renewed_cert, certs.renewed_key),
        ]
        await server.start_serving(sslcontext=contexts[0])
        context = client_context(certs.ca)
        talks = [asyncio.ensure_future(talk(context, server.address)) for _ in range(4)]
        swaps = 0
        while not all(task.done() for task in talks):
            swaps += 1
            await server.renew_tls(contexts[swaps % 2])
            await asyncio.sleep(0)
        await asyncio.gather(*talks)
        assert swaps > 25
        await server.close()

    run(main())
