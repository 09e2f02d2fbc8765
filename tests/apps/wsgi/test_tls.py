"""HTTPS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pulsar.tls import client_context
from tests.apps.wsgi.client import TlsClient, request
from tests.apps.wsgi.serving import served
from tests.apps.wsgi.test_http import echo, later, streamed
from tests.support.certs import Certificates

Run = Callable[..., Any]
Mode = dict[str, Any]
Environ = dict[str, Any]


@pytest.fixture
def tls(certs: Certificates, mode: Mode) -> dict[str, Any]:
    return {"cert_file": str(certs.server_cert), "key_file": str(certs.server_key), **mode}


def test_what_the_application_is_told(run: Run, tls: dict[str, Any], certs: Certificates) -> None:
    seen = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [])
        return [b"x"]

    async def main() -> None:
        async with (
            served(app, **tls) as server,
            await TlsClient.connect(server.address, client_context(certs.ca)) as client,
        ):
            await client.send(request("/", "X-Forwarded-Proto: http"))
            assert (await client.answer()).body == b"x"

    run(main())
    [environ] = seen
    assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")
    assert environ["REMOTE_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("app", [echo, streamed, later])
def test_requests(run: Run, tls: dict[str, Any], certs: Certificates, app: Any) -> None:
    async def main() -> None:
        async with (
            served(app, **tls) as server,
            await TlsClient.connect(server.address, client_context(certs.ca)) as client,
        ):
            for size in (0, 10, 100_000, 3_000_000):
                sending = asyncio.ensure_future(
                    client.send(request("/", method="POST", body=b"x" * size) * 2)
                )
                for _ in range(2):
                    assert (await client.answer()).body == b"/ " + b"x" * size
                await sending
            await client.send(request("/last", "Connection: close"))
            answer = await client.answer()
            assert (answer.body, answer.closes) == (b"/last ", True)
            assert await client.rest() == b""

    run(main())


def test_a_refusal(run: Run, tls: dict[str, Any], certs: Certificates) -> None:
    async def main() -> None:
        async with (
            served(echo, max_body=10, **tls) as server,
            await TlsClient.connect(server.address, client_context(certs.ca)) as client,
        ):
            await client.send(request("/", method="POST", body=b"x" * 100_000))
            answer = await client.answer()
            assert (answer.status, answer.closes) == (413, True)

    run(main())


def test_plain_http_to_a_tls_port_hurts_nobody(
    run: Run, tls: dict[str, Any], certs: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with served(echo, **tls) as server, await server.client() as plain:
            await plain.send(request())
            try:
                await plain.rest()
            except ConnectionResetError:
                pass
            context = client_context(certs.ca)
            async with await TlsClient.connect(server.address, context) as client:
                await client.send(request())
                assert (await client.answer()).body == b"/ "

    run(main(), allow=ssl.SSLError)
    assert "Traceback" not in caplog.text


def test_alpn(run: Run, tls: dict[str, Any], certs: Certificates) -> None:
    async def main() -> None:
        context = client_context(certs.ca)
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with (
            served(echo, **tls) as server,
            await TlsClient.connect(server.address, context) as client,
        ):
            assert client.ssl_object.selected_alpn_protocol() == "http/1.1"
            await client.send(request())
            assert (await client.answer()).body == b"/ "

    run(main())
