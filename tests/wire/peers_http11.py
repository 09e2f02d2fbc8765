"""The corpus sent to other servers: ``python -m tests.wire.peers_http11``.

    python -m tests.wire.peers_http11 --peers pulsar,gunicorn --show

Each case goes to each server on a connection of its own. The application says what it was
called with; what the client sees is judged by the case. Prints the table of
docs/http11-corpus.md; with ``--write``, into that page. Not collected by pytest.

Owns: the servers and how they are started; the application; the judgement.
Leaves: the cases to ``http11_corpus``.

What a server may do differently by the RFC (``choice`` in a case), it is not blamed for.
Whether it keeps a connection that it may close is its own business, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from .http11_corpus.load import Case, cases

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "http11-corpus.md"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"

# So many cases at a time, and seconds of silence after which nothing more is expected;
# whoever was silent is asked again, more patiently.
TOGETHER = 12
SILENCE = 1.0
PATIENCE = 4.0
START_PATIENCE = 30.0

LAST = b"GET /the-last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

Environ = dict[str, Any]


# The application, for servers of either kind. Its answers have no body, so that who reads
# them does not have to know which of them are to HEAD.


def described(environ: Environ, body: bytes) -> str:
    """What the application was called with, as a value for a header."""
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    seen["body"] = body.decode("latin-1") if len(body) < 300 else hashlib.sha1(body).hexdigest()
    return quote(json.dumps(seen))


def wsgi(environ: Environ, start_response: Any) -> list[bytes]:
    """The application for servers of WSGI."""
    seen = described(environ, environ["wsgi.input"].read())
    start_response("200 OK", [("X-Seen", seen), ("Content-Length", "0")])
    return []


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same for servers of ASGI, in the words of WSGI."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
        return
    assert scope["type"] == "http"
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    path = scope["path"].encode("utf-8", "surrogateescape").decode("latin-1")
    environ = {
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": path,
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
    }
    for raw_name, raw_value in scope["headers"]:
        if b"_" in raw_name:
            continue  # would pass for another name
        name = "HTTP_" + raw_name.decode("latin-1").upper().replace("-", "_")
        value = raw_value.decode("latin-1")
        known = environ.get(name)
        environ[name] = value if known is None else f"{known}, {value}"
    seen = described(environ, body).encode()
    headers = [(b"x-seen", seen), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


# The servers


@dataclass(frozen=True)
class Peer:
    """A server: ``python -m`` what, with ``{port}`` for its port; and the package it is from."""

    name: str
    package: str
    command: tuple[str, ...]
    # Modules whose versions matter as well.
    beside: tuple[str, ...] = ()
    script: str = ""

    def argv(self, port: int) -> list[str]:
        begin = ["-c", self.script] if self.script else ["-m"]
        return [sys.executable, *begin, *(part.format(port=port) for part in self.command)]

    @property
    def versions(self) -> str:
        return ", ".join(f"{name} {version(name)}" for name in (self.package, *self.beside))


APP = "tests.wire.peers_http11:wsgi"
ASGI = "tests.wire.peers_http11:asgi"
CHEROOT = f"""
import sys
from cheroot.wsgi import Server
from {APP.partition(":")[0]} import wsgi
Server(("127.0.0.1", int(sys.argv[1])), wsgi, numthreads={2 * TOGETHER}).start()
"""
UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "critical", "--lifespan", "off")
PEERS = (
    Peer("pulsar", "pulsar", ("pulsar", "serve", APP, "--bind", "127.0.0.1:{port}")),
    Peer(
        "gunicorn",
        "gunicorn",
        (
            *("gunicorn", "--worker-class", "gthread", "--threads", str(2 * TOGETHER)),
            *("--log-level", "critical", "--bind", "127.0.0.1:{port}", APP),
        ),
    ),
    Peer(
        "waitress",
        "waitress",
        ("waitress", "--threads", str(TOGETHER), "--listen", "127.0.0.1:{port}", APP),
    ),
    Peer("cheroot", "cheroot", ("{port}",), script=CHEROOT),
    Peer(
        "granian",
        "granian",
        ("granian", "--interface", "wsgi", "--port", "{port}", "--log-level", "critical", APP),
    ),
    Peer(
        "uvicorn-httptools",
        "uvicorn",
        (*UVICORN, "--http", "httptools", ASGI),
        ("httptools",),
    ),
    Peer("uvicorn-h11", "uvicorn", (*UVICORN, "--http", "h11", ASGI), ("h11",)),
    Peer(
        "hypercorn",
        "hypercorn",
        ("hypercorn", "--bind", "127.0.0.1:{port}", "--log-level", "critical", ASGI),
        ("h11",),
    ),
)


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[int]:
    """Start ``peer``; gives its port. Raises ``RuntimeError`` when it does not serve."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            peer.argv(port),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + START_PATIENCE
            while not serves(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{peer.name} does not serve: {log.read()[-2000:]!r}")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serves(port: int) -> bool:
    """Whether the application answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as sock:
            sock.sendall(LAST)
            return b"200" in sock.recv(1000)
    except OSError:
        return False


# One case


@dataclass
class Seen:
    """What came back: the application's own words, and what else there was."""

    calls: list[Environ] = field(default_factory=list)
    # The status of the first answer that is not the application's.
    refused: int | None = None
    ended: bool = False
    # Something came that is no answer.
    strange: bytes = b""

    @property
    def last(self) -> bool:
        """The request that was sent behind the case was answered."""
        return any(call["PATH_INFO"] == "/the-last" for call in self.calls)


HEAD = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])[^\r\n]*\r\n(.*?\r\n)\r\n", re.DOTALL).match
PARTED = re.compile("[,;] ?").sub
WORDS = re.compile(rb"(?im)^x-seen: *(\S+)\r$").search


