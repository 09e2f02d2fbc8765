"""Hello World!, with and without a server."""

import http.client
from wsgiref.validate import validator

import pytest

from examples.helloworld.manage import hello
from pulsar.apps.wsgi import test_wsgi_environ as wsgi_environ
from tests.support.process import EXAMPLES, MODES, PATIENCE, ServerProcess


def test_without_a_server() -> None:
    started = []

    def start_response(status, headers, exc_info=None):
        started.append((status, dict(headers)))
        return started.append

    result = validator(hello)(wsgi_environ("/any?thing"), start_response)
    assert b"".join(result) == b"Hello World!"
    result.close()
    assert started == [("200 OK", {"Content-type": "text/plain", "Content-Length": "12"})]


@pytest.mark.parametrize("mode", [*MODES, pytest.param(("--threads", "2"), id="threads")])
def test_over_a_connection(mode: tuple[str, ...]) -> None:
    options = ("--bind", "127.0.0.1:0", *mode)
    with ServerProcess("manage.py", *options, cwd=EXAMPLES / "helloworld") as server:
        client = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
        for method, path in [("GET", "/"), ("POST", "/a/b?c=d"), ("HEAD", "/")]:
            client.request(method, path)
            answer = client.getresponse()
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain")
            assert answer.headers["Content-Length"] == "12"
            assert answer.read() == (b"" if method == "HEAD" else b"Hello World!")
            assert not answer.will_close
        client.close()
