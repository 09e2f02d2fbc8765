"""Load that counts every request and retries none.

    python benchmarks/chaos/load.py kept=8@127.0.0.1:8060 echo=4@unix:/run/echo --seconds 10

Each load is KIND=CLIENTS@ADDRESS. KIND:

    kept        the lines of ``examples/lineserver`` on connections that stay open
    lines       the same lines, a connection for each
    echo        the messages of ``examples/echo``, a connection for each
    kept-http   HTTP requests for a path that comes back as a body, on connections that stay open
    http        the same requests, a connection for each
    udp         the datagrams of ``examples/echoudp``; each client has a port of its own

ADDRESS: HOST:PORT, ``tls:HOST:PORT`` (verified against ``--ca``, as localhost) or ``unix:PATH``.

A client has one request under way at a time, and each is counted once: answered, failed with a
reason, or turned away (the connection was refused, or the datagram ignored, after the driver had
said that the server is about to end). A request that fails is never sent again. The report is
JSON on standard output; a driver (``LoadProcess``) asks for counters while the load runs.

Owns: the clients, the counting, and running them in a process of their own.
Leaves: servers and faults, and what a failure means, to whoever drives it.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import re
import select
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

# Seconds that an answer may take before its request has failed.
TCP_PATIENCE = 10.0
UDP_PATIENCE = 5.0

# Answers that took longer than this (milliseconds) are told one by one.
SLOW = 50.0

# How many failures and slow answers are told one by one between two looks.
TOLD = 2000

# The load's own loop is watched with a timer of this period, in seconds.
TICK = 0.005

# The name of the certificate that servers of the load have.
TLS_NAME = "localhost"


# Counting


@dataclass
class Tally:
    """What became of the requests of one load. Times in seconds of the monotonic clock."""

    name: str
    sent: int = 0
    answered: int = 0
    failed: int = 0
    turned_away: int = 0
    goodbyes: int = 0
    # Ends of idle connections without a goodbye, and messages that nobody has asked for.
    unannounced: int = 0
    strays: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    # Latencies in tenths of a millisecond, of the whole run and since the last look.
    latencies: Counter[int] = field(default_factory=Counter)
    window: Counter[int] = field(default_factory=Counter)
    slow: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)
    _number: int = 0

    def begin(self) -> int:
        """Count a request that is about to be made; returns its number."""
        self.sent += 1
        self._number += 1
        self.waiting[self._number] = time.monotonic()
        return self._number

    def answer(self, number: int) -> None:
        """The right answer to request ``number`` has come."""
        sent = self.waiting.pop(number)
        took = time.monotonic() - sent
        self.answered += 1
        tenths = round(took * 10_000)
        self.latencies[tenths] += 1
        self.window[tenths] += 1
        if took * 1000 > SLOW and len(self.slow) < TOLD:
            self.slow.append({"load": self.name, "at": sent, "ms": round(took * 1000, 1)})

    def fail(self, number: int, failure: "RequestError") -> None:
        """Request ``number`` has failed."""
        sent = self.waiting.pop(number)
        self.failed += 1
        self.reasons[failure.reason] += 1
        if len(self.failures) < TOLD:
            self.failures.append(
                {
                    "load": self.name,
                    "at": sent,
                    "after_ms": round((time.monotonic() - sent) * 1000, 1),
                    "reason": failure.reason,
                    "detail": str(failure),
                }
            )

    def turn_away(self, number: int) -> None:
        """Request ``number`` met a server that has ended, as announced."""
        del self.waiting[number]
        self.turned_away += 1

    def counters(self) -> dict[str, Any]:
        """The counters so far; sent = answered + failed + turned_away + waiting."""
        return {
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "turned_away": self.turned_away,
            "waiting": len(self.waiting),
            "goodbyes": self.goodbyes,
            "unannounced": self.unannounced,
            "strays": self.strays,
            "reasons": dict(self.reasons),
        }

    def look(self) -> dict[str, Any]:
        """The counters, and what has happened since the last look."""
        found = {**self.counters(), "window": summary(self.window)}
        self.window = Counter()
        return found

    def report(self) -> dict[str, Any]:
        """The counters and the latencies of the whole run."""
        return {**self.counters(), "latency": summary(self.latencies)}


def summary(latencies: Mapping[int, int]) -> dict[str, Any]:
    """How many latencies, and their percentiles in milliseconds (None without any)."""
    count = sum(latencies.values())
    found: dict[str, Any] = {"count": count, "p50_ms": None, "p99_ms": None, "max_ms": None}
    seen = 0
    for tenths in sorted(latencies):
        seen += latencies[tenths]
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0)):
            if found[name] is None and seen >= share * count:
                found[name] = tenths / 10
    return found


class RequestError(Exception):
    """Why a request has failed, in one word, and in the words of the error behind it."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(str(detail))
        self.reason = reason


