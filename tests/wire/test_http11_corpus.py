"""The corpus: every case whole, byte by byte, and behind a good message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .http11_corpus.engine import by_byte, cut, expected, outcomes, quick_and_careful, restricted
from .http11_corpus.load import Case, cases

GOOD_REQUEST = b"POST /good HTTP/1.1\r\nHost: good\r\nContent-Length: 4\r\n\r\ngood"
GOOD_RESPONSE = b"HTTP/1.1 200 Good\r\nContent-Length: 4\r\n\r\ngood"


def sections(found: list[Case]) -> dict[str, list[Case]]:
    """The cases by RFC and chapter: a test each of 300 cases would cost more than the cases."""
    by_chapter: dict[str, list[Case]] = {}
    for case in found:
        by_chapter.setdefault(case.rfc.partition(".")[0], []).append(case)
    return by_chapter


def over(found: list[Case]) -> pytest.MarkDecorator:
    chapters = sections(found)
    return pytest.mark.parametrize("chapter", chapters.values(), ids=list(chapters))


def each(chapter: list[Case], test: Callable[[Case], None]) -> None:
    """Call ``test`` for each case, and fail for all that fail."""
    failures = []
    for case in chapter:
        try:
            test(case)
        except Exception as error:
            error.add_note(f"the case: {case}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(chapter)} cases", failures)


every_request = over(cases("request"))
every_response = over(cases("response"))
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
def test_request(chapter: list[Case], way: str) -> None:
    def test(case: Case) -> None:
        check(case, [case.send], way)
        check(case, by_byte(case.send), way)
        check(case, [case.send], way, behind=GOOD_REQUEST)

    each(chapter, test)


@every_request
def test_request_in_one_packet_with_a_good_one(chapter: list[Case]) -> None:
    def test(case: Case) -> None:
        wanted = expected(case)
        first, *seen = outcomes([GOOD_REQUEST + case.send], end=case.end)
        assert first["target"] == "/good"
        assert first["body"] == "good"
        assert restricted(seen, wanted) == wanted

    each(chapter, test)


@over([case for case in cases() if len(case.send) < 1000])
def test_cut_in_two_anywhere(chapter: list[Case]) -> None:
    def test(case: Case) -> None:
        for place in range(1, len(case.send)):
            check(case, cut(case.send, [place]))

    each(chapter, test)


@every_request
def test_a_request_is_read_the_same_when_it_comes_again(chapter: list[Case]) -> None:
    def test(case: Case) -> None:
        heads = quick_and_careful()["quick"]
        first = outcomes([case.send], heads=heads, end=case.end)
        assert outcomes([case.send], heads=heads, end=case.end) == first
        assert outcomes([GOOD_REQUEST + case.send], heads=heads, end=case.end)[1:] == first

    each(chapter, test)


@every_response
def test_response(chapter: list[Case]) -> None:
    def test(case: Case) -> None:
        check(case, [case.send])
        check(case, by_byte(case.send))
        if case.send:
            check(case, [case.send], behind=GOOD_RESPONSE)
            check(case, by_byte(case.send), behind=GOOD_RESPONSE)

    each(chapter, test)


def test_the_corpus_is_large_enough_and_its_names_are_unique() -> None:
    everything = cases()
    assert len(everything) >= 150
    names = [(case.side, case.name) for case in everything]
    assert len(names) == len(set(names))
