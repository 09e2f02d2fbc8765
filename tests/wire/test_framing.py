"""The framers: what they cut, what they refuse, and that splits do not matter."""

from __future__ import annotations

import doctest
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pulsar import framing
from pulsar.errors import ProtocolError, PulsarException
from pulsar.framing import (
    DelimiterFramer,
    FrameTooLarge,
    IncompleteFrame,
    InvalidMessage,
    LengthFramer,
    LineFramer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pulsar.framing import Framer

FRAMERS: dict[str, Callable[[int], Framer]] = {
    "lines": lambda cap: LineFramer(max_size=cap),
    "crlf lines": lambda cap: LineFramer(ending=b"\r\n", max_size=cap),
    "one byte": lambda cap: DelimiterFramer(b"\0", max_size=cap),
    "four bytes": lambda cap: DelimiterFramer(b"\r\n\r\n", max_size=cap),
    "overlapping": lambda cap: DelimiterFramer(b"aba", max_size=cap),
    "length 1": lambda cap: LengthFramer(1, max_size=cap),
    "length 2, little": lambda cap: LengthFramer(2, "little", max_size=cap),
    "length 4": lambda cap: LengthFramer(4, max_size=cap),
    "length 4, itself included": lambda cap: LengthFramer(4, "big", True, max_size=cap),
    "length 8": lambda cap: LengthFramer(8, max_size=cap),
}

every_framer = pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)

relaxed = settings(deadline=None)  # the machine may be busy

# Bytes in which delimiters, pieces of them and lengths are frequent.
soup = st.lists(st.sampled_from([*(bytes([i]) for i in b"ab\r\n\0\1\2\5"), b"aba", b"\r\n"]))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def fed(framer: Framer, chunks: list[bytes]) -> list[object]:
    """What comes out: messages, then the type of an error or the bytes left."""
    seen: list[object] = []
    try:
        for chunk in chunks:
            for message in framer.feed(chunk):
                seen.append(message)  # noqa: PERF402  (those before an error count)
        framer.eof()
    except ProtocolError as error:
        seen.append(type(error))
    return seen


def taken(framer: Framer, chunks: list[bytes], view: bool = False) -> list[object]:
    """The same, one message at a time."""
    seen: list[object] = []
    try:
        for chunk in chunks:
            tail: Any = memoryview(chunk) if view else chunk
            while tail:
                message, tail = framer.split(tail)
                if message is not None:
                    seen.append(message)
        framer.eof()
    except ProtocolError as error:
        seen.append(type(error))
    return seen


# -- any split gives the same


