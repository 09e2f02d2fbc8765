"""What travels between actors: envelopes, values, errors, and what cannot be sent."""

import pickle
import sys
import threading
import types
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsar.actors import message
from pulsar.actors.message import (
    Answer,
    Note,
    RemoteTraceback,
    Request,
    decode,
    encode,
    pack,
    pack_error,
    raise_error,
    unpack,
)
from pulsar.actors.proxy import ActorProxy
from pulsar.errors import ActorError, ActorGone, RemoteError

texts = st.text(max_size=40)
payloads = st.binary(max_size=200)
data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
messages = (
    st.builds(Request, st.integers(0, 2**40), texts, texts, texts, payloads)
    | st.builds(Answer, st.integers(0, 2**40), texts, st.booleans(), payloads)
    | st.builds(Note, texts, st.dictionaries(texts, data, max_size=4), st.integers(0, 253))
)


@given(messages)
def test_messages_travel_unchanged(sent: Any) -> None:
    arrived = decode(encode(sent))
    assert type(arrived) is type(sent)
    assert arrived == sent


@given(payloads)
def test_anything_else_is_refused(junk: bytes) -> None:
    try:
        made = decode(junk)
    except msgspec.DecodeError:
        return
    # By chance it is one.
    assert decode(encode(made)) == made


def test_notes_do_not_share_their_data() -> None:
    one, other = Note("one"), Note("other")
    one.data["key"] = 1
    assert other.data == {}


# Values


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, "ü"], "b": (b"\0", {1, 2})},
        ActorProxy("id", "name"),
        ActorGone("gone"),
        pickle.dumps,
    ],
    ids=repr,
)
def test_values_travel_unchanged(value: Any) -> None:
    for import_modules in (True, False):
        arrived = unpack(pack(value), import_modules=import_modules)
        if isinstance(value, Exception):
            assert (type(arrived), arrived.args) == (type(value), value.args)
        else:
            assert arrived == value


def test_a_proxy_keeps_its_name() -> None:
    proxy = unpack(pack(ActorProxy("id", "anna")))
    assert (proxy.aid, proxy.name, repr(proxy)) == ("id", "anna", "<actor anna id>")
    assert proxy == ActorProxy("id") != ActorProxy("other", "anna")
    assert len({proxy, ActorProxy("id")}) == 1


@pytest.mark.parametrize(
    "value", [threading.Lock(), lambda: 1, [open]], ids=["lock", "lambda", "c"]
)
def test_what_cannot_be_pickled_is_refused_with_a_sentence(value: Any) -> None:
    if isinstance(value, list):
        assert unpack(pack(value)) == value
        return
    with pytest.raises(ActorError, match="must be picklable, and its functions and classes import"):
        pack(value)


def test_what_cannot_be_understood_is_an_error_of_actors() -> None:
    with pytest.raises(ActorError, match="cannot be understood here"):
        unpack(b"junk")
    with pytest.raises(ActorError, match="cannot be understood here"):
        unpack(b"cnot_there\nthing\n.")


def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "MAX_PAYLOAD", 1000)
    assert unpack(pack(bytes(900))) == bytes(900)
    with pytest.raises(ActorError, match="at most 1000 are allowed"):
        pack(bytes(1000))


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the application's, with an error of its own."""
    module = types.ModuleType("foreign_code")
    exec("class OwnError(Exception):\n    pass\ndef work(actor):\n    pass\n", vars(module))
    monkeypatch.setitem(sys.modules, "foreign_code", module)
    return module


def test_who_must_not_import_says_whom_to_ask(
    foreign: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = pack(foreign.work)
    assert unpack(payload, import_modules=False) is foreign.work
    monkeypatch.delitem(sys.modules, "foreign_code")
    with pytest.raises(ActorError, match=r"foreign_code\.work is part of it: send it to a worker"):
        unpack(payload, import_modules=False)
    assert "foreign_code" not in sys.modules


# Errors


def error_of(exc: BaseException, **kw: bool) -> BaseException:
    try:
        raise exc
    except BaseException as raised:
        payload = pack_error(raised)
    try:
        raise_error(payload, **kw)
    except Exception as again:
        return again
    raise AssertionError("nothing was raised")


def test_an_error_is_raised_with_its_traceback() -> None:
    error = error_of(KeyError("a", 1))
    assert (type(error), error.args) == (KeyError, ("a", 1))
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in error_of" in error.__cause__.text
    assert str(error.__cause__).startswith("in another actor:\n\nTraceback")


class Stubborn(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class Heavy(Exception):
    def __init__(self, lock: Any) -> None:
        super().__init__("heavy")
        self.lock = lock


@pytest.mark.parametrize(
    ("exc", "text"),
    [(Stubborn("no", "way"), "Stubborn: no way"), (Heavy(threading.Lock()), "Heavy: heavy")],
    ids=["stubborn", "heavy"],
)
def test_an_error_that_cannot_be_made_anew_is_told(exc: Exception, text: str) -> None:
    error = error_of(exc)
    assert type(error) is RemoteError
    assert str(error).endswith(text)
    assert text in str(error.__cause__)


def test_of_a_long_error_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "MAX_PAYLOAD", 1000)
    error = error_of(KeyError("a" * 10**6, "the end"))
    assert type(error) is RemoteError
    assert len(str(error)) < 100_000
    assert isinstance(error.__cause__, RemoteTraceback)
    assert len(error.__cause__.text) < 100_000
    assert error.__cause__.text.rstrip().endswith("'the end')")


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_nobody_ends_another_actor_by_raising(exc: BaseException) -> None:
    error = error_of(exc)
    assert type(error) is RemoteError
    assert type(exc).__name__ in str(error)


def test_an_error_of_code_that_is_not_here(
    foreign: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = pack_error(foreign.OwnError("no"))
    monkeypatch.delitem(sys.modules, "foreign_code")
    for import_modules in (False, True):
        with pytest.raises(RemoteError, match=r"foreign_code\.OwnError: no"):
            raise_error(payload, import_modules=import_modules)
