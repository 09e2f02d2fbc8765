"""Web applications, as PEP 3333 has them, over HTTP/1.1."""

from typing import TYPE_CHECKING

from ...doors import lazy

if TYPE_CHECKING:
    from .environ import test_wsgi_environ
    from .response import HttpServerResponse
    from .server import WSGIServer
else:
    __getattr__ = lazy(
        __name__,
        {
            "HttpServerResponse": "response",
            "WSGIServer": "server",
            "test_wsgi_environ": "environ",
        },
    )

__all__ = ["HttpServerResponse", "WSGIServer", "test_wsgi_environ"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
