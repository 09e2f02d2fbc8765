"""The corpus: every case whole, byte by byte, and behind a good message."""

from __future__ import annotations

import pytest

from .http11_corpus.engine import by_byte, cut, expected, outcomes, quick_and_careful, restricted
from .http11_corpus.load import Case, cases

GOOD_REQUEST = b"POST /good HTTP/1.1\r\nHost: good\r\nContent-Length: 4\r\n\r\ngood"
GOOD_RESPONSE = b"HTTP/1.1 200 Good\r\nContent-Length: 4\r\n\r\ngood"

every_request = pytest.mark.parametrize("case", cases("request"), ids=str)
every_response = pytest.mark.parametrize("case", cases("response"), ids=str)
both_ways = pytest.mark.parametrize("way", ["quick", "careful"])


def check(case: Case, pieces: list[bytes], way: str = "quick", *, behind: bytes = b"") -> None:
    wanted = expected(case)
    seen = outcomes(
        [behind, *pieces] if behind else pieces,
        heads=quick_and_careful()[way],
        methods=None if case.side == "request" else ["GET"] * bool(behind) + [case.to],
        end=case.end,
    )
    if behind:
        first = seen.pop(0)
        assert first["body"] == "good"
    assert restricted(seen, wanted) == wanted


@both_ways
@every_request
def test_request(case: Case, way: str) -> None:
    check(case, [case.send], way)
    check(case, by_byte(case.send), way)
    check(case, [case.send], way, behind=GOOD_REQUEST)


@every_request
def test_request_in_one_packet_with_a_good_one(case: Case) -> None:
    wanted = expected(case)
    first, *seen = outcomes([GOOD_REQUEST + case.send], end=case.end)
    assert first["target"] == "/good"
    assert first["body"] == "good"
    assert restricted(seen, wanted) == wanted


@pytest.mark.parametrize("case", [case for case in cases() if len(case.send) < 1000], ids=str)
def test_cut_in_two_anywhere(case: Case) -> None:
    for place in range(1, len(case.send)):
        check(case, cut(case.send, [place]))


@every_request
def test_a_request_is_read_the_same_when_it_comes_again(case: Case) -> None:
    heads = quick_and_careful()["quick"]
    first = outcomes([case.send], heads=heads, end=case.end)
    assert outcomes([case.send], heads=heads, end=case.end) == first
    assert outcomes([GOOD_REQUEST + case.send], heads=heads, end=case.end)[1:] == first


@every_response
def test_response(case: Case) -> None:
    check(case, [case.send])
    check(case, by_byte(case.send))
    if case.send:
        check(case, [case.send], behind=GOOD_RESPONSE)
        check(case, by_byte(case.send), behind=GOOD_RESPONSE)


def test_the_corpus_is_large_enough_and_its_names_are_unique() -> None:
    everything = cases()
    assert len(everything) >= 150
    names = [(case.side, case.name) for case in everything]
    assert len(names) == len(set(names))
