"""What all requests of a server share: the application, limits, caches, threads.

Owns: ``Site``.
Leaves: a request to ``response``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...config import Config
from ...wire.http11 import Limits, RequestHeads
from .environ import SERVER_SOFTWARE, constant_environ
from .head import Heads

__all__ = ["Site"]


class Site:
    """An application, and how it is served.

    :param application: the WSGI callable
    :param cfg: the settings of a ``WSGIServer``
    :param server_software: for the field ``Server``; by default pulsar and its version
    :param multiprocess: other processes serve it, too
    """

    def __init__(
        self,
        application: Callable[..., Any],
        cfg: Config,
        server_software: str | None = None,
        *,
        multiprocess: bool = False,
    ) -> None:
        self.application = application
        self.root_path = str(cfg.root_path).rstrip("/")
        self.head_timeout = float(cfg.head_timeout)
        threads = int(cfg.thread_workers)
        self.pool = ThreadPoolExecutor(threads, "wsgi") if threads else None
        limits = Limits(
            start_line=cfg.limit_request_line,
            field=cfg.limit_request_field_size,
            fields=cfg.limit_request_fields,
            body=cfg.max_body,
        )
        constants = constant_environ(
            multithread=threads > 1, multiprocess=multiprocess, root_path=self.root_path
        )
        self.heads = RequestHeads(limits, constants)
        name = (server_software or SERVER_SOFTWARE) if cfg.server_header else None
        self.responses = Heads(name)

    def mount(self, environ: dict[str, Any]) -> None:
        """Take ``root_path`` off the path of a request that has it."""
        path = environ["PATH_INFO"]
        root = self.root_path
        if path == root or path.startswith(root + "/"):
            environ["PATH_INFO"] = path[len(root) :]

    def close(self) -> None:
        """Let the threads end when they are done."""
        if self.pool is not None:
            self.pool.shutdown(wait=False)
