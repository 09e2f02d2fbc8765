"""WSGI applications served in the loop of the test.

Owns: ``served``, and ``Served``, what it gives; ``asked``, for a single request.
Leaves: the applications to the tests, servers in processes of their own to tests/support.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pulsar.apps.wsgi import WSGIServer
from pulsar.protocols import TcpServer

from .client import Answer, Client, request


@dataclass(frozen=True)
class Served:
    """An application that is being served."""

    application: WSGIServer
    server: TcpServer

    @property
    def address(self) -> Any:
        return self.server.address

    async def client(self, *, window: int | None = None) -> Client:
        return await Client.connect(self.address, window=window)


@asynccontextmanager
async def served(app: Any, **settings: Any) -> AsyncIterator[Served]:
    """Serve ``app`` on a free port; at the end every connection must be closed, or is aborted."""
    settings = {"bind": "127.0.0.1:0", **settings}
    application = WSGIServer(app, load_config=False, workers=0, **settings)
    server = await application.create_server()
    try:
        yield Served(application, server)
    finally:
        await application.worker_stop(None, 0)


def asked(
    run: Callable[..., Any],
    app: Any,
    data: bytes | None = None,
    *,
    method: str = "GET",
    **settings: Any,
) -> Answer:
    """The answer of ``app`` to ``data``, by default a plain request with ``method``."""

    async def main() -> Answer:
        async with served(app, **settings) as server, await server.client() as client:
            await client.send(request(method=method) if data is None else data)
            answer = await client.answer(method)
            if answer.closes:
                assert await client.rest() == b""
            return answer

    answer: Answer = run(main())
    return answer
