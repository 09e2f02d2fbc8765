"""Request ids: one name for a request in the logs of everybody who has had it.

Owns: ``RequestIds``: which id a request gets, and ``identified``, the responses that bear it;
``id_header``, a setting's value.
Leaves: when there are any to ``Site``, writing them down to ``access``.

An id that a client sends is taken over, for the client is a proxy, or the service that calls
this one, and knows it by that name. So it is a name and no more: whoever sends one can choose
it. What could not be a name, or is too long for one, is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from .head import HOP_HEADERS

if TYPE_CHECKING:
    from .response import HttpServerResponse

__all__ = ["ENVIRON_KEY", "RequestIds", "id_header", "identified"]

#: Where an application finds the id, whatever the header is called.
ENVIRON_KEY = "pulsar.request_id"

_is_id = re.compile(r"[0-9A-Za-z._~:+/=@-]{1,128}").fullmatch
_is_name = re.compile(r"[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*").fullmatch

# Headers that mean something to us.
_TAKEN = HOP_HEADERS | {"content-length", "content-type", "date", "host", "server"}


def id_header(value: object) -> str:
    """A setting's value: the name of a header. Raises ``ValueError``."""
    name = str(value)
    if _is_name(name) is None or name.lower() in _TAKEN:
        raise ValueError("give the name of a header of your own, such as X-Request-ID")
    return name


class RequestIds:
    """Gives each request the id that it has brought, or a new one: 32 hexadecimal digits.

    :param header: what ids are sent in, both ways
    """

    def __init__(self, header: str) -> None:
        self.header = header
        self._name = header.encode("ascii")
        self._key = f"HTTP_{header.upper().replace('-', '_')}"
        # Not the one that an application may seed; and made in the process that uses it.
        self._random: Random | None = None

    def apply(self, environ: dict[str, Any]) -> bytes:
        """Put the id into an environment; returns the header line of the response."""
        name = environ.get(self._key)
        if name is None or _is_id(name) is None:
            name = environ[self._key] = self._new()
        environ[ENVIRON_KEY] = name
        return b"%b: %b\r\n" % (self._name, name.encode("ascii"))

    def _new(self) -> str:
        random = self._random
        if random is None:
            random = self._random = Random()  # noqa: S311 - a name, not a secret
        return f"{random.getrandbits(128):032x}"


def identified(cls: type[HttpServerResponse], ids: RequestIds) -> type[HttpServerResponse]:
    """A subclass of ``cls`` whose responses bear an id from ``ids``."""
    header = ids.header.lower()

    class Identified(cls):  # type: ignore[misc, valid-type]
        __slots__ = ("_id_line",)

        @property
        def id_line(self) -> bytes:
            """See ``HttpServerResponse.id_line``."""
            return getattr(self, "_id_line", b"")

        def _handed_over(self, environ: dict[str, Any]) -> bool:
            self._id_line = ids.apply(environ)
            return super()._handed_over(environ)  # type: ignore[no-any-return]

        def start_response(
            self,
            status: str,
            response_headers: Sequence[tuple[str, str]],
            exc_info: Any = None,
        ) -> Callable[[bytes], Any]:
            """See ``HttpServerResponse.start_response``."""
            write = super().start_response(status, response_headers, exc_info)
            # An application that says it itself has reason to.
            if all(name.lower() != header for name, _ in response_headers):
                self._plan = self._plan.plus(self._id_line)  # type: ignore[misc, has-type]
            return write  # type: ignore[no-any-return]

    Identified.__name__ = cls.__name__
    Identified.__qualname__ = cls.__qualname__
    return Identified