@every_framer
@relaxed
@given(parts=soup, cuts=st.lists(st.integers(0, 60), max_size=8))
@example(parts=[b"12345\r\n\r\n", b"1234"], cuts=[6, 7, 8])
@example(parts=[b"12345aba1"], cuts=[6])
@example(parts=[b"12345\r", b"\r\n"], cuts=[6])
def test_any_split_gives_the_same(
    make: Callable[[int], Framer], parts: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(parts)
    whole = fed(make(5), [data])
    by_byte = [data[i : i + 1] for i in range(len(data))]
    cut = pieces(data, cuts)
    assert fed(make(5), by_byte) == whole
    assert fed(make(5), cut) == whole
    assert taken(make(5), [data]) == whole
    assert taken(make(5), by_byte) == whole
    assert taken(make(5), cut) == whole
    assert taken(make(5), cut, view=True) == whole


@every_framer
@relaxed
@given(messages=st.lists(st.binary(max_size=40)), cuts=st.lists(st.integers(0, 300), max_size=6))
def test_encode_then_feed_gives_the_messages(
    make: Callable[[int], Framer], messages: list[bytes], cuts: list[int]
) -> None:
    sender, receiver = make(32), make(32)
    stream, accepted = b"", []
    for message in messages:
        try:
            stream += sender.encode(message)
        except InvalidMessage:
            continue
        accepted.append(message)
    assert fed(receiver, pieces(stream, cuts)) == accepted
    assert receiver.pending == 0


@every_framer
def test_whatever_holds_bytes_is_accepted(make: Callable[[int], Framer]) -> None:
    framer = make(5)
    frame = framer.encode(b"hello")
    for kind in (bytes, bytearray, memoryview):
        assert framer.encode(kind(b"hello")) == frame
        (message,) = framer.feed(kind(frame))
        assert message == b"hello"
        assert type(message) is bytes
        first, tail = framer.split(kind(frame + b"more"))
        assert first == b"hello"
        assert type(first) is bytes
        assert tail == b"more"
        assert type(tail) is kind


@pytest.mark.parametrize("size", [511, 512, 2048, 5000])
def test_messages_of_any_size_are_found_in_a_view(size: int) -> None:
    view = memoryview(b"x" * size + b"\r\n" + b"y" * size + b"\r\nrest")
    framer = DelimiterFramer(b"\r\n")
    first, tail = framer.split(view)
    second, tail = framer.split(tail)
    assert (first, second, bytes(tail)) == (b"x" * size, b"y" * size, b"rest")


@every_framer
def test_feed_does_not_keep_the_callers_buffer(make: Callable[[int], Framer]) -> None:
    framer = make(5)
    frame = bytearray(framer.encode(b"hello"))
    first, second = frame[:3], frame[3:]
    assert list(framer.feed(memoryview(first))) == []
    first[:] = b"???"
    assert list(framer.feed(memoryview(second))) == [b"hello"]
    assert framer.split(memoryview(frame)[:3])[0] is None
    frame[:3] = b""  # resizing fails while somebody holds a view
    assert framer.split(bytes(frame)) == (b"hello", b"")


# -- lines


def test_lines_end_with_lf_or_crlf() -> None:
    assert list(LineFramer().feed(b"one\ntwo\r\n\n\r\nthr\ree\r\r\nrest")) == [
        b"one",
        b"two",
        b"",
        b"",
        b"thr\ree\r",
    ]


def test_a_cr_at_the_cap_may_be_half_an_ending() -> None:
    framer = LineFramer(max_size=5)
    assert list(framer.feed(b"hello\r")) == []
    assert list(framer.feed(b"\n")) == [b"hello"]
    with pytest.raises(FrameTooLarge):
        framer.feed(b"hello!\n")


def test_lines_are_encoded_with_the_chosen_ending() -> None:
    assert LineFramer().encode(b"x") == b"x\n"
    assert LineFramer(ending=b"\r\n").encode(b"x") == b"x\r\n"
    assert LineFramer().encode(b"a\rb") == b"a\rb\n"


@pytest.mark.parametrize("message", [b"\n", b"a\nb", b"a\r", b"a\r\n"])
def test_what_is_not_one_line_is_not_encoded(message: bytes) -> None:
    with pytest.raises(InvalidMessage, match="a line cannot contain LF, nor end with CR"):
        LineFramer().encode(message)


# -- delimiters


def test_a_delimiter_may_come_in_pieces() -> None:
    framer = DelimiterFramer(b"\r\n\r\n")
    assert list(framer.feed(b"one\r\n")) == []
    assert framer.pending == 5
    assert list(framer.feed(b"\r")) == []
    assert list(framer.feed(b"\ntwo\r\n\r\nthree")) == [b"one", b"two"]
    assert framer.pending == 5


@pytest.mark.parametrize("message", [b"aba", b"xabay", b"ab"])
def test_what_the_delimiter_would_cut_is_not_encoded(message: bytes) -> None:
    # b"ab" + b"aba" is read as b"" and the beginning of another message.
    with pytest.raises(InvalidMessage, match="cannot contain the delimiter"):
        DelimiterFramer(b"aba").encode(message)


# -- lengths


@pytest.mark.parametrize(
    ("framer", "frame"),
    [
        (LengthFramer(), b"\0\0\0\2hi"),
        (LengthFramer(1), b"\2hi"),
        (LengthFramer(2, "little"), b"\2\0hi"),
        (LengthFramer(8, "big", True), b"\0\0\0\0\0\0\0\x0ahi"),
        (LengthFramer(size=2, byteorder="big", includes_header=True), b"\0\4hi"),
    ],
)
def test_length_headers(framer: LengthFramer, frame: bytes) -> None:
    assert framer.encode(b"hi") == frame
    assert list(framer.feed(frame * 2)) == [b"hi", b"hi"]


def test_a_length_below_its_own_header_is_refused() -> None:
    framer = LengthFramer(2, includes_header=True)
    assert list(framer.feed(b"\0\2")) == [b""]
    with pytest.raises(ProtocolError, match=r"the length 1, .* less than the 2 bytes"):
        framer.feed(b"\0\1")


def test_a_message_that_the_header_cannot_express_is_not_encoded() -> None:
    assert LengthFramer(1).encode(bytes(255))[0] == 255
    with pytest.raises(InvalidMessage, match="256 bytes is over the limit of 255"):
        LengthFramer(1).encode(bytes(256))
    framer = LengthFramer(1, includes_header=True)
    assert framer.encode(bytes(254))[0] == 255
    with pytest.raises(InvalidMessage, match="255 bytes is over the limit of 254"):
        framer.encode(bytes(255))


def test_a_huge_length_is_refused_when_its_header_is_there() -> None:
    framer = LengthFramer(8)
    assert list(framer.feed(b"\xff" * 7)) == []
    with pytest.raises(FrameTooLarge):
        framer.feed(b"\xff")


# -- the cap


@every_framer
def test_messages_up_to_the_cap_pass_and_no_larger_one(make: Callable[[int], Framer]) -> None:
    assert list(make(5).feed(make(9).encode(b"12345"))) == [b"12345"]
    with pytest.raises(InvalidMessage, match="6 bytes is over the limit of 5"):
        make(5).encode(b"123456")
    with pytest.raises(FrameTooLarge):
        make(5).feed(make(9).encode(b"123456"))
    with pytest.raises(FrameTooLarge):
        make(5).split(make(9).encode(b"123456"))


@every_framer
def test_messages_before_the_refused_one_are_delivered(make: Callable[[int], Framer]) -> None:
    good, bad = make(9).encode(b"good"), make(9).encode(b"123456")
    framer = make(5)
    messages = framer.feed(good + good + bad + good)
    assert next(messages) == b"good"
    assert next(messages) == b"good"
    with pytest.raises(FrameTooLarge):
        next(messages)

    framer = make(5)
    message, tail = framer.split(good + bad)
    assert message == b"good"
    with pytest.raises(FrameTooLarge):
        framer.split(tail)


@every_framer
def test_after_an_error_nothing_is_taken_any_more(make: Callable[[int], Framer]) -> None:
    framer = make(5)
    messages = framer.feed(make(9).encode(b"good") + make(9).encode(b"123456"))
    assert framer.pending == 0
    assert repr(framer).endswith("failed>")
    errors = []
    for call in (
        lambda: framer.feed(b"more"),
        lambda: framer.split(b"more"),
        framer.eof,
        lambda: list(messages),
    ):
        with pytest.raises(FrameTooLarge) as caught:
            call()
        errors.append(str(caught.value))
    assert len(set(errors)) == 1
    assert framer.pending == 0


@every_framer
def test_an_endless_frame_is_refused_before_more_than_the_cap_is_held(
    make: Callable[[int], Framer],
) -> None:
    framer, endless = make(100), make(200).encode(b"x" * 101)[:101] + b"x" * 20
    with pytest.raises(FrameTooLarge):
        for byte in endless:
            assert framer.pending <= 100 + 8
            list(framer.feed(bytes([byte])))
    assert framer.pending == 0


def test_the_error_names_framer_and_cap() -> None:
    with pytest.raises(FrameTooLarge, match=r"^LineFramer of at most 3 bytes: "):
        LineFramer(max_size=3).feed(b"12345")
    with pytest.raises(FrameTooLarge, match=r"^DelimiterFramer\(b'ab'\) of at most 3 bytes: "):
        DelimiterFramer(b"ab", max_size=3).feed(b"12345")
    with pytest.raises(FrameTooLarge, match=r"^LengthFramer\(4\) of at most 3 bytes: "):
        LengthFramer(max_size=3).feed(b"\0\0\0\4")


def test_default_caps() -> None:
    assert LineFramer().max_size == DelimiterFramer(b";").max_size == 64 * 1024
    assert LengthFramer().max_size == 1024 * 1024


# -- the end of the stream


@every_framer
def test_the_end_inside_a_frame(make: Callable[[int], Framer]) -> None:
    framer = make(5)
    framer.eof()
    list(framer.feed(framer.encode(b"hello")))
    framer.eof()
    list(framer.feed(framer.encode(b"hello")[:-1]))
    with pytest.raises(IncompleteFrame, match=f"of which {framer.pending} bytes had come"):
        framer.eof()


# -- what it looks like, and wrong arguments


def test_repr() -> None:
    framer = LineFramer()
    list(framer.feed(b"abc"))
    assert repr(framer) == "<LineFramer of at most 65536 bytes, 3 bytes pending>"
    assert repr(DelimiterFramer(b"\0")) == (
        "<DelimiterFramer(b'\\x00') of at most 65536 bytes, 0 bytes pending>"
    )
    assert repr(LengthFramer(2)) == "<LengthFramer(2) of at most 1048576 bytes, 0 bytes pending>"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LineFramer(max_size=0), "max_size is 0"),
        (lambda: LineFramer(ending=b"\r"), "ending is b'\\\\r'"),
        (lambda: DelimiterFramer(b""), "delimiter is empty"),
        (lambda: LengthFramer(3), "size is 3: a length header has 1, 2, 4 or 8 bytes"),
        (lambda: LengthFramer(4, "network"), "byteorder is 'network'"),
    ],
)
def test_wrong_arguments(make: Callable[[], Framer], message: str) -> None:
    with pytest.raises(PulsarException, match=message):
        make()


