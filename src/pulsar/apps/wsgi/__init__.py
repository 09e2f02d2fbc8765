"""Web applications, as PEP 3333 has them, over HTTP/1.1."""

from .environ import test_wsgi_environ
from .response import HttpServerResponse
from .server import WSGIServer

__all__ = ["HttpServerResponse", "WSGIServer", "test_wsgi_environ"]
