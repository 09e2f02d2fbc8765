"""``WSGIServer``: an application that serves web applications.

Owns: what differs from ``SocketServer``: the consumer that a WSGI callable gets.
Leaves: requests to ``response``, sockets and workers to the floors below.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

from ...config import Config
from ...errors import ImproperlyConfigured
from ...protocols import Kind
from ...protocols.kinds import callable_name
from ...tls import server_context
from ..socket import SocketServer
from . import settings  # noqa: F401 - declares them
from .environ import test_wsgi_environ
from .recognise import is_wsgi, takes_two
from .request_id import identified
from .response import HttpServerResponse
from .site import Site

__all__ = ["HttpServerResponse", "WSGIServer", "is_wsgi", "test_wsgi_environ"]

# Seconds that threads have to end at least, when they have nothing to do.
_PATIENCE = 0.5


class WSGIServer(SocketServer):
    """Serve a WSGI application (PEP 3333) over HTTP/1.1.

    :param callable: called with an environment and ``start_response``; it may be
        ``async``, and return what is to be awaited
    :param load_config: see ``Application``
    :param params: settings by name, such as ``thread_workers=8``
    """

    cfg_apps: ClassVar[tuple[str, ...]] = ("socket", "wsgi")

    # What answers a request.
    response_class: ClassVar[type[HttpServerResponse]] = HttpServerResponse

    def __init__(self, callable: Any = None, load_config: bool = True, **params: Any) -> None:
        super().__init__(callable, load_config, **params)
        self._site: Site | None = None

    def protocol_factory(self) -> Any:
        """A consumer class for the application's callable. Raises ``ImproperlyConfigured``."""
        application = super().protocol_factory()
        if not takes_two(application):
            raise ImproperlyConfigured(
                f"cannot serve {callable_name(application)}: a WSGI application is called as "
                "application(environ, start_response)"
            )
        site = self._site = Site(
            application, self.cfg, multiprocess=self.cfg.workers > 1 and not self.serves_alone()
        )
        cls = self.response_class
        return (identified(cls, site.request_ids) if site.request_ids else cls).bound(site)

    def _classify(self, factory: Any) -> Kind:
        return Kind.CONSUMER

    def _ssl_context(
        self, cfg: Config, make: Callable[..., Any] = server_context
    ) -> ssl.SSLContext | None:
        context = super()._ssl_context(cfg, make)
        if context is not None and not cfg.alpn:
            context.set_alpn_protocols(["http/1.1"])
        return context

    async def _start(self, server: Any, context: ssl.SSLContext | None) -> None:
        server.deadlines = (self.cfg.head_timeout,)
        # For applications that make Futures, and see no loop that runs: see loopless.
        asyncio.set_event_loop(asyncio.get_running_loop())
        await super()._start(server, context)

    async def worker_stop(self, worker: Any, timeout: float) -> None:
        """See ``SocketServer.worker_stop``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            await super().worker_stop(worker, timeout)
            if self._site is not None:
                await self._site.close(max(_PATIENCE, deadline - loop.time()))
        finally:
            asyncio.set_event_loop(None)
