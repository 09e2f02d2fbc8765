"""What is said through a control socket, and who may say it.

Owns: the requests and answers, as JSON lines; what ``status`` answers; ``Peer``, who is at
the other end.
Leaves: the server's end to ``control``, the client's to ``control_client``.

One JSON object a line. A request names a command, the rest are its arguments::

    {"command": "scale", "workers": 4}

Any number of progress lines answers it, and then one line with the outcome::

    {"progress": "worker 4 has started"}
    {"ok": true, "result": null}
    {"ok": false, "error": "there is no application 'ehco'"}
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import msgspec

from ..config.setting import did_you_mean
from ..errors import ControlError

__all__ = [
    "LINUX",
    "MAX_ANSWER",
    "REQUESTS",
    "Answer",
    "ApplicationStatus",
    "ConfigRequest",
    "ForkserverStatus",
    "Peer",
    "Progress",
    "ReloadRequest",
    "Request",
    "ScaleRequest",
    "ServerStatus",
    "SlotStatus",
    "StatusRequest",
    "StopRequest",
    "encodable",
    "parse_request",
    "render_line",
]

LINUX = sys.platform == "linux"

# The longest answer that a client reads, in bytes, and the most that waits for one that
# does not.
MAX_ANSWER = 16 * 1024 * 1024

#: Takes a line for whoever waits.
Progress = Callable[[str], None]


class SlotStatus(msgspec.Struct, frozen=True):
    """The worker in one slot; what is not known of it is None.

    ``uptime`` and ``lag`` (of its loop) are in seconds, ``memory`` is in bytes.
    """

    slot: int
    pid: int | None
    state: str
    generation: int
    uptime: float | None
    connections: int | None
    requests: int | None
    lag: float | None
    memory: int | None


class ApplicationStatus(msgspec.Struct, frozen=True):
    """One application: how many workers it shall have, how many are ready."""

    name: str
    workers: int
    ready: int
    addresses: list[str]
    restarts: int
    last_failure: str | None
    slots: list[SlotStatus]


class ForkserverStatus(msgspec.Struct, frozen=True):
    """One fork server."""

    pid: int
    generation: int


class ServerStatus(msgspec.Struct, frozen=True):
    """A server. ``state`` is starting, running, reloading or stopping; ``uptime`` in seconds."""

    name: str
    pid: int
    version: str
    state: str
    ready: bool
    generation: int
    uptime: float
    applications: list[ApplicationStatus]
    forkservers: list[ForkserverStatus]

    @classmethod
    def of(cls, result: Any) -> Self:
        """The status in the ``result`` of a server. Raises ``ControlError`` if it is none."""
        try:
            return msgspec.convert(result, cls)
        except msgspec.ValidationError as exc:
            raise ControlError(f"the server's status is not understood: {exc}") from exc


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """A command and its arguments."""


class StatusRequest(Request):
    pass


class ConfigRequest(Request):
    pass


class ReloadRequest(Request):
    pass


class ScaleRequest(Request):
    workers: int
    application: str | None = None


class StopRequest(Request):
    graceful: bool = True


REQUESTS: dict[str, type[Request]] = {
    "status": StatusRequest,
    "config": ConfigRequest,
    "reload": ReloadRequest,
    "scale": ScaleRequest,
    "stop": StopRequest,
}


class Answer(msgspec.Struct):
    progress: str | None = None
    ok: bool = False
    result: Any = None
    error: str = ""


def parse_request(line: bytes) -> Request:
    try:
        message = msgspec.json.decode(line)
    except (ValueError, RecursionError) as exc:
        raise ControlError(f"a request is one JSON object on one line: {exc}") from exc
    command = message.pop("command", None) if isinstance(message, dict) else None
    if not isinstance(command, str):
        raise ControlError('a request is a JSON object, as in {"command": "status"}')
    if command not in REQUESTS:
        near = did_you_mean(command, REQUESTS)
        known = ", ".join(REQUESTS)
        raise ControlError(f"there is no command {command[:40]!r}{near}; there are: {known}")
    try:
        return msgspec.convert(message, REQUESTS[command])
    except msgspec.ValidationError as exc:
        raise ControlError(f"{command}: {exc}") from exc


def render_line(message: dict[str, Any]) -> bytes:
    # What is no JSON (a path, a function) is shown as its text.
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


def encodable(text: str) -> str:
    """``text`` without lone surrogates, which names of files may bring."""
    return text.encode(errors="backslashreplace").decode()


class Peer(NamedTuple):
    """The process at the other end of a Unix socket, as the kernel knows it.

    Of a server that is who called ``listen``, of a client who called ``connect``.
    ``pid`` is 0 for a process of a PID namespace that cannot be seen from here.
    """

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: Any) -> Self | None:
        """The peer of ``sock``; None where the system cannot tell."""
        if not LINUX:
            return None
        size = struct.calcsize("iII")
        pid, uid, _ = struct.unpack(
            "iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return cls(pid, uid)

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process of another PID namespace"
        return f"{process} of uid {self.uid}"
