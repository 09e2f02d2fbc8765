"""What our engine makes of bytes, in the words of the corpus."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httptools
import pytest

from pulsar.wire.http11 import (
    IncompleteMessage,
    Limits,
    MessageRefused,
    RequestHeads,
    RequestParser,
    ResponseParser,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .load import Case

Parser = RequestParser | ResponseParser


def quick_and_careful(limits: Limits | None = None) -> dict[str, RequestHeads]:
    """One with every short cut, and one whose every head is read line by line."""
    careful = RequestHeads(limits)
    careful._longest = 0
    return {"quick": RequestHeads(limits), "careful": careful}


def outcomes(
    pieces: Iterable[bytes],
    *,
    heads: RequestHeads | None = None,
    methods: Iterable[str] | None = None,
    end: bool = True,
) -> list[Any]:
    """What is read from ``pieces``: messages, then perhaps a status or "incomplete".

    ``methods``: of the requests that are answered; None: these are requests.
    """
    heads = heads or RequestHeads()
    answered = iter(methods or ())

    def new() -> Parser:
        if methods is None:
            return RequestParser(heads)
        return ResponseParser(next(answered, "GET"))

    seen: list[Any] = []
    parser: Parser = new()
    try:
        for piece in pieces:
            tail = piece
            while tail:
                tail = parser.feed(tail)
                if parser.complete:
                    seen.append(described(parser))
                    parser = new()
                else:
                    assert tail == b""
        if end:
            if parser.started or not seen:
                parser.eof()
            if parser.complete:
                seen.append(described(parser))
        elif parser.started:
            seen.append("unfinished")
    except MessageRefused as error:
        seen.append(error.status)
        assert_closed(parser, error)
    except IncompleteMessage:
        seen.append("incomplete")
    return seen


def assert_closed(parser: Parser, error: MessageRefused) -> None:
    """Nothing behind an error is read, whatever it is."""
    for more in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\r\n", b""):
        with pytest.raises(MessageRefused) as again:
            parser.feed(more)
        assert (again.value.status, again.value.reason) == (error.status, error.reason)
    assert parser.read() == b""
    assert not parser.complete


def described(parser: Parser) -> dict[str, Any]:
    """A message that has been read, with all that the corpus can say of it."""
    described: dict[str, Any]
    if isinstance(parser, ResponseParser):
        response = parser.response
        assert response is not None
        head: Any = response
        described = {"status": response.status, "reason": response.reason}
    else:
        request = parser.request
        assert request is not None
        head = request
        described = {
            "method": request.method,
            "target": request.target,
            "path": request.path,
            "query": request.query,
            "authority": request.authority or "",
            "path_info": request.environ["PATH_INFO"],
            "http_host": request.environ.get("HTTP_HOST"),
            "environ": request.environ,
            "upgrade": request.upgrade,
            "expect_continue": request.expect_continue,
            "size": request.size,
        }
    return {
        **described,
        "version": f"1.{head.minor}",
        "headers": [list(pair) for pair in head.fields],
        "keep_alive": head.keep_alive,
        "body": parser.read().decode("latin-1"),
        "trailers": [list(pair) for pair in parser.trailers],
    }


def expected(case: Case) -> list[Any]:
    """What ``outcomes`` should be, as far as the case says it."""
    wanted: list[Any] = list(case.accept)
    if case.refuse is not None:
        wanted.append(case.refuse)
    if case.incomplete:
        wanted.append("incomplete")
    return wanted


def restricted(seen: list[Any], wanted: list[Any]) -> list[Any]:
    """``seen`` without what ``wanted`` says nothing about."""
    if len(seen) != len(wanted):
        return seen
    return [
        {key: part(have[key], want[key]) for key in want}
        if isinstance(have, dict) and isinstance(want, dict)
        else have
        for have, want in zip(seen, wanted, strict=True)
    ]


def part(have: Any, want: Any) -> Any:
    return {key: have.get(key) for key in want} if isinstance(want, dict) else have


def check_invariants(data: bytes, places: list[int], limits: Limits | None = None) -> None:
    """What is true of any bytes, from clients or from servers.

    ``places``: where to cut the bytes into pieces.
    """
    ways = quick_and_careful(limits)
    seen = outcomes([data], heads=ways["quick"])
    assert outcomes([data], heads=ways["quick"]) == seen
    assert outcomes([data], heads=ways["careful"]) == seen
    for pieces in (cut(data, places), by_byte(data)):
        assert outcomes(pieces, heads=ways["quick"]) == seen
        assert outcomes(pieces, heads=ways["careful"]) == seen
    for ours, theirs in zip(seen, second_opinion(data), strict=False):
        if isinstance(ours, dict):
            assert {key: ours[key] for key in theirs} == theirs
    for methods in ([], ["HEAD"]):
        responses = outcomes([data], methods=methods)
        assert outcomes(cut(data, places), methods=methods) == responses
        assert outcomes(by_byte(data), methods=methods) == responses


# Small enough for short inputs to reach.
SMALL = Limits(start_line=64, field=48, fields=6, head=160, body=200, chunk_extensions=20)


class SecondOpinion:
    """What llhttp makes of a stream of requests, as far as it goes."""

    def __init__(self) -> None:
        self.complete: list[dict[str, Any]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.on_message_begin()

    def on_message_begin(self) -> None:
        self.target = b""
        self.body = b""
        self.headers: list[list[str]] = []
        self.trailers: list[list[str]] = []
        self.fields = self.headers

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        text = value.decode("latin-1").strip(" \t")
        self.fields.append([name.decode("latin-1").lower(), text])

    def on_headers_complete(self) -> None:
        self.fields = self.trailers

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete.append(
            {
                "method": self.parser.get_method().decode(),
                "target": self.target.decode("latin-1"),
                "headers": self.headers,
                "body": self.body.decode("latin-1"),
                "trailers": self.trailers,
                "version": self.parser.get_http_version(),
            }
        )


def second_opinion(data: bytes) -> list[dict[str, Any]]:
    """The requests that llhttp reads in ``data``, up to an error or an Upgrade."""
    opinion = SecondOpinion()
    try:
        opinion.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        opinion.complete.pop()  # it does not look for the body
    except httptools.HttpParserError:
        pass
    return opinion.complete


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """``data`` in pieces."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def by_byte(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]