def read(data: bytes, *, ended: bool) -> Seen:
    """Take the answers apart. Behind one that is the server's own, words are still looked for."""
    seen = Seen(ended=ended)
    while data:
        match = HEAD(data)
        if match is None:
            seen.strange = data
            break
        words = WORDS(match[2])
        status = int(match[1])
        data = data[match.end() :]
        if words is not None:
            seen.calls.append(json.loads(unquote_to_bytes(words[1])))
        elif status >= 200 or status == 101:
            seen.refused = status
            # Its body may be anything; what the application says is not.
            more = re.search(rb"(?im)^x-seen: *(\S+)\r$", data)
            if more is not None:
                seen.calls.append(json.loads(unquote_to_bytes(more[1])))
            break
    return seen


async def ask(case: Case, port: int, silence: float) -> Seen:
    """Send ``case``; gives what came, after the end or ``silence`` seconds without anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    ended = False
    try:
        writer.write(case.send)
        if goes_on(case):
            writer.write(LAST)
        if case.end:
            writer.write_eof()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(silence):
                await writer.drain()
        while not ended:
            async with asyncio.timeout(silence):
                piece = await reader.read(65536)
            data += piece
            ended = not piece
    except TimeoutError:
        pass
    except ConnectionError:
        ended = True
    finally:
        writer.transport.abort()
    return read(data, ended=ended)


def goes_on(case: Case) -> bool:
    """Whether another request may follow on the connection."""
    if case.refuse is not None or case.incomplete or case.end:
        return False
    return all(message["keep_alive"] for message in case.accept)


# The judgement. The names of the outcomes, worst first.

RIGHT = "right"
CHOICE = "right, by choice"
OUTCOMES = {
    "accepted": "Served although it has to be refused",
    "misread": "Read as something else",
    "failed": "Answered with 500",
    "refused": "Refused although it has to be served",
    "silent": "Neither answered nor closed",
}


def judge(case: Case, seen: Seen) -> str:
    """One of the outcomes."""
    plain = plainly(case, seen)
    if plain == RIGHT or not case.choice:
        return plain
    if plain in {"refused", "silent"}:
        return CHOICE
    if plain == "accepted" and len(seen.calls) - seen.last <= max(len(case.accept), 1):
        # Nothing that ends a line may go through.
        clean = not any(set("\r\n\0") & set(str(v)) for v in values(seen) if v)
        return CHOICE if clean else "misread"
    return plain


def values(seen: Seen) -> Iterator[str]:
    for call in seen.calls:
        yield from (value for name, value in call.items() if name.startswith("HTTP_"))


def plainly(case: Case, seen: Seen) -> str:
    """The outcome without regard to choices."""
    calls = [call for call in seen.calls if call["PATH_INFO"] != "/the-last"]
    for call, message in zip(calls, case.accept, strict=False):
        if not matches(call, message):
            return "misread"
    missing = len(case.accept) - len(calls)
    if missing < 0:
        return "accepted" if case.refuse or case.incomplete else "misread"
    if seen.refused == 500:
        return "failed"
    if missing > 0:
        # Who ends the connection behind a good answer may.
        if seen.refused is None and seen.ended and calls:
            return RIGHT
        return "silent" if seen.refused is None and not seen.ended else "refused"
    if case.refuse is not None:
        # A server that does not say why is rude, and safe.
        if seen.refused is None and not seen.ended:
            return "silent"
        return RIGHT
    if case.incomplete or case.end:
        return RIGHT
    if not case.accept[-1]["keep_alive"]:
        return RIGHT if seen.ended else "silent"
    if seen.last or (seen.ended and seen.refused is None):
        return RIGHT
    return "misread"


def matches(call: Environ, message: dict[str, Any]) -> bool:
    """Whether the application was called with what the case says."""
    body = message["body"].encode("latin-1")
    have = call["body"]
    wanted: dict[str, Any] = {"REQUEST_METHOD": message.get("method")}
    target = message.get("target")
    if target is not None and target.startswith("/"):
        path, mark, query = target.partition("?")
        wanted["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1")
        wanted["QUERY_STRING"] = query if mark else ""
    path = message.get("path_info")
    if path is None and message.get("path", "*") != "*":
        path = unquote_to_bytes(message["path"]).decode("latin-1")
    if path:
        wanted["PATH_INFO"] = path
    if "query" in message:
        wanted["QUERY_STRING"] = message["query"]
    wanted["HTTP_HOST"] = message.get("http_host")
    wanted |= message.get("environ", {})
    for name, value in wanted.items():
        # How the fields of one name are joined is not the same everywhere.
        if value is not None and PARTED(",", call.get(name, "")) != PARTED(",", value):
            return False
    if len(body) < 300:
        return bool(have == body.decode("latin-1"))
    return bool(have == hashlib.sha1(body).hexdigest())


# The run


async def judged(port: int, chosen: Sequence[Case]) -> dict[str, str]:
    """The outcome of each case, by its name."""
    outcomes: dict[str, str] = {}
    room = asyncio.Semaphore(TOGETHER)

    async def one(case: Case, silence: float) -> None:
        async with room:
            outcomes[case.name] = judge(case, await ask(case, port, silence))

    await asyncio.gather(*(one(case, SILENCE) for case in chosen))
    room = asyncio.Semaphore(TOGETHER // 3)
    silent = [case for case in chosen if outcomes[case.name] in {"silent", "refused"}]
    await asyncio.gather(*(one(case, PATIENCE) for case in silent))
    return outcomes


def section(case: Case) -> str:
    """Where in the table: the section of RFC 9112, or the document."""
    document, _, number = case.rfc.partition(" ")
    return f"RFC 9112, {number.partition('.')[0]}" if document == "9112" else "others"


SECTIONS = {
    "2": "messages, lines, version",
    "3": "request line, target, Host",
    "5": "fields",
    "6": "body",
    "7": "chunks",
    "8": "incomplete messages",
    "9": "connections",
}


def table(results: dict[str, dict[str, str]], chosen: Sequence[Case]) -> str:
    """The tables, in Markdown."""
    names = list(results)
    lines = ["| | cases | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]

    def row(title: str, some: Sequence[Case]) -> None:
        counts = [
            sum(results[name][case.name] in {RIGHT, CHOICE} for case in some) for name in names
        ]
        lines.append(f"| {title} | {len(some)} | " + " | ".join(map(str, counts)) + " |")

    for number, title in SECTIONS.items():
        row(f"{number}: {title}", [c for c in chosen if section(c) == f"RFC 9112, {number}"])
    row("RFC 9110 and others", [case for case in chosen if section(case) == "others"])
    row("**all**", chosen)
    for outcome, title in OUTCOMES.items():
        counts = [Counter(results[name].values())[outcome] for name in names]
        lines.append(f"| {title} | | " + " | ".join(str(n or "") for n in counts) + " |")
    counts = [Counter(results[name].values())[CHOICE] for name in names]
    lines.append("| Other than pulsar, and right | | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def deviations(results: dict[str, dict[str, str]], chosen: Sequence[Case]) -> str:
    """Who does what with which cases, in Markdown."""
    lines = []
    for name, outcomes in results.items():
        lines += [f"### {name}", ""]
        kinds = 0
        for outcome, title in OUTCOMES.items():
            found = [case for case in chosen if outcomes[case.name] == outcome]
            if found:
                kinds += 1
                texts = "; ".join(f"{case.name} ({case.rfc})" for case in found)
                lines += [f"{title}: {texts}.", ""]
        if not kinds:
            lines += ["None.", ""]
    return "\n".join(lines)


def report(results: dict[str, dict[str, str]], chosen: Sequence[Case]) -> str:
    peers = {peer.name: peer for peer in PEERS}
    versions = "; ".join(f"{name}: {peers[name].versions}" for name in results)
    python = ".".join(map(str, sys.version_info[:3]))
    said = f"Measured with Python {python}. {versions}."
    parts = [said, table(results, chosen), "## Deviations", deviations(results, chosen)]
    return "\n\n".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS))
    parser.add_argument("--case", help="only cases with this in their name; says what came")
    parser.add_argument("--write", action="store_true", help="into the page of the docs")
    options = parser.parse_args()
    # The servers end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    wanted = options.peers.split(",")
    chosen = [case for case in cases("request") if (options.case or "") in case.name]
    results: dict[str, dict[str, str]] = {}
    for peer in PEERS:
        if peer.name not in wanted:
            continue
        begun = time.monotonic()
        with running(peer) as port:
            if options.case is not None:
                for case in chosen:
                    seen = asyncio.run(ask(case, port, PATIENCE))
                    print(peer.name, case, judge(case, seen), seen)
                continue
            results[peer.name] = asyncio.run(judged(port, chosen))
        counts = dict(Counter(results[peer.name].values()))
        print(f"{peer.name}: {time.monotonic() - begun:.0f} s, {counts}", file=sys.stderr)
    if results and options.write:
        begin, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, end = rest.partition(END)
        PAGE.write_text(f"{begin}{BEGIN}\n\n{report(results, chosen)}\n{END}{end}")
    elif results:
        print(report(results, chosen))


if __name__ == "__main__":
    main()
