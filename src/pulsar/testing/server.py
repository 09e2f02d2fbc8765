"""What is common to the servers that a test starts.

Owns: ``Server``: where it serves, its errors, and the two kinds of ``with``.
Leaves: starting and stopping to ``local`` and ``program``.
"""

from __future__ import annotations

import logging
import traceback
from types import TracebackType
from typing import Any, ClassVar, Self

from ..net import ConnectAddress, connect_address, format_address

__all__ = ["DEFAULTS", "Server"]

# Settings of a server under test, unless somebody says otherwise.
DEFAULTS: dict[str, Any] = {"bind": ("127.0.0.1:0",), "graceful_timeout": 5}

# Seconds beyond its own deadlines that a server gets, on a machine that has other work.
PATIENCE = 10.0


class Server:
    """A server that runs while its block does; ``pulsar.testing.serve`` makes it.

    At the end of the block it stops gracefully, within ``graceful_timeout``; at once, if the
    block has raised. What the server has to say of that is then added to the exception.
    """

    #: Where it serves, as clients write it: host and port, or the path of a Unix socket.
    addresses: list[ConnectAddress]

    #: Whether it speaks TLS.
    secure: bool

    def __init__(self) -> None:
        self.addresses = []
        self.secure = False

    @property
    def address(self) -> ConnectAddress:
        """The first of ``addresses``."""
        return self.addresses[0]

    @property
    def host(self) -> str:
        """The host of the first address. Raises ``ValueError`` for a Unix socket."""
        return self._inet()[0]

    @property
    def port(self) -> int:
        """The port of the first address. Raises ``ValueError`` for a Unix socket."""
        return self._inet()[1]

    @property
    def url(self) -> str:
        """Of a web server: ``http://HOST:PORT`` or ``https://HOST:PORT``, of the first address."""
        host, port = self._inet()
        # Where one listens on all interfaces, one does not connect.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"http{'s' if self.secure else ''}://{format_address((host, port))}"

    def take_errors(self) -> list[BaseException]:
        """What the server has logged as an error since the last call.

        That is the exception or, without one, and for a server that is a program, a
        ``RuntimeError`` with the text. It is forgotten, so that the end of the block does
        not complain of it.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stop(graceful=error is None)
        finally:
            self._report(error)

    async def __aenter__(self) -> Self:
        await self._start_here()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._stop_here(graceful=error is None)
        finally:
            self._report(error)

    def _start(self) -> None:
        """Serve in the background. Raises what keeps it from that; then nothing is left."""
        raise NotImplementedError

    def _stop(self, graceful: bool) -> None:
        """Return when nothing is left."""
        raise NotImplementedError

    async def _start_here(self) -> None:
        """``_start``, in the loop that runs."""
        raise NotImplementedError

    async def _stop_here(self, graceful: bool) -> None:
        """``_stop``, in the loop that runs."""
        raise NotImplementedError

    def _serves_at(self, names: list[Any]) -> None:
        self.addresses = [connect_address(name) for name in names]

    def _inet(self) -> tuple[str, int]:
        if isinstance(self.address, str):
            raise ValueError(f"{format_address(self.address)} is a Unix socket, without a port")
        return self.address

    def _report(self, error: BaseException | None) -> None:
        errors = self.take_errors()
        if error is None and errors:
            raise BaseExceptionGroup(
                "the server has logged errors that the test did not take (take_errors)", errors
            )
        for one in errors:
            assert error is not None
            error.add_note("The server has logged:\n" + "".join(traceback.format_exception(one)))


class ErrorLog(logging.Handler):
    """Collects the errors that are logged while a server runs in this process.

    :param thread: where its loop runs, by ``threading.get_ident``
    """

    # pulsar's own, and what asyncio says for a loop that has no handler.
    _LOGGERS: ClassVar[tuple[str, ...]] = ("pulsar", "asyncio")

    # The threads of all servers under test: an error in one of them is no other server's.
    _threads: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.thread = 0
        self.errors: list[BaseException] = []

    def open(self, thread: int) -> None:
        """Begin."""
        self.thread = thread
        self._threads.append(thread)
        for name in self._LOGGERS:
            logging.getLogger(name).addHandler(self)

    def close(self) -> None:
        """End."""
        super().close()
        if self.thread in self._threads:
            self._threads.remove(self.thread)
        for name in self._LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self.thread and record.thread in self._threads:
            return  # another server's
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.errors.append(error)
        elif record.name != "asyncio":
            self.errors.append(RuntimeError(record.getMessage()))

    def take(self) -> list[BaseException]:
        taken, self.errors = self.errors, []
        return taken