def test_the_front_door_re_exports() -> None:
    for name in framing.__all__:
        assert getattr(framing, name).__name__ == name


# -- the page about it

PAGE = Path(__file__).parents[2] / "docs" / "framing.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}[^\n]*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_sessions_on_the_page() -> None:
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner()
    for session in blocks("pycon"):
        test = doctest.DocTestParser().get_doctest(session, names, PAGE.name, None, None)
        # get_doctest copies the names: what one session defined is for the next one, too.
        runner.run(test, clear_globs=False)
        names.update(test.globs)
    assert runner.tries > 10
    assert runner.failures == 0


def test_the_consumers_on_the_page() -> None:
    names: dict[str, Any] = {"__name__": "the page"}
    for code in blocks("python"):
        if "\nclass " in code:  # the rest calls servers, and is tested with all the pages
            exec(code, names)
    sent: list[bytes] = []

    def consumer(name: str) -> Any:
        made = names[name]()
        made.write = sent.append
        made.connection_made(None)
        return made

    shout = consumer("Shout")
    shout.data_received(b"one\r\ntw")
    with pytest.raises(FrameTooLarge):
        shout.data_received(b"o\n" + bytes(1002))
    assert sent == [b"ONE\n", b"TWO\n"]

    sent.clear()
    echo = consumer("Echo")
    assert echo.data_received(b"one\r\n") == b""
    assert echo.data_received(b"\r\ntwo") == b"two"
    assert echo.on_finished.fired()
    assert sent == [b"one\r\n\r\n"]


