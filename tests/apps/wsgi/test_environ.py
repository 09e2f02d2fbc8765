"""What an application is called with, and ``test_wsgi_environ``, which makes the same."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from pulsar.apps.wsgi import WSGIServer
from pulsar.apps.wsgi import test_wsgi_environ as environ_for
from pulsar.apps.wsgi.files import FileWrapper
from pulsar.apps.wsgi.trust import Trust
from pulsar.errors import ImproperlyConfigured
from tests.apps.wsgi.client import Client, chunked, request
from tests.apps.wsgi.serving import asked, served

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]


def environ_of(run: Run, data: bytes, **settings: Any) -> Environ:
    """The environment that a request makes."""
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [])
        return [b""]

    assert asked(run, app, data, **settings).status == 200
    [environ] = seen
    return environ


# From the request


def test_a_plain_request(run: Run, mode: Mode) -> None:
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(dict(environ))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    async def main() -> None:
        async with served(validator(app), **mode) as server, await server.client() as client:
            await client.send(
                request("/a%20b/c?d=%20e&f", "Content-Type: text/x", method="POST", body=b"body")
            )
            assert (await client.answer()).status == 200
            host, port = client.sock.getsockname()
            environ = seen[0]
            assert isinstance(environ.pop("wsgi.errors").write, Callable)  # type: ignore[arg-type]
            for name in ("wsgi.input", "wsgi.file_wrapper", "wsgi.early_hints"):
                assert environ.pop(name) is not None
            assert environ.pop("SERVER_SOFTWARE").startswith("pulsar/")
            assert environ == {
                "REQUEST_METHOD": "POST",
                "SCRIPT_NAME": "",
                "PATH_INFO": "/a b/c",
                "QUERY_STRING": "d=%20e&f",
                "RAW_URI": "/a%20b/c?d=%20e&f",
                "CONTENT_TYPE": "text/x",
                "CONTENT_LENGTH": "4",
                "HTTP_HOST": "testserver",
                "SERVER_NAME": "127.0.0.1",
                "SERVER_PORT": str(server.address[1]),
                "SERVER_PROTOCOL": "HTTP/1.1",
                "REMOTE_ADDR": host,
                "REMOTE_PORT": str(port),
                "wsgi.version": (1, 0),
                "wsgi.url_scheme": "http",
                "wsgi.multithread": mode["thread_workers"] > 1,
                "wsgi.multiprocess": False,
                "wsgi.run_once": False,
                "wsgi.input_terminated": True,
            }
            assert all(type(value) is str for value in environ.values() if value in environ)

    run(main())


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/caf%C3%A9", "/caf\xc3\xa9", ""),
        ("/%E9", "/\xe9", ""),
        ("/a%2Fb", "/a/b", ""),
        ("/a%00b", "/a\0b", ""),
        ("/a%zz", "/a%zz", ""),
        ("/../a//b/.", "/../a//b/.", ""),
        ("//a/b", "//a/b", ""),
        ("/a;b=c", "/a;b=c", ""),
        ("http://other:81/a?b", "/a", "b"),
        ("http://other", "/", ""),
    ],
)
def test_targets(run: Run, target: str, path: str, query: str) -> None:
    environ = environ_of(run, request(target))
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == (path, query)
    assert environ["RAW_URI"] == target
    # RFC 9112 section 3.2.2: what is in the target counts.
    wanted = target.partition("//")[2].partition("/")[0].partition("?")[0]
    assert environ["HTTP_HOST"] == (wanted if target.startswith("http") else "testserver")


def test_the_server_as_the_target(run: Run) -> None:
    environ = environ_of(run, request("*", method="OPTIONS"))
    assert (environ["PATH_INFO"], environ["RAW_URI"]) == ("", "*")


def test_headers(run: Run) -> None:
    environ = environ_of(
        run,
        request(
            "/",
            "X-One:  a b\t",
            "x-two: 1",
            "X-TWO: 2",
            "Cookie: a=1",
            "cookie: b=2",
            "X-Empty:",
            "X-Latin: \xe9",
            "X_One: spoofed",
            "X-Under_score: dropped",
            "Content-Type: a/b",
        ),
    )
    headers = {
        name: value for name, value in environ.items() if name.startswith(("HTTP_", "CONTENT"))
    }
    assert headers == {
        "HTTP_HOST": "testserver",
        "HTTP_X_ONE": "a b",
        "HTTP_X_TWO": "1, 2",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_EMPTY": "",
        "HTTP_X_LATIN": "\xe9",
        "CONTENT_TYPE": "a/b",
    }


def test_a_body_in_chunks_has_a_length_by_then_and_trailers_are_no_headers(
    run: Run, mode: Mode
) -> None:
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        seen.append(environ)
        start_response("200 OK", [])
        return [b""]

    data = request("/", "Transfer-Encoding: chunked", "Trailer: X-T", method="POST")
    data += b"3;a=b\r\nabc\r\n0\r\nX-T: 1\r\nX-Forwarded-For: 1.2.3.4\r\nHost: b\r\n\r\n"
    assert asked(run, app, data, **mode).status == 200
    assert seen[0] == b"abc"
    assert "HTTP_TRANSFER_ENCODING" not in seen[1]
    assert "HTTP_X_T" not in seen[1]
    assert "HTTP_X_FORWARDED_FOR" not in seen[1]
    assert seen[1]["HTTP_HOST"] == "testserver"


def test_an_environment_belongs_to_its_request(run: Run, mode: Mode) -> None:
    """Equal requests are read once: what an application does to one must not be seen by others."""
    sizes = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert "mine" not in environ
        sizes.append(len(environ))
        for name in [name for name in environ if not name.startswith("wsgi.")]:
            environ[name] = "changed"
        environ["mine"] = 1
        del environ["REQUEST_METHOD"]
        start_response("200 OK", [])
        return [b""]

    async def main() -> None:
        async with served(app, **mode) as server:
            for _ in range(2):
                async with await server.client() as client:
                    await client.send(request("/x", "X-A: b") * 5)
                    for _ in range(5):
                        assert (await client.answer()).status == 200

    run(main())
    assert len(sizes) == 10
    assert len(set(sizes)) == 1


# wsgi.input


def test_the_input(run: Run, mode: Mode) -> None:
    body = b"first\nsecond\n\nfourth"
    reads: dict[str, Callable[[Any], Any]] = {
        "/read": lambda stream: [stream.read(), stream.read(), stream.read(10)],
        "/sized": lambda stream: [
            stream.read(3),
            stream.read(0),
            stream.read(1000),
            stream.read(1),
        ],
        "/none": lambda stream: [stream.read(None), stream.read(None)],
        "/minus": lambda stream: [stream.read(-1), stream.read(-1)],
        "/line": lambda stream: [stream.readline(), stream.readline(3), stream.readline(100)],
        "/lines": lambda stream: [*stream.readlines(), stream.read()],
        "/hint": lambda stream: [b"".join(stream.readlines(7)), b"".join(stream.readlines())],
        "/iterated": lambda stream: [*stream],
        "/nothing": lambda stream: [],
    }
    wanted = {
        "/read": [body, b"", b""],
        "/sized": [b"fir", b"", body[3:], b""],
        "/none": [body, b""],
        "/minus": [body, b""],
        "/line": [b"first\n", b"sec", b"ond\n"],
        "/lines": [b"first\n", b"second\n", b"\n", b"fourth", b""],
        "/hint": [b"first\nsecond\n", b"\nfourth"],
        "/iterated": [b"first\n", b"second\n", b"\n", b"fourth"],
        "/nothing": [],
    }

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        pieces = reads[environ["PATH_INFO"]](environ["wsgi.input"])
        start_response("200 OK", [])
        return [json.dumps([piece.decode() for piece in pieces]).encode()]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for path in reads:
                for given in (body, b"", None):
                    await client.send(request(path, method="POST", body=given))
                    answer = await client.answer()
                    found = [piece.encode() for piece in json.loads(answer.body)]
                    if given:
                        assert found == wanted[path], path
                    else:
                        assert b"".join(found) == b""

    run(main())


@pytest.mark.parametrize("body", [None, b"", b"text \xc3\xa9\n", b"x" * 300_000])
def test_the_input_can_be_wrapped(run: Run, mode: Mode, body: bytes | None) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        text = io.TextIOWrapper(environ["wsgi.input"], "utf-8")
        start_response("200 OK", [])
        read = text.read()
        text.detach()
        return [read.encode()]

    answer = asked(run, app, request(method="POST", body=body), **mode)
    assert answer.body == (body or b"")


def test_closing_the_input_hurts_nobody(run: Run, mode: Mode) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        environ["wsgi.input"].close()
        start_response("200 OK", [])
        return [b"fine"]

    async def main() -> None:
        async with served(app, **mode) as server, await server.client() as client:
            for body in (None, b"x", None, b"x" * 300_000):
                await client.send(request(method="POST", body=body))
                assert (await client.answer()).body == b"fine"

    run(main())


def test_errors_are_for_the_log_of_the_server(
    run: Run, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("one\n")
        errors.writelines(["two\n", "three\n"])
        print("four", file=errors, flush=True)
        start_response("200 OK", [("Content-Type", "a/b")])
        return [b""]

    assert asked(run, validator(app), **mode).status == 200
    assert capsys.readouterr().err == "one\ntwo\nthree\nfour\n"


# From the connection


def test_a_unix_socket(run: Run, mode: Mode) -> None:
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [("Content-Type", "a/b")])
        return [b"x"]

    async def main(path: Path) -> None:
        settings = {"bind": f"unix:{path}", **mode}
        async with served(validator(app), **settings), await Client.connect(str(path)) as client:
            assert (await client.get()).body == b"x"

    with tempfile.TemporaryDirectory(prefix="pulsar-") as directory:
        run(main(Path(directory) / "socket"))
    [environ] = seen
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("", "")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "80")


def test_ipv6(run: Run) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append((environ["SERVER_NAME"], environ["REMOTE_ADDR"]))
        start_response("200 OK", [])
        return [b""]

    async def main() -> None:
        async with served(app, bind="[::1]:0") as server:
            reader, writer = await asyncio.open_connection(*server.address[:2])
            writer.write(request())
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()

    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 on this host")
    run(main())
    assert seen == [("::1", "::1")]


@pytest.mark.parametrize(
    ("root", "target", "script_name", "path_info"),
    [
        ("", "/a", "", "/a"),
        ("/", "/a", "", "/a"),
        ("/shop", "/shop/a", "/shop", "/a"),
        ("/shop/", "/shop/a", "/shop", "/a"),
        ("/shop", "/shop/", "/shop", "/"),
        ("/shop", "/shop", "/shop", ""),
        # A proxy that takes it off is fine, too.
        ("/shop", "/a", "/shop", "/a"),
        ("/shop", "/shopping", "/shop", "/shopping"),
        ("/caf\xe9", "/caf%C3%A9/a", "/caf\xc3\xa9", "/a"),
    ],
)
def test_the_root_path(
    run: Run, mode: Mode, root: str, target: str, script_name: str, path_info: str
) -> None:
    environ = environ_of(run, request(target), root_path=root, **mode)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)
    assert environ["RAW_URI"] == target


# What proxies say

SPOOFED = (
    "X-Forwarded-For: 192.0.2.1",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 99",
    "X-Real-IP: 192.0.2.1",
    'Forwarded: for=192.0.2.1;proto=https;host="evil.example"',
    "X_Forwarded_For: 192.0.2.1",
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"forwarded_allow_ips": ["10.0.0.0/8", "::1", "unix"]},
        {"forwarded_allow_ips": ["10.0.0.0/8"], "forwarded_header": "forwarded"},
    ],
)
def test_strangers_are_not_believed(run: Run, mode: Mode, settings: dict[str, Any]) -> None:
    environ = environ_of(run, request("/", *SPOOFED), **settings, **mode)
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["HTTP_HOST"] == "testserver"
    assert "HTTPS" not in environ
    assert environ["SERVER_PORT"] not in {"99", "443"}


@pytest.mark.parametrize("allowed", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_a_trusted_proxy_is_believed(run: Run, mode: Mode, allowed: str) -> None:
    data = request(
        "/",
        "X-Forwarded-For: 192.0.2.1:4000",
        "X-Forwarded-Proto: HTTPS",
        "X-Forwarded-Host: shop.example",
        "Forwarded: for=198.51.100.1;host=evil.example",
    )
    environ = environ_of(run, data, forwarded_allow_ips=[allowed], **mode)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.1", "4000")
    assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")
    assert (environ["HTTP_HOST"], environ["SERVER_PORT"]) == ("shop.example", "443")


def test_forwarded_instead(run: Run) -> None:
    data = request(
        "/", "X-Forwarded-For: 198.51.100.1", 'Forwarded: for="[2001:db8::1]:4000";proto=https'
    )
    settings = {"forwarded_allow_ips": ["127.0.0.1"], "forwarded_header": "forwarded"}
    environ = environ_of(run, data, **settings)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("2001:db8::1", "4000")
    assert environ["wsgi.url_scheme"] == "https"


def test_what_one_request_says_does_not_hold_for_the_next(run: Run, mode: Mode) -> None:
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append((environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ.get("HTTPS")))
        start_response("200 OK", [])
        return [b""]

    async def main() -> None:
        settings = {"forwarded_allow_ips": ["*"], **mode}
        async with served(app, **settings) as server, await server.client() as client:
            for fields in (SPOOFED[:3], (), SPOOFED[:3]):
                await client.get("/", *fields)

    run(main())
    told, untold = ("192.0.2.1", "https", "on"), ("127.0.0.1", "http", None)
    assert seen == [told, untold, told]


def taken(trust: Trust, **headers: str) -> tuple[str, str, str]:
    """The address, the scheme and the host that are believed of a request from 10.0.0.1."""
    environ = {
        "REMOTE_ADDR": "10.0.0.1",
        "REMOTE_PORT": "1",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "inside",
        **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
    }
    trust.apply(environ)
    return environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["HTTP_HOST"]


NOTHING = ("10.0.0.1", "http", "inside")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, NOTHING),
        ({"x_forwarded_for": "192.0.2.1"}, ("192.0.2.1", "http", "inside")),
        # Everybody may have begun the list: only what trusted ones have added counts.
        ({"x_forwarded_for": "6.6.6.6, 192.0.2.1"}, ("192.0.2.1", "http", "inside")),
        ({"x_forwarded_for": "6.6.6.6, 192.0.2.1, 10.0.0.2"}, ("192.0.2.1", "http", "inside")),
        ({"x_forwarded_for": "10.0.0.3, 10.0.0.2"}, ("10.0.0.3", "http", "inside")),
        ({"x_forwarded_for": "192.0.2.1, unknown"}, NOTHING),
        ({"x_forwarded_for": "192.0.2.1, nonsense, 10.0.0.2"}, ("10.0.0.2", "http", "inside")),
        ({"x_forwarded_for": ""}, NOTHING),
        ({"x_forwarded_for": "2001:db8::1"}, ("2001:db8::1", "http", "inside")),
        ({"x_forwarded_for": "[2001:db8::1]:80"}, ("2001:db8::1", "http", "inside")),
        ({"x_forwarded_for": "[2001:db8::1"}, NOTHING),
        ({"x_forwarded_for": "[2001:db8::1]80"}, NOTHING),
        ({"x_forwarded_proto": "https"}, ("10.0.0.1", "https", "inside")),
        ({"x_forwarded_proto": "ftp"}, NOTHING),
        ({"x_forwarded_proto": "http, https"}, ("10.0.0.1", "https", "inside")),
        ({"x_forwarded_host": "shop.example:81"}, ("10.0.0.1", "http", "shop.example:81")),
        ({"x_forwarded_host": "shop.example/evil"}, NOTHING),
        ({"x_forwarded_host": ":81"}, NOTHING),
        ({"x_forwarded_host": "a b"}, NOTHING),
    ],
)
def test_the_old_headers(headers: dict[str, str], expected: tuple[str, str, str]) -> None:
    assert taken(Trust(["10.0.0.0/24"], "x-forwarded"), **headers) == expected


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("for=192.0.2.1", ("192.0.2.1", "http", "inside")),
        ("For=192.0.2.1; Proto=https ;HOST=a", ("192.0.2.1", "https", "a")),
        ('for="[2001:db8::1]:80"', ("2001:db8::1", "http", "inside")),
        ("for=6.6.6.6, for=192.0.2.1, for=10.0.0.2", ("192.0.2.1", "http", "inside")),
        ("for=192.0.2.1;proto=https, for=10.0.0.2", ("192.0.2.1", "https", "inside")),
        ("for=_hidden;proto=https", ("10.0.0.1", "https", "inside")),
        ("for=unknown, for=10.0.0.2", ("10.0.0.2", "http", "inside")),
        ('for="192.0.2.1', NOTHING),
        ('for=6.6.6.6, for="a,for=192.0.2.1', ("192.0.2.1", "http", "inside")),
        ("for 192.0.2.1", NOTHING),
        (";;", NOTHING),
        ("", NOTHING),
    ],
)
def test_the_new_header(forwarded: str, expected: tuple[str, str, str]) -> None:
    assert taken(Trust(["10.0.0.0/24"], "forwarded"), forwarded=forwarded) == expected


def test_the_old_headers_do_not_count_beside_the_new_one() -> None:
    headers = {"x_forwarded_for": "6.6.6.6", "x_forwarded_proto": "https"}
    assert taken(Trust(["*"], "forwarded"), **headers) == NOTHING


def test_the_setting_takes_addresses_and_networks() -> None:
    with pytest.raises(ImproperlyConfigured, match="forwarded_allow_ips"):
        WSGIServer(lambda e, s: [], load_config=False, forwarded_allow_ips=["localhost"])


# test_wsgi_environ


def test_an_environment_for_tests() -> None:
    environ = environ_for()
    assert (environ["REQUEST_METHOD"], environ["PATH_INFO"]) == ("GET", "/")
    assert (environ["wsgi.url_scheme"], environ["SERVER_PROTOCOL"]) == ("http", "HTTP/1.1")
    assert environ["HTTP_HOST"] == "127.0.0.1:8060"
    assert environ["wsgi.input"].read() == b""

    environ = environ_for(
        "/a%20b?c=d", "POST", [("X-A", "1"), ("x-a", "2"), ("Host", "b")], {"mine": 1}, True
    )
    assert environ["PATH_INFO"] == "/a b"
    assert environ["QUERY_STRING"] == "c=d"
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["HTTP_X_A"] == "1, 2"
    assert environ["HTTP_HOST"] == "b"
    assert environ["mine"] == 1
    assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")


def test_an_environment_for_tests_with_a_body() -> None:
    environ = environ_for("/", "POST", {"Content-Type": "a/b"}, body=b"body")
    assert environ["CONTENT_LENGTH"] == "4"
    assert environ["CONTENT_TYPE"] == "a/b"
    assert environ["wsgi.input"].read() == b"body"
    assert environ_for(extra={"wsgi.input": 1})["wsgi.input"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": "a b"},
        {"path": "nonsense"},
        {"method": "GE T"},
        {"headers": [("X", "a\r\nY: b")]},
        {"headers": [("Host", "a b")]},
        {"headers": [("Content-Length", "5")]},
        {"headers": [("Content-Length", "x")]},
    ],
)
def test_no_environment_for_what_is_no_request(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        environ_for(**arguments)


def test_pytest_does_not_collect_it() -> None:
    assert environ_for.__test__ is False  # type: ignore[attr-defined]


def test_it_makes_what_a_server_makes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    fields = [("Host", "testserver"), ("X-A", "b"), ("Content-Length", "4")]
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [("Content-Type", "a/b")])
        return [environ["wsgi.input"].read(4)]

    data = request("/a?b", "X-A: b", method="PUT", body=b"body")
    assert asked(run, app, data).body == b"body"
    made = environ_for("/a?b", "PUT", fields, body=b"body")
    different = {"wsgi.input", "wsgi.errors", "wsgi.early_hints", "SERVER_PORT", "REMOTE_PORT"}
    assert seen[0].keys() == made.keys()
    for name in made.keys() - different:
        assert made[name] == seen[0][name], name

    said: list[Any] = []
    checked = validator(app)(made, lambda status, headers, exc_info=None: said.append)
    assert list(checked) == [b"body"]
    checked.close()


def test_the_wrapper_of_files_needs_no_server() -> None:
    file = io.BytesIO(b"0123456789")
    wrapper = FileWrapper(file, 4)
    assert list(wrapper) == [b"0123", b"4567", b"89"]
    wrapper.close()
    assert file.closed

    class Bare:
        def read(self, size: int) -> bytes:
            return b""

    assert list(FileWrapper(Bare())) == []
    assert not hasattr(FileWrapper(Bare()), "close")
    assert environ_for()["wsgi.file_wrapper"] is FileWrapper


def test_chunks_of_the_client_are_as_they_should_be() -> None:
    assert chunked(b"ab", b"c") == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