def difference(answer: bytes, text: bytes) -> str:
    """What a wrong answer looks like."""
    return f"{answer[:60]!r} for {text[:60]!r}"


# Where to


@dataclass(frozen=True)
class Target:
    """An address to connect to."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> "Target":
        """HOST:PORT, ``tls:HOST:PORT`` or ``unix:PATH``. Raises ``ValueError``."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            return cls(path=f"\0{path[1:]}" if path.startswith("@") else path)
        tls = text.startswith("tls:")
        host, _, port = text.removeprefix("tls:").rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{text!r} is not HOST:PORT, tls:HOST:PORT or unix:PATH")
        return cls(host=host.strip("[]"), port=int(port), tls=tls)


# What a server says: a text, or None for a goodbye alone; and whether it is a goodbye.
Message = tuple[bytes | None, bool]


@dataclass(frozen=True)
class Dialogue:
    """What is said on a connection: a text, ``end``; then ``prefix``, the text, ``end``.

    A server that ends says ``goodbye``, where there is one.
    """

    end: bytes
    prefix: bytes = b""
    goodbye: bytes | None = None

    def question(self, text: bytes) -> bytes:
        """What asks for ``text``."""
        return text + self.end

    def messages(self, data: bytes) -> tuple[list[Message], bytes]:
        """What was said in ``data``, and what is left of it. Without an ``end``, it is all one."""
        if not self.end:
            return [(data, False)], b""
        *found, rest = data.split(self.end)
        return [self._message(one) for one in found], rest

    def _message(self, said: bytes) -> Message:
        if said == self.goodbye:
            return None, True
        right = said.startswith(self.prefix)
        return said.removeprefix(self.prefix) if right else b"not " + self.prefix + said, False


class HttpDialogue(Dialogue):
    """Requests for the path of a text, which comes back as a body; ``end`` closes the head.

    The goodbye is ``Connection: close`` in an answer: nothing can be said on an idle connection.
    ``prefix`` has the headers of requests.
    """

    def question(self, text: bytes) -> bytes:
        return b"GET /%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (text, self.prefix)

    def messages(self, data: bytes) -> tuple[list[Message], bytes]:
        found: list[Message] = []
        while True:
            head, end, rest = data.partition(self.end)
            length = LENGTH(head)
            if not end or length is None or len(rest) < int(length[1]):
                return found, data
            body, data = rest[: int(length[1])], rest[int(length[1]) :]
            right = head.startswith(b"HTTP/1.1 200 ")
            found.append((body if right else head + body, b"\r\nConnection: close" in head))


LENGTH = re.compile(rb"(?i)\r\nContent-Length: ([0-9]+)").search
LINES = Dialogue(b"\r\n", prefix=b"OK ", goodbye=b"BYE")
ECHO = Dialogue(b"\r\n\r\n")
DATAGRAMS = Dialogue(b"")
HTTP = HttpDialogue(b"\r\n\r\n")
HTTP_EACH = HttpDialogue(b"\r\n\r\n", prefix=b"Connection: close\r\n")