# -- linear time


def seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def one_frame_in_small_pieces(make: Callable[[int], Framer], size: int) -> None:
    framer = make(size)
    frame = make(size).encode(b"x" * size)
    messages: list[bytes] = []
    for start in range(0, len(frame), 64):
        messages += framer.feed(frame[start : start + 64])
    assert len(messages) == 1


def many_frames_at_once(make: Callable[[int], Framer], size: int) -> None:
    assert len(list(make(8).feed(make(8).encode(b"x") * size))) == size


def many_frames_one_by_one(make: Callable[[int], Framer], size: int) -> None:
    framer, tail, count = make(8), memoryview(make(8).encode(b"x") * size), 0
    while tail:
        _, tail = framer.split(tail)
        count += 1
    assert count == size


@pytest.mark.parametrize("make", [FRAMERS["lines"], FRAMERS["four bytes"], FRAMERS["length 4"]])
@pytest.mark.parametrize(
    ("work", "size"),
    [
        (one_frame_in_small_pieces, 64 * 1024),
        (many_frames_at_once, 4 * 1024),
        (many_frames_one_by_one, 8 * 1024),
    ],
)
def test_sixteen_times_the_bytes_take_about_sixteen_times_as_long(
    work: Callable[[Callable[[int], Framer], int], None],
    size: int,
    make: Callable[[int], Framer],
) -> None:
    short = seconds(lambda: work(make, size))
    long = seconds(lambda: work(make, 16 * size))
    assert long / short < 50  # quadratic would be 256
