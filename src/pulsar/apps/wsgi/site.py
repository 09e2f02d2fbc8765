"""What all requests of a server share: the application, limits, caches, threads, the log.

Owns: ``Site``.
Leaves: a request to ``response``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, ClassVar

from ...config import Config
from ...wire.http11 import Limits, RequestHeads
from .access import AccessLog
from .auto import AutoThreads
from .environ import SERVER_SOFTWARE, constant_environ
from .head import Heads
from .recognise import is_asynchronous
from .request_id import RequestIds
from .threads import Threads
from .trust import Trust

__all__ = ["Site"]

# As many as ``auto`` has: for who waits, so the processors do not matter.
_AUTO = 8


class Site:
    """An application, and how it is served.

    :param application: the WSGI callable
    :param cfg: the settings of a ``WSGIServer``
    :param server_software: for the field ``Server``; by default pulsar and its version
    :param multiprocess: other processes serve it, too

    Raises ``ImproperlyConfigured`` when the access log cannot be opened.
    """

    # See ``of``; each keeps what the numbers in its key stand for.
    _made: ClassVar[dict[tuple[int, int, str | None], Site]] = {}

    def __init__(
        self,
        application: Callable[..., Any],
        cfg: Config,
        server_software: str | None = None,
        *,
        multiprocess: bool = False,
    ) -> None:
        self.application = application
        #: It is not ``async``, and sees no running loop: see ``loopless``.
        self.hides_loop = not is_asynchronous(application)
        self.cfg = cfg
        #: What requests begin with, see ``Connection.context``.
        self.context = copy_context()
        #: Seconds that the head of a request may take.
        self.head_timeout = float(cfg.head_timeout)
        #: Seconds that a client may be silent in the middle of a body; 0: as long as it likes.
        self.stall_timeout = float(cfg.stall_timeout or 0)
        limits = Limits(
            start_line=cfg.limit_request_line,
            field=cfg.limit_request_field_size,
            fields=cfg.limit_request_fields,
            body=cfg.max_body,
        )
        threads = self.threads = _threads(cfg.thread_workers, is_asynchronous(application))
        # Text in an environment is bytes in disguise (PEP 3333).
        self._root_path = str(cfg.root_path).rstrip("/").encode().decode("latin-1")
        constants = constant_environ(
            multithread=threads is not None and threads.parallel,
            multiprocess=multiprocess,
            root_path=self._root_path,
        )
        self.heads = RequestHeads(limits, constants)
        self.responses = Heads((server_software or SERVER_SOFTWARE) if cfg.server_header else None)
        proxies = cfg.forwarded_allow_ips
        self._trust = Trust(proxies, cfg.forwarded_header) if proxies else None
        name = cfg.request_id_header
        #: What names requests; None: nothing does.
        self.request_ids = RequestIds(name) if name else None
        self.access = (
            AccessLog(cfg.access_log, cfg.access_log_format, name) if cfg.access_log else None
        )
        #: There is something to do for each request that most sites do without ...
        self.special = any(
            (self.threads, self._root_path, self._trust, self.access, self.request_ids)
        )
        #: ... and it is about the environment.
        self.adjusts = bool(self._trust or self._root_path)
        #: Every answer from now on is the last one of its connection.
        self.stopping = False

    @classmethod
    def of(
        cls, application: Callable[..., Any], cfg: Config, server_software: str | None = None
    ) -> Site:
        """The same site for the same arguments: for who makes a response without one."""
        key = (id(application), id(cfg), server_software)
        site = cls._made.get(key)
        if site is None:
            site = cls._made[key] = cls(application, cfg, server_software)
        return site

    def adjust(self, environ: dict[str, Any]) -> None:
        """Take into an environment what a proxy says, and where the application is mounted."""
        if self._trust is not None:
            self._trust.apply(environ)
        root = self._root_path
        if root:
            path = environ["PATH_INFO"]
            if path == root or path.startswith(f"{root}/"):
                environ["PATH_INFO"] = path[len(root) :]

    async def close(self, timeout: float) -> None:
        """Let the threads end, and wait for them for ``timeout`` seconds."""
        if self.threads is not None:
            await self.threads.close(timeout)
        if self.access is not None:
            self.access.close()


def _threads(setting: int | str, asynchronous: bool) -> Threads | None:
    """The threads that ``thread_workers`` asks for; None: there are none.

    :param asynchronous: the application is: no call of it takes long
    """
    if isinstance(setting, int):
        return Threads(setting) if setting else None
    _, _, number = setting.partition(":")
    return None if asynchronous else AutoThreads(int(number or _AUTO))
