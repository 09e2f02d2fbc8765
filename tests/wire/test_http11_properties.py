"""What is true of all messages: any split gives the same, and nobody reads them otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pulsar.errors import InvalidMessage
from pulsar.wire.http11 import last_chunk, render_chunk, render_request, render_response

from .http11_corpus.engine import (
    SMALL,
    by_byte,
    check_invariants,
    cut,
    outcomes,
    second_opinion,
)
from .http11_corpus.load import cases, pieces

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SENT = [case.send for case in cases() if len(case.send) < 2000]
places = st.lists(st.integers(0, 400), max_size=6)

soup = st.lists(st.sampled_from(pieces()) | st.binary(max_size=3), max_size=24).map(b"".join)


@settings(relaxed, max_examples=200)
@given(data=soup, at=places)
@example(data=b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 45 + b"\r\r\n\r\n", at=[70, 71, 72])
@example(data=b"GET /" + b"a" * 49 + b" HTTP/1.1\r\nHost: a\r\n\r\n", at=[63, 64, 65])
@example(data=b"GET /" + b"a" * 50 + b" HTTP/1.1\r\r", at=[63, 64, 65])
def test_any_split_of_anything_gives_the_same(data: bytes, at: list[int]) -> None:
    check_invariants(data, at, SMALL)


@settings(relaxed, max_examples=150)
@given(data=st.sampled_from(SENT), at=places, where=st.integers(0, 300), new=st.binary(max_size=2))
def test_any_split_of_a_changed_case_gives_the_same(
    data: bytes, at: list[int], where: int, new: bytes
) -> None:
    check_invariants(data[:where] + new + data[where + 1 :], at)


@pytest.mark.parametrize("number", range(0, len(SENT), 25))
def test_any_split_of_a_case_gives_the_same(number: int) -> None:
    for data in SENT[number : number + 25]:
        check_invariants(data, [len(data) // 2])


def test_the_second_opinion_is_heard() -> None:
    [one] = second_opinion(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    assert (one["method"], one["target"], one["body"]) == ("POST", "/x", "hi")


token = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=20)
legal = [chr(code) for code in (9, *range(32, 127), *range(128, 256))]
value = st.text(legal, max_size=20).map(lambda text: text.strip(" \t"))
other_fields = st.lists(st.tuples(token.map("x{}".format), value), max_size=8)


@settings(relaxed, max_examples=150)
@given(
    method=token.filter(lambda name: name != "CONNECT"),
    path=st.text("/abc%.;&=@:~!$'()*+,-_\"<>[]{}|\\^`", max_size=30),
    query=st.text("/?abc%.;&=@:", max_size=20),
    fields=other_fields,
    body=st.binary(max_size=300) | st.lists(st.binary(min_size=1, max_size=40)),
    trailers=other_fields,
    at=places,
)
def test_a_request_that_was_made_here_is_read_as_it_was_made(
    method: str,
    path: str,
    query: str,
    fields: list[tuple[str, str]],
    body: bytes | list[bytes],
    trailers: list[tuple[str, str]],
    at: list[int],
) -> None:
    if isinstance(body, bytes):
        headers = [("host", "a"), *fields, ("content-length", str(len(body)))]
        content, trailers = body, []
    else:
        headers = [("host", "a"), *fields, ("transfer-encoding", "chunked")]
        content = b"".join([*map(render_chunk, body), last_chunk(trailers)])
        body = b"".join(body)
    wanted: dict[str, Any] = {
        "method": method,
        "target": f"/{path}?{query}",
        "headers": [[name.lower(), value] for name, value in headers],
        "body": body.decode("latin-1"),
        "trailers": [[name.lower(), value] for name, value in trailers],
    }
    data = 2 * (render_request(method, wanted["target"], headers) + content)
    for packets in ([data], cut(data, at), by_byte(data)):
        seen = outcomes(packets)
        assert [{key: one[key] for key in wanted} for one in seen] == [wanted, wanted]


@settings(relaxed, max_examples=200)
@given(reason=st.text(max_size=8), name=token | st.text(max_size=8), text=st.text(max_size=12))
@example(reason="OK", name="X", text="a\r\nSet-Cookie: b")
@example(reason="OK\r\nX: y", name="X", text="a")
@example(reason="OK", name="X\n", text="a")
@example(reason="OK", name="X", text="a\n")
@example(reason="OK", name="X", text="a\x00")
@example(reason="OK", name="X", text="a\u010a")
def test_nothing_injects_a_header(reason: str, name: str, text: str) -> None:
    try:
        head = render_response(f"200 {reason}", [(name, text), ("Content-Length", "0")])
    except InvalidMessage:
        return
    [one] = outcomes([head], methods=["HEAD"])
    assert one["reason"] == reason
    assert one["headers"] == [[name.lower(), text.strip(" \t")], ["content-length", "0"]]