class Peer(asyncio.Protocol):
    """A connection: one question at a time, and what the server says by itself."""

    transport: asyncio.Transport

    def __init__(self, dialogue: Dialogue, tally: Tally) -> None:
        self._dialogue = dialogue
        self._tally = tally
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._closing = False
        # Nothing new may be sent: a goodbye has come, or the end.
        self.over = False
        self.goodbye = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        messages, self._buffer = self._dialogue.messages(self._buffer + data)
        for message, last in messages:
            if last:
                self._tally.goodbyes += 1
                self.over = self.goodbye = True
            if message is None:
                continue
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(message)
            else:
                self._tally.strays += 1
        if self.over and self._answer is None:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        answer = self._answer
        if answer is not None and not answer.done():
            answer.set_exception(RequestError("reset", exc) if exc else RequestError("eof"))
        elif not self.over and not self._closing and self._dialogue.goodbye is not None:
            self._tally.unannounced += 1
        self.over = True

    async def ask(self, text: bytes) -> None:
        """Send ``text`` and wait for its answer. Raises ``RequestError``."""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self.transport.write(self._dialogue.question(text))
            answer = await self._answer
        finally:
            self._answer = None
        if answer != text:
            raise RequestError("wrong", difference(answer, text))
        if self.over:
            self.close()

    def close(self) -> None:
        """Close the connection; nothing is said to be wrong about its end."""
        self.over = self._closing = True
        self.transport.close()


class DatagramPeer(asyncio.DatagramProtocol):
    """A socket of its own: one datagram at a time."""

    transport: asyncio.DatagramTransport

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._text = b""
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._answer is None or self._answer.done():
            self._tally.strays += 1
        elif data != self._text:
            self._answer.set_exception(
                RequestError("wrong", f"{data[:60]!r} for {self._text[:60]!r}")
            )
        else:
            self._answer.set_result(None)

    def error_received(self, exc: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestError("refused", exc))

    async def ask(self, text: bytes) -> None:
        """Send ``text`` and wait until it comes back. Raises ``RequestError``."""
        self._text = text
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self.transport.sendto(text)
            await self._answer
        finally:
            self._answer = None


# Clients


class Client:
    """Makes one request after the other, at a pace. A subclass says how."""

    def __init__(self, load: "Load", number: int) -> None:
        self.load = load
        self.number = number
        self.tally = load.tally

    async def run(self) -> None:
        """Until the load stops, or until the server has turned this client away."""
        load, loop = self.load, asyncio.get_running_loop()
        # The clients of a load do not march in step.
        due = loop.time() + load.interval * random.random()
        while not load.stopping:
            if due > (now := loop.time()):
                await asyncio.sleep(due - now)
            await load.going.wait()
            # Nobody catches up on what could not be sent in time.
            due = max(due + load.interval, loop.time())
            if not await self.request():
                break
            if load.interval == 0:
                await asyncio.sleep(0)
        self.end()

    async def request(self) -> bool:
        """One request; False when the server has turned it away."""
        number = self.tally.begin()
        text = f"{self.load.name}-{self.number}-{number}-{'.' * self.load.filling}".encode()
        try:
            async with asyncio.timeout(self.load.patience):
                await self.exchange(text)
        except RequestError as failure:
            return self.failed(number, failure)
        except TimeoutError:
            return self.failed(number, RequestError("timeout", f"{self.load.patience} s"))
        self.tally.answer(number)
        return True

    def failed(self, number: int, failure: RequestError) -> bool:
        """Count a request without an answer; False when the server has turned it away."""
        self.end()
        if self.load.ending is not None and self.has_ended(failure, number):
            self.tally.turn_away(number)
            return False
        self.tally.fail(number, failure)
        return True

    async def exchange(self, text: bytes) -> None:
        """Make the request ``text``. Raises ``RequestError``."""
        raise NotImplementedError

    def has_ended(self, failure: RequestError, number: int) -> bool:
        """Whether ``failure`` is how a server that has ended looks."""
        return failure.reason == "refused"

    def end(self) -> None:
        """Let go of what is open."""


