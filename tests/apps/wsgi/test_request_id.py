"""Request ids: taken over or made, and the same for everybody who has the request."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pulsar.apps.wsgi import HttpServerResponse, WSGIServer
from pulsar.apps.wsgi.request_id import RequestIds
from pulsar.errors import ImproperlyConfigured
from tests.apps.wsgi.client import Answer, Client, request
from tests.apps.wsgi.serving import served

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]

HEADER = "X-Request-ID"
MADE = re.compile("[0-9a-f]{32}").fullmatch


def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise ValueError("failed on purpose")
    headers = [("x-request-id", "its own")] if path == "/own" else []
    start_response("200 OK", headers)
    text = f"{environ['HTTP_X_REQUEST_ID']} {environ['pulsar.request_id']}".encode()
    return iter([text, b""]) if path == "/stream" else [text]


def answers(run: Run, *sent: bytes, **settings: Any) -> list[Answer]:
    async def main() -> list[Answer]:
        found = []
        async with served(app, request_id_header=HEADER, **settings) as server:
            for data in sent:
                async with await server.client() as client:
                    await client.send(data)
                    found.append(await client.answer())
        return found

    got: list[Answer] = run(main(), allow=ValueError)
    return got


@pytest.mark.parametrize("path", ["/", "/stream"])
def test_who_sends_an_id_gets_it_back(run: Run, mode: Mode, path: str) -> None:
    for name in ("a", "Root=1-67891233/abc:d+e@f~g_h.", "x" * 128):
        [answer] = answers(run, request(path, f"{HEADER}: {name}"), **mode)
        assert answer[HEADER] == name
        assert answer.body.decode() == f"{name} {name}"


@pytest.mark.parametrize("path", ["/", "/stream"])
def test_who_sends_none_that_could_be_one_gets_a_new_one(run: Run, mode: Mode, path: str) -> None:
    sent = [[], [f"{HEADER}: "], [f"{HEADER}: a b"], [f'{HEADER}: "'], [f"{HEADER}: {'x' * 129}"]]
    sent += [[f"{HEADER}: \xe4"], [f"{HEADER}: a", f"{HEADER}: b"], ["X_Request_ID: a"]]
    found = answers(run, *[request(path, *fields) for fields in sent], **mode)
    names = {answer[HEADER] for answer in found}
    assert len(names) == len(sent)
    assert all(map(MADE, names))
    assert [answer.body.decode() for answer in found] == [f"{a[HEADER]} {a[HEADER]}" for a in found]


def test_an_application_that_says_it_itself_is_left_alone(run: Run) -> None:
    [answer] = answers(run, request("/own", f"{HEADER}: a"))
    assert answer[HEADER] == "its own"
    assert answer.body == b"a a"


@pytest.mark.parametrize("log_format", ["json", "%(U)s %(s)s %({x-request-id}i)s"])
def test_failures_and_the_access_log_have_it(
    run: Run, mode: Mode, tmp_path: Path, log_format: str
) -> None:
    path = tmp_path / "access.log"
    sent = [request("/"), request("/fails"), request("/", f"{HEADER}: mine"), b"nonsense\r\n\r\n"]
    found = answers(run, *sent, access_log=str(path), access_log_format=log_format, **mode)
    assert [answer.status for answer in found] == [200, 500, 200, 400]
    lines = path.read_text().splitlines()
    if log_format == "json":
        names = [json.loads(line)["request_id"] for line in lines]
    else:
        names = [line.split()[-1] for line in lines]
        assert names.pop() == "-"
        names.append(None)
    assert names == [*(answer[HEADER] for answer in found[:3]), None]
    assert names[2] == "mine"
    assert MADE(names[0])
    assert MADE(names[1])
    assert HEADER not in found[3]


def test_by_another_name_and_with_a_response_of_ones_own(run: Run) -> None:
    class Response(HttpServerResponse):
        pass

    class Server(WSGIServer):
        response_class = Response

    seen = []

    def other(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append((environ["HTTP_TRACE"], environ["pulsar.request_id"]))
        assert isinstance(start_response.__self__, Response)
        start_response("200 OK", [])
        return [b""]

    async def main() -> Answer:
        application = Server(
            other, load_config=False, workers=0, bind="127.0.0.1:0", request_id_header="Trace"
        )
        server = await application.create_server()
        try:
            async with await Client.connect(server.address) as client:
                await client.send(request("/", "Trace: 7"))
                return await client.answer()
        finally:
            await application.worker_stop(None, 0)

    assert run(main())["Trace"] == "7"
    assert seen == [("7", "7")]


def test_without_the_setting_the_header_is_any_header(run: Run) -> None:
    seen: list[Environ] = []

    def plain(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [])
        return [b""]

    async def main() -> Answer:
        async with served(plain) as server, await server.client() as client:
            await client.send(request("/", f"{HEADER}: a b"))
            return await client.answer()

    assert HEADER not in run(main())
    assert seen[0]["HTTP_X_REQUEST_ID"] == "a b"
    assert "pulsar.request_id" not in seen[0]


def test_an_application_that_seeds_random_does_not_repeat_names() -> None:
    names = []
    for _ in range(2):
        random.seed(1)
        environ: Environ = {}
        RequestIds(HEADER).apply(environ)
        names.append(environ["pulsar.request_id"])
    assert names[0] != names[1]


def test_the_setting_takes_the_name_of_a_header() -> None:
    for bad in ("X Request", "X_Request_ID", "", "-", "Content-Length", "connection", "X-\xe4"):
        with pytest.raises(ImproperlyConfigured, match="such as X-Request-ID"):
            WSGIServer(app, load_config=False, request_id_header=bad)
