"""Reads the corpus: the TOML files beside this one.

Knows nothing of any parser, so that it can be sent to any server. A case has

``name``        what is in it
``rfc``         the RFC and section that decides
``why``         where that alone is not reason enough
``choice``      where the RFC leaves one: why another server may do otherwise
``side``        "request", which is the default, or "response"
``to``          the method that a response answers; "GET" by default
``send``        the bytes, as text in Latin-1; or a list of such texts and
                ``{repeat = text, times = number}``
``end``         true: the sender ends its side behind them
``accept``      the messages that are understood, in order
``refuse``      the status that refuses what follows these
``incomplete``  true: what follows them is no whole message, and is not acted upon

A message that is understood has these keys; those that are missing are not looked at,
but for the ones with a default: ``method``, ``target``, ``path``, ``query``,
``authority``, ``path_info`` (decoded), ``http_host``, ``environ`` (some of it),
``headers`` (pairs, names in lower case), ``version`` ("1.1"), ``body`` (""),
``trailers`` ([]), ``keep_alive`` (true), ``upgrade`` (""), ``expect_continue``
(false); in a response ``status`` and ``reason``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REQUEST_DEFAULTS = {
    "version": "1.1",
    "body": "",
    "trailers": [],
    "keep_alive": True,
    "upgrade": "",
    "expect_continue": False,
}
RESPONSE_DEFAULTS = {"version": "1.1", "body": "", "trailers": [], "keep_alive": True}


@dataclass(frozen=True)
class Case:
    """One case; see above."""

    name: str
    rfc: str
    send: bytes
    why: str = ""
    choice: str = ""
    side: str = "request"
    to: str = "GET"
    end: bool = False
    accept: list[dict[str, Any]] = field(default_factory=list)
    refuse: int | None = None
    incomplete: bool = False

    def __post_init__(self) -> None:
        if not (self.accept or self.refuse or self.incomplete):
            raise ValueError(f"{self.name}: nothing is expected of it")

    def __str__(self) -> str:
        return f"{self.rfc} {self.name}"


def cases(side: str | None = None) -> list[Case]:
    """All cases, or those of one side, in the order of the files."""
    found = [
        case(entry)
        for path in sorted(HERE.glob("*.toml"))
        for entry in tomllib.loads(path.read_text("utf-8"))["case"]
    ]
    return [one for one in found if side in {None, one.side}]


def case(entry: dict[str, Any]) -> Case:
    send = entry.pop("send")
    parts = send if isinstance(send, list) else [send]
    text = "".join(
        part if isinstance(part, str) else part["repeat"] * part["times"] for part in parts
    )
    side = entry.get("side", "request")
    defaults = REQUEST_DEFAULTS if side == "request" else RESPONSE_DEFAULTS
    accept = [{**defaults, **message} for message in entry.pop("accept", [])]
    return Case(send=text.encode("latin-1"), accept=accept, **entry)


def pieces() -> list[bytes]:
    """Pieces of messages that make one often enough when they are strung together."""
    text = (HERE / "pieces.txt").read_text("ascii")
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in text.splitlines()]