class KeptClient(Client):
    """Asks on one connection until the server says goodbye, then on the next."""

    peer: Peer | None = None

    async def exchange(self, text: bytes) -> None:
        if self.peer is None or self.peer.over:
            self.peer = None
            self.peer = await self.load.connect()
        await self.peer.ask(text)

    def end(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None


class ConnectingClient(Client):
    """Connects for every request."""

    peer: Peer | None = None

    async def exchange(self, text: bytes) -> None:
        self.peer = await self.load.connect()
        try:
            await self.peer.ask(text)
        finally:
            self.end()

    def end(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None


class DatagramClient(Client):
    """Sends one datagram after the other from its port."""

    peer: DatagramPeer | None = None

    async def exchange(self, text: bytes) -> None:
        if self.peer is None:
            target, loop = self.load.target, asyncio.get_running_loop()
            _, self.peer = await loop.create_datagram_endpoint(
                lambda: DatagramPeer(self.tally), remote_addr=(target.host, target.port)
            )
        await self.peer.ask(text)

    def has_ended(self, failure: RequestError, number: int) -> bool:
        # A datagram that comes while the socket closes is not refused: it stays without an answer.
        ending = self.load.ending
        sent_later = ending is not None and self.tally.waiting[number] >= ending
        return sent_later and failure.reason in ("refused", "timeout")

    def end(self) -> None:
        if self.peer is not None:
            self.peer.transport.close()
            self.peer = None


# Loads


class Load:
    """``clients`` clients of one kind at one address.

    :param pace: requests per second of all clients together; 0: as fast as they are answered
    :param filling: bytes that make a request longer
    """

    KINDS: ClassVar[dict[str, tuple[type[Client], Dialogue]]] = {
        "kept": (KeptClient, LINES),
        "lines": (ConnectingClient, LINES),
        "echo": (ConnectingClient, ECHO),
        "kept-http": (KeptClient, HTTP),
        "http": (ConnectingClient, HTTP_EACH),
        "udp": (DatagramClient, DATAGRAMS),
    }

    def __init__(
        self,
        kind: str,
        clients: int,
        target: Target,
        *,
        name: str | None = None,
        pace: float = 0.0,
        filling: int = 0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name or kind
        self.kind = kind
        self.target = target
        self.tally = Tally(self.name)
        self.interval = clients / pace if pace else 0.0
        self.filling = filling
        self.patience = UDP_PATIENCE if kind == "udp" else TCP_PATIENCE
        self.going = asyncio.Event()
        self.going.set()
        self.stopping = False
        # When the driver has said that the server is about to end.
        self.ending: float | None = None
        self._context = context
        self._client, self._dialogue = self.KINDS[kind]
        self._clients = clients

    @classmethod
    def parse(cls, text: str, **options: Any) -> Self:
        """KIND=CLIENTS@ADDRESS. Raises ``ValueError``."""
        kind, _, rest = text.partition("=")
        clients, _, address = rest.partition("@")
        if kind not in cls.KINDS or not clients.isdecimal() or not int(clients):
            raise ValueError(
                f"{text!r} is not KIND=CLIENTS@ADDRESS, with KIND one of {', '.join(cls.KINDS)}"
            )
        target = Target.parse(address)
        if kind == "udp" and (target.tls or target.path):
            raise ValueError(f"{text!r}: datagrams go to HOST:PORT only")
        return cls(kind, int(clients), target, **options)

    def clients(self) -> list[Client]:
        """New clients."""
        return [self._client(self, number) for number in range(self._clients)]

    async def connect(self) -> Peer:
        """A new connection on which something may be sent. Raises ``RequestError``."""
        while True:
            peer = await self._connect()
            if not peer.over:
                return peer
            # A server that ends may take it and say so: nothing was sent, so nothing is lost.
            if not peer.goodbye:
                raise RequestError("eof", "before anything was sent")

    async def _connect(self) -> Peer:
        target, loop = self.target, asyncio.get_running_loop()
        make: Callable[[], Peer] = lambda: Peer(self._dialogue, self.tally)  # noqa: E731
        tls: dict[str, Any] = {}
        if target.tls:
            tls = {"ssl": self._context, "server_hostname": TLS_NAME}
        try:
            if target.path:
                _, peer = await loop.create_unix_connection(make, target.path)
            else:
                _, peer = await loop.create_connection(make, target.host, target.port, **tls)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise RequestError("refused", error) from None
        except (OSError, ssl.SSLError) as error:
            raise RequestError("handshake" if target.tls else "connect", error) from None
        return peer

    async def burst(self, count: int) -> tuple[list[Peer], dict[str, Any]]:
        """Connect ``count`` times at once and ask once on each; the connections stay open."""
        tally = Tally(f"burst of {self.name}")
        peers: list[Peer] = []

        async def one(number: int) -> None:
            request = tally.begin()
            try:
                async with asyncio.timeout(TCP_PATIENCE):
                    peer = await self.connect()
                    peers.append(peer)
                    await peer.ask(f"burst-{number}".encode())
            except RequestError as failure:
                tally.fail(request, failure)
            except TimeoutError:
                tally.fail(request, RequestError("timeout", f"{TCP_PATIENCE} s"))
            else:
                tally.answer(request)

        await asyncio.gather(*map(one, range(count)))
        return peers, {**tally.report(), "failures": tally.failures}


class Loads:
    """Several loads on one loop, and the commands of whoever drives them."""

    def __init__(self, loads: Sequence[Load]) -> None:
        self.loads = {load.name: load for load in loads}
        self._burst: list[Peer] = []
        self._lag = 0.0
        self._longest_lag = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every client."""
        loop = asyncio.get_running_loop()
        clients = [client for load in self.loads.values() for client in load.clients()]
        self._tasks = [loop.create_task(client.run()) for client in clients]
        self._tick(loop, loop.time())

    async def look(self) -> dict[str, Any]:
        """Counters, and what has happened since the last look."""
        tallies = [load.tally for load in self.loads.values()]
        waiting = [sent for tally in tallies for sent in tally.waiting.values()]
        found = {
            "at": time.monotonic(),
            "oldest": min(waiting, default=None),
            "lag_ms": round(self._lag * 1000, 1),
            "running": sum(not task.done() for task in self._tasks),
            "loads": {tally.name: tally.look() for tally in tallies},
            "failures": [failure for tally in tallies for failure in tally.failures],
            "slow": [slow for tally in tallies for slow in tally.slow],
        }
        self._lag = 0.0
        for tally in tallies:
            tally.failures, tally.slow = [], []
        return found

    async def pause(self) -> dict[str, Any]:
        """Send nothing new, on any load; returns when all is answered."""
        for load in self.loads.values():
            load.going.clear()
        while any(load.tally.waiting for load in self.loads.values()):
            await asyncio.sleep(TICK)
        return {"paused": True}

    async def resume(self) -> dict[str, Any]:
        """Go on after ``pause``."""
        for load in self.loads.values():
            load.going.set()
        return {"paused": False}

    async def burst(self, name: str, count: str) -> dict[str, Any]:
        """Connections at once, at the address of the load ``name``, held until ``release``."""
        peers, found = await self.loads[name].burst(int(count))
        self._burst += peers
        return found

    async def release(self) -> dict[str, Any]:
        """Close the connections of the bursts."""
        for peer in self._burst:
            peer.close()
        count, self._burst = len(self._burst), []
        return {"released": count}

    async def ending(self, *names: str) -> dict[str, Any]:
        """From now on, the servers of these loads (of all) may refuse what is new to them."""
        now = time.monotonic()
        for name in names or self.loads:
            self.loads[name].ending = now
        return {"at": now}

    async def finish(self) -> dict[str, Any]:
        """End the clients when their requests are answered; returns the report."""
        for load in self.loads.values():
            load.stopping = True
            load.going.set()
        await asyncio.gather(*self._tasks)
        await self.release()
        return {
            "loads": {name: load.tally.report() for name, load in self.loads.items()},
            "lag_ms": round(self._longest_lag * 1000, 1),
        }

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Notice when this loop itself was late: then so are its answers."""
        now = loop.time()
        self._lag = max(self._lag, now - due)
        self._longest_lag = max(self._longest_lag, now - due)
        loop.call_at(now + TICK, self._tick, loop, now + TICK)

    async def obey(self, commands: asyncio.StreamReader) -> dict[str, Any]:
        """Answer each line of ``commands`` with a line of JSON; the report ends it."""
        known: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
            "look": self.look,
            "pause": self.pause,
            "resume": self.resume,
            "burst": self.burst,
            "release": self.release,
            "ending": self.ending,
        }
        while (line := (await commands.readline()).decode().split()) and line[0] != "finish":
            say(await known[line[0]](*line[1:]))
        return await self.finish()


def say(answer: Mapping[str, Any]) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


# Another process's view of it


class LoadProcess:
    """The loads in a process of their own; a context manager.

    :param loads: each KIND=CLIENTS@ADDRESS, with NAME: before it where two are of one kind
    :param ca: the certificates that TLS servers are verified against
    :param pace: requests per second of each load; 0: as fast as they are answered
    """

    def __init__(
        self,
        loads: Sequence[str],
        *,
        ca: str | Path | None = None,
        pace: float = 0.0,
        python: str = sys.executable,
    ) -> None:
        command = [python, __file__, *loads, "--driven", f"--pace={pace}"]
        if ca is not None:
            command.append(f"--ca={ca}")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._rest = b""
        self._report: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def ask(self, *command: object, patience: float = 30.0) -> dict[str, Any]:
        """Give a command of ``Loads``; returns its answer. Raises ``RuntimeError``."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(" ".join(map(str, command)).encode() + b"\n")
        except BrokenPipeError:
            raise RuntimeError("the load has ended") from None
        return self._answer(patience)

    def look(self) -> dict[str, Any]:
        """The counters, and failures and slow answers since the last look."""
        return self.ask("look")

    def finish(self, patience: float = 30.0) -> dict[str, Any]:
        """End the load when all is answered; returns the report, the second time as well."""
        if self._report is None:
            self._report = self.ask("finish", patience=patience)
            self._process.wait(patience)
            self.kill()
        return self._report

    def kill(self) -> None:
        """End the process at once."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _answer(self, patience: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        until = time.monotonic() + patience
        while b"\n" not in self._rest:
            left = max(0.0, until - time.monotonic())
            if not select.select([stdout], [], [], left)[0]:
                raise RuntimeError(f"the load has not answered within {patience} s")
            piece = os.read(stdout.fileno(), 65536)
            if not piece:
                raise RuntimeError("the load has ended without an answer")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


# The command


def main() -> int:
    """Run the loads of the command line; 1 when a request has failed."""
    import uvloop

    options = parse()
    # A collection would look like a late answer.
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(run(options))
    say(report)
    return int(any(load["failed"] for load in report["loads"].values()))


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the loads until their time is up, or until the driver says so."""
    loads = Loads(make_loads(options))
    loads.start()
    if not options.driven:
        await asyncio.sleep(options.seconds)
        return await loads.finish()
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    with contextlib.closing(pipe):
        return await loads.obey(commands)


def make_loads(options: argparse.Namespace) -> list[Load]:
    """The loads that the command line names. Ends the process when one is no load."""
    context = ssl.create_default_context(cafile=options.ca) if options.ca else None
    loads = []
    for text in options.loads:
        kind, _, rest = text.partition("=")
        name, _, kind = kind.rpartition(":")
        try:
            load = Load.parse(
                f"{kind}={rest}",
                name=name or None,
                pace=options.pace,
                filling=options.filling,
                context=context,
            )
        except ValueError as error:
            raise SystemExit(f"load: error: {error}") from None
        if load.target.tls and context is None:
            raise SystemExit(f"load: error: {text} is over TLS: give --ca")
        loads.append(load)
    return loads


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("loads", nargs="+", metavar="[NAME:]KIND=CLIENTS@ADDRESS", help=", ".join(Load.KINDS))
    add("--ca", metavar="PATH", help="the certificates that TLS servers are verified against")
    add("--pace", type=float, default=0.0, help="requests per second of each load (no limit)")
    add("--filling", type=int, default=0, metavar="BYTES", help="make requests longer")
    add("--seconds", type=float, default=10.0, help="how long to run (10)")
    add("--driven", action="store_true", help="take commands from standard input instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
