"""What travels between actors: requests, answers and notes.

Owns: their shapes, their bytes, and how arguments, results and errors are packed.
Leaves: the way they take to ``router``, the sockets to ``mailbox``.

The envelope is plain data (msgpack), so whoever passes a message on need not
understand it. The payload inside is a pickle, opened by its addressee alone. Pickle
is safe here only because nothing but the server's own processes holds an end of a
mailbox: it is a private socketpair, which no outsider can connect to.
"""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from typing import Any

import msgspec

from ..errors import ActorError, RemoteError

__all__ = [
    "MAX_PAYLOAD",
    "Answer",
    "Message",
    "Note",
    "RemoteTraceback",
    "Request",
    "decode",
    "encode",
    "pack",
    "pack_error",
    "raise_error",
    "unpack",
]


# Bytes of a payload: enough for what people pass around, too little to eat a machine.
MAX_PAYLOAD = 256 * 1024 * 1024

# Characters of an error's text that are passed on, the last ones.
_MAX_TRACEBACK = 64 * 1024


class Request(msgspec.Struct, tag=1, array_like=True, gc=False):
    """A command for an actor. Nobody waits for the answer when ``id`` is 0."""

    id: int
    sender: str
    target: str
    command: str
    payload: bytes


class Answer(msgspec.Struct, tag=2, array_like=True, gc=False):
    """What became of request ``id`` of the actor ``target``."""

    id: int
    target: str
    ok: bool
    payload: bytes


class Note(msgspec.Struct, tag=3, array_like=True, gc=False):
    """News between two neighbours in the tree; plain data, never passed on.

    ``descriptors`` says how many open descriptors come with it.
    """

    name: str
    data: dict[str, Any] = {}
    descriptors: int = 0


Message = Request | Answer | Note

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The bytes of ``message``."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """The message in ``data``. Raises ``msgspec.DecodeError`` for anything else."""
    return _decoder.decode(data)  # type: ignore[no-any-return]


def pack(value: Any) -> bytes:
    """A payload with ``value``. Raises ``ActorError`` for what cannot be pickled."""
    try:
        payload = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as exc:
        raise ActorError(
            f"what is sent to another actor must be picklable, and its functions and classes "
            f"importable: {exc}"
        ) from exc
    if len(payload) > MAX_PAYLOAD:
        raise ActorError(
            f"a message of {len(payload)} bytes cannot be sent: at most {MAX_PAYLOAD} are "
            "allowed; send where the data is instead"
        )
    return payload


def unpack(payload: bytes, *, import_modules: bool = True) -> Any:
    """The value in a payload.

    :param import_modules: False: take classes and functions only from modules that
        this process has imported already

    Raises ``ActorError`` when it cannot be understood here.
    """
    try:
        if import_modules:
            return pickle.loads(payload)  # noqa: S301 - from our own processes: see above
        return _LoadedOnly(io.BytesIO(payload)).load()
    except ActorError:
        raise
    except Exception as exc:
        raise ActorError(f"a message cannot be understood here: {exc!r}") from exc


class _LoadedOnly(pickle.Unpickler):
    """For an arbiter that has promised not to import the application."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise ActorError(
                f"this process does not import the application's code, and {module}.{name} "
                "is part of it: send it to a worker"
            )
        return super().find_class(module, name)


class RemoteTraceback(Exception):  # noqa: N818 - it is shown as a cause, not raised
    """The traceback of an error in another actor; the cause of the error raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in another actor:\n\n{self.text}"


def pack_error(exc: BaseException) -> bytes:
    """A payload with ``exc`` and its traceback."""
    text = "".join(traceback.format_exception(exc))[-_MAX_TRACEBACK:]
    summary = "".join(traceback.format_exception_only(exc)).strip()[:_MAX_TRACEBACK]
    try:
        error = pickle.dumps(exc)
        pickle.loads(error)  # noqa: S301 - some can be pickled, and not unpickled
    except Exception:
        error = b""
    if len(error) > MAX_PAYLOAD:
        error = b""
    return pickle.dumps((error, summary, text))


def raise_error(payload: bytes, *, import_modules: bool = True) -> None:
    """Raise the error in a payload here, caused by a ``RemoteTraceback``.

    An error that cannot be rebuilt here is raised as ``RemoteError``.
    """
    packed, summary, text = unpack(payload)
    error: BaseException | None = None
    if packed:
        try:
            error = unpack(packed, import_modules=import_modules)
        except ActorError:
            error = None
    if not isinstance(error, Exception):
        error = RemoteError(summary)
    raise error from RemoteTraceback(text)
