"""The control socket: who may use it, what it says, and that no client disturbs its server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import select
import socket
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from pulsar.actors import control, control_client, control_messages
from pulsar.actors.control import ControlServer
from pulsar.actors.control_client import Address, ControlClient, connect, discover
from pulsar.actors.control_messages import ServerStatus
from pulsar.errors import ConnectionClosed, ControlError, ImproperlyConfigured
from tests.support.control import Fake, controlled, only
from tests.support.privileges import unprivileged
from tests.support.process import PATIENCE

linux = pytest.mark.skipif(sys.platform != "linux", reason="this is a matter of Linux")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can become another user"
)

NOBODY = 65534
OWN_NAME = f"@pulsar/{os.geteuid()}/{os.getpid()}"

Run = Callable[..., Any]


class Talker:
    """A client that can misbehave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, path: Path | str) -> Self:
        # uvloop takes abstract names as connected sockets only.
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, command: str, **arguments: Any) -> None:
        self.send_line(json.dumps({"command": command, **arguments}).encode())

    def send_line(self, line: bytes) -> None:
        self.writer.write(line + b"\n")

    async def receive(self) -> dict[str, Any]:
        answer = json.loads(await self.reader.readline())
        assert isinstance(answer, dict)
        return answer

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.send(command, **arguments)
        return await self.receive()

    async def refusal(self, line: bytes) -> str:
        """What is said to a line that is no good request."""
        self.send_line(line)
        answer = await self.receive()
        assert answer.keys() == {"ok", "error"}
        assert answer["ok"] is False
        assert "Traceback" not in answer["error"]
        return str(answer["error"])

    async def at_end(self) -> bool:
        """Wait for the end of what the server sends; True when nothing came before."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    async def leave(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


@asynccontextmanager
async def serving(
    fake: Fake, where: Path | str, path: str = ""
) -> AsyncIterator[tuple[ControlServer, Callable[[], Any]]]:
    """A control server, and what connects to it; all connections are closed behind the block."""
    server = ControlServer(fake, str(where), fake.name)
    await server.start()
    talkers = []

    async def talk() -> Talker:
        talkers.append(await Talker.to(path or where))
        return talkers[-1]

    try:
        yield server, talk
    finally:
        for talker in talkers:
            await talker.leave()
        await server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


# What is said


def test_a_server_says_how_it_is(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake()
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            answer = await talker.ask("status")
            assert answer == {"ok": True, "result": fake.status()}
            assert ServerStatus.of(answer["result"]).applications[0].slots[0].memory == 32 * 2**20
            # Another request on the same connection, and two at a time.
            assert await talker.ask("config") == {"ok": True, "result": fake.config()}
            talker.send("status")
            talker.send("config")
            assert await talker.receive() == answer
            assert await talker.receive() == {"ok": True, "result": fake.config()}

    run(main())


def test_what_is_no_json_is_said_as_text(run: Run, path: Path) -> None:
    class Odd(Fake):
        def config(self) -> dict[str, dict[str, list[Any]]]:
            return {"echo": {"when_ready": [len, "keyword"], "chdir": [Path("/srv"), "default"]}}

    async def main() -> None:
        async with serving(Odd(), path) as (_, talk):
            answer = await (await talk()).ask("config")
            assert answer["result"]["echo"] == {
                "when_ready": ["<built-in function len>", "keyword"],
                "chdir": ["/srv", "default"],
            }

    run(main())


def test_a_reload_tells_how_far_it_is(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake()
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            talker.send("reload")
            assert await talker.receive() == {"progress": "generation 2 starts"}
            assert await talker.receive() == {"progress": "generation 2 serves"}
            assert await talker.receive() == {"ok": True, "result": None}
            assert fake.generation == 2

    run(main())


def test_a_failed_reload_tells_why(run: Run, path: Path) -> None:
    async def main() -> None:
        # A name of a file that is no UTF-8 is no reason to say nothing.
        fake = Fake(failure="Traceback ...\n\nSyntaxError: invalid syntax (\udcff.py)")
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            await talker.ask("reload")
            assert await talker.receive() == {
                "ok": False,
                "error": "Traceback ...\n\nSyntaxError: invalid syntax (\\udcff.py)",
            }
            fake.failure = ""
            await talker.ask("reload")
            await talker.receive()
            assert await talker.receive() == {"ok": True, "result": None}

    run(main())


def test_the_scale_is_changed(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake(applications=("echo", "chat"))
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            answer = await talker.ask("scale", workers=4, application="chat")
            assert answer == {"ok": True, "result": None}
            assert fake.workers == {"echo": 2, "chat": 4}
            assert await talker.ask("scale", workers=4) == {
                "ok": False,
                "error": "say which application: echo, chat",
            }

    run(main())


def test_a_server_is_stopped(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping(Fake):
        def stop(self, graceful: bool = True) -> None:
            super().stop(graceful)
            monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.01)

    async def main() -> None:
        fake = Stopping()
        async with serving(fake, path) as (server, talk):
            talker = await talk()
            assert await talker.ask("stop") == {"ok": True, "result": None}
            # Who waits for the end is not sent away for asking nothing.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(talker.at_end(), 0.1)
            await server.close()
            assert await talker.at_end()
        assert fake.calls == ["stop True"]

    run(main())


def test_a_server_is_stopped_at_once(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake()
        async with serving(fake, path) as (_, talk):
            await (await talk()).ask("stop", graceful=False)
        assert fake.calls == ["stop False"]

    run(main())


# What is refused

BAD_LINES = [
    (b"", "a request is one JSON object on one line: "),
    (b"status", "a request is one JSON object on one line: "),
    (b'{"command": "status"', "a request is one JSON object on one line: "),
    (b'{"command": "status"} {}', "a request is one JSON object on one line: "),
    (b'{"command": "\xff"}', "a request is one JSON object on one line: "),
    (b"[" * 60000, "a request is one JSON object on one line: "),
    (b"9" * 5000, "a request is one JSON object on one line: "),
    (b'["status"]', 'a request is a JSON object, as in {"command": "status"}'),
    (b"null", 'a request is a JSON object, as in {"command": "status"}'),
    (b"{}", 'a request is a JSON object, as in {"command": "status"}'),
    (b'{"command": 1}', 'a request is a JSON object, as in {"command": "status"}'),
    (
        b'{"command": "relaod"}',
        (
            "there is no command 'relaod'; did you mean reload?; "
            "there are: status, config, reload, scale, stop"
        ),
    ),
    (b'{"command": "' + b"x" * 60000 + b'"}', "there is no command 'xxxxxxxx"),
    (b'{"command": "status", "now": 1}', "status: Object contains unknown field `now`"),
    (b'{"command": "scale"}', "scale: Object missing required field `workers`"),
    (
        b'{"command": "scale", "workers": "4"}',
        "scale: Expected `int`, got `str` - at `$.workers`",
    ),
    (b'{"command": "stop", "graceful": 0}', "stop: Expected `bool`, got `int` - at `$.graceful`"),
]


def test_bad_requests_get_a_sentence(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake()
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            for line, reason in BAD_LINES:
                said = await talker.refusal(line)
                assert said.startswith(reason), line[:80]
                assert len(said) < 200
            assert (await talker.ask("status"))["ok"]
        assert fake.calls == []

    run(main())


def test_no_bytes_harm_the_server(run: Run, path: Path) -> None:
    chance = random.Random(20)
    seeds = [b'{"command": "scale", "workers": 4, "application": null}', b'{"command": "status"}']

    def garbled() -> bytes:
        line = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(line))
            line[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        return bytes(line.replace(b"\n", b" "))

    async def main() -> None:
        async with serving(Fake(), path) as (_, talk):
            talker = await talk()
            for _ in range(300):
                talker.send_line(line := garbled())
                assert "ok" in await talker.receive(), line
            assert (await talker.ask("status"))["ok"]

    run(main())


def test_an_error_in_the_server_is_logged_and_told(
    run: Run, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Fake):
        def status(self) -> dict[str, Any]:
            raise KeyError("workers")

        def config(self) -> dict[str, dict[str, list[Any]]]:
            return {"\ud800": {}}

        async def scale(self, workers: int, application: str | None) -> None:
            raise ZeroDivisionError("oh")

    async def main() -> None:
        async with serving(Broken(), path) as (_, talk):
            talker = await talk()
            more = "; the server's log says more"
            assert await talker.refusal(b'{"command": "status"}') == f"KeyError: 'workers'{more}"
            said = await talker.refusal(b'{"command": "scale", "workers": 1}')
            assert said == f"ZeroDivisionError: oh{more}"
            assert (await talker.refusal(b'{"command": "config"}')).startswith("UnicodeEncodeError")

    run(main())
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info is not None for record in failures] == [True] * 3


# What is limited


def test_a_request_that_is_too_long_ends_the_connection(run: Run, path: Path) -> None:
    async def main() -> None:
        async with serving(Fake(), path) as (_, talk):
            talker, other = await talk(), await talk()
            assert await talker.refusal(b"x" * 70000) == "a request has at most 65536 bytes"
            assert await talker.at_end()
            # As long as may be; and one without an end.
            longest = json.dumps({"command": "stat" + "u" * 70000}).encode()[:65000] + b'"}'
            assert (await other.refusal(longest)).startswith("there is no command")
            assert (await other.refusal(b"x" * 300000)).startswith("a request has at most")

    run(main())


def test_a_request_that_does_not_come_ends_the_connection(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.05)

    async def main() -> None:
        async with serving(Fake(), path) as (_, talk):
            for sent in (b"", b'{"command": "st'):
                talker = await talk()
                talker.writer.write(sent)
                answer = await talker.receive()
                assert answer == {"ok": False, "error": "no request came for 0.05 seconds"}
                assert await talker.at_end()

    run(main())


def test_there_are_so_many_connections_and_no_more(run: Run, path: Path) -> None:
    async def main() -> None:
        async with serving(Fake(), path) as (_, talk):
            talkers = [await talk() for _ in range(16)]
            for talker in talkers:
                assert (await talker.ask("status"))["ok"]
            late = await talk()
            assert await late.receive() == {
                "ok": False,
                "error": "there are 16 connections already",
            }
            assert await late.at_end()
            await talkers[3].leave()
            # The server may hear of it a little later.
            async with asyncio.timeout(PATIENCE):
                while not await is_answered(await talk()):
                    pass

    async def is_answered(talker: Talker) -> bool:
        try:
            answer = await talker.ask("status")
            return bool(answer["ok"])
        except (OSError, ValueError):
            return False

    run(main())


def test_a_client_that_does_not_read_is_cut_off(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT", 0.05)

    class Long(Fake):
        def config(self) -> dict[str, dict[str, list[Any]]]:
            return {"echo": {"bind": ["x" * 2**20, "default"]}}

    async def main() -> None:
        async with serving(Long(), path) as (_, talk):
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.connect(str(path))
                deaf.sendall(b'{"command": "config"}\n')
                await asyncio.to_thread(wait_for_hang_up, deaf)
            assert (await (await talk()).ask("status"))["ok"]

    run(main())


def wait_for_hang_up(sock: socket.socket) -> None:
    """Wait until the other end is closed, without reading what it has sent."""
    poller = select.poll()
    poller.register(sock, 0)
    assert poller.poll(PATIENCE * 1000)


def test_progress_that_nobody_reads_is_bounded(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_ANSWER", 2**20)

    class Chatty(Fake):
        async def reload(self, progress: Callable[[str], None]) -> None:
            for _ in range(10000):
                progress("x" * 1000)
            await self._note("reloaded")

    async def main() -> None:
        fake = Chatty()
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            talker.send("reload")
            await fake.until("reloaded")
            try:
                received = await talker.reader.read()
            except ConnectionResetError:
                received = b""
            assert len(received) < 5 * 2**20
            assert b'"ok"' not in received

    run(main())


# Clients that go away


def test_a_client_that_has_said_all_is_answered(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake()
        fake.gate = asyncio.Event()
        async with serving(fake, path) as (_, talk):
            quick, slow = await talk(), await talk()
            # `echo ... | nc -U`, with and without an end of the line.
            quick.writer.write(b'{"command": "status"}')
            quick.writer.write_eof()
            assert (await quick.receive())["ok"]
            assert await quick.at_end()
            slow.send("reload")
            slow.writer.write_eof()
            await fake.until("reload")
            fake.gate.set()
            assert [await slow.receive() for _ in range(3)][-1] == {"ok": True, "result": None}

    run(main())


@pytest.mark.parametrize("command", ["reload", "scale"])
def test_work_goes_on_without_the_client(run: Run, path: Path, command: str) -> None:
    async def main() -> None:
        fake = Fake()
        fake.gate = asyncio.Event()
        async with serving(fake, path) as (_, talk):
            talker = await talk()
            if command == "reload":
                talker.send("reload")
                await talker.receive()
            else:
                talker.send("scale", workers=4)
                await talker.writer.drain()
            await talker.leave()
            other = await talk()
            assert (await other.ask("status"))["result"]["generation"] == 1
            fake.gate.set()
            await fake.until("reloaded" if command == "reload" else "scale echo 4")
            assert (await other.ask("status"))["ok"]

    run(main())


def test_one_reload_at_a_time_and_those_who_come_meanwhile_share_the_next(
    run: Run, path: Path
) -> None:
    async def main() -> None:
        fake = Fake()
        fake.gate = asyncio.Event()
        async with serving(fake, path) as (_, talk):
            first, second, third = [await talk() for _ in range(3)]
            assert await first.ask("reload") == {"progress": "generation 2 starts"}
            for talker in (second, third):
                assert await talker.ask("reload") == {
                    "progress": "another reload is under way: "
                    "the next one begins when that has ended"
                }
            assert fake.calls == ["reload"]
            fake.gate.set()
            for talker in (second, third):
                assert await talker.receive() == {"progress": "generation 3 starts"}
                assert await talker.receive() == {"progress": "generation 3 serves"}
                assert await talker.receive() == {"ok": True, "result": None}
            assert await first.receive() == {"progress": "generation 2 serves"}
            assert fake.calls == ["reload", "reloaded"] * 2
            # The next one begins anew.
            assert await second.ask("reload") == {"progress": "generation 4 starts"}

    run(main())


def test_a_failed_reload_does_not_keep_the_next_from_beginning(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake(failure="no")
        fake.gate = asyncio.Event()
        async with serving(fake, path) as (_, talk):
            first, second = await talk(), await talk()
            await first.ask("reload")
            await second.ask("reload")
            fake.gate.set()
            assert await first.receive() == {"ok": False, "error": "no"}
            await second.receive()
            assert await second.receive() == {"ok": False, "error": "no"}
            assert fake.calls == ["reload", "reload"]

    run(main())


# The socket


def test_closing_tells_those_who_wait_and_leaves_nothing(run: Run, path: Path) -> None:
    async def main() -> None:
        fake = Fake(name="shop")
        fake.gate = asyncio.Event()
        server = ControlServer(fake, str(path), fake.name)
        await server.start()
        waiting, idle = await Talker.to(path), await Talker.to(path)
        await waiting.ask("reload")
        assert path.exists()
        await server.close()
        assert not path.exists()
        assert server.address == ""
        assert await waiting.receive() == {"ok": False, "error": "shop has stopped meanwhile"}
        assert await waiting.at_end()
        assert await idle.at_end()
        assert fake.calls == ["reload"]
        await waiting.leave()
        await idle.leave()
        await server.close()

    run(main())


def test_only_its_owner_may_open_the_file(run: Run, path: Path) -> None:
    async def main() -> None:
        async with serving(Fake(), path) as (server, _):
            assert server.address == str(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    run(main())


def test_the_file_of_a_server_that_died_is_replaced(run: Run, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def main() -> None:
        async with serving(Fake(), path) as (_, talk):
            assert (await (await talk()).ask("status"))["ok"]

    run(main())
    assert not path.exists()


def test_the_path_of_a_live_server_is_refused(run: Run, path: Path) -> None:
    async def main() -> None:
        async with serving(Fake(), path) as (_, talk):
            with pytest.raises(ImproperlyConfigured) as caught:
                await ControlServer(Fake(), str(path), "second").start()
            assert str(caught.value) == (
                f"control '{path}': {path} is in use; "
                "stop what listens there or choose another address"
            )
            assert (await (await talk()).ask("status"))["ok"]

    run(main())


def test_a_path_is_taken_from_where_the_server_started(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with serving(Fake(), "@control") as (server, _):
            assert server.address == str(tmp_path / "@control")

    run(main())


def test_no_control_socket(run: Run) -> None:
    async def main() -> None:
        server = ControlServer(Fake(), "off", "fake")
        await server.start()
        assert server.address == ""
        await server.close()

    run(main())


def test_elsewhere_there_are_no_abstract_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "LINUX", False)
    caplog.set_level(logging.DEBUG, "pulsar")

    async def main() -> None:
        server = ControlServer(Fake(), "auto", "fake")
        await server.start()
        assert server.address == ""
        await server.close()

    run(main())
    assert "fake has no control socket: name a path for one" in caplog.messages


@pytest.mark.parametrize("system", ["linux", "other"])
def test_without_a_process_to_watch_the_end_of_the_connection_is_the_servers(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    if system == "other":
        for module in (control_client, control_messages):
            monkeypatch.setattr(module, "LINUX", False)
    else:
        monkeypatch.setattr(os, "pidfd_open", not_permitted, raising=False)

    async def main() -> None:
        fake = Fake()
        async with serving(fake, path) as (server, _):
            with connect(Address(str(path)), PATIENCE) as client:
                stop = partial(client.stop, graceful=True, timeout=PATIENCE)
                ending = asyncio.create_task(asyncio.to_thread(stop))
                await fake.stopped.wait()
                assert not ending.done()
                await server.close()
                assert await ending is True

    run(main())


def not_permitted(*_: object) -> int:
    raise PermissionError


@pytest.mark.parametrize("watched", [True, False])
def test_a_server_that_does_not_stop_in_time(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    if not watched:
        monkeypatch.setattr(os, "pidfd_open", not_permitted, raising=False)

    async def main() -> None:
        async with serving(Fake(), path):
            with connect(Address(str(path)), PATIENCE) as client:
                stop = partial(client.stop, graceful=True, timeout=0.3)
                assert await asyncio.to_thread(stop) is False

    run(main())


# Names that anybody may take


@contextmanager
def squatter(name: str, uid: int | None = None) -> Iterator[socket.socket]:
    """A listening socket of ours, or of user ``uid``, with an abstract name."""
    with socket.socket(socket.AF_UNIX) as sock, ExitStack() as stack:
        if uid is not None:
            stack.enter_context(unprivileged())
        sock.bind(f"\0{name.removeprefix('@')}")
        sock.listen()
        stack.close()
        yield sock


@linux
def test_the_name_says_whose_server_it_is(run: Run) -> None:
    async def main() -> None:
        server = ControlServer(Fake(), "auto", "fake")
        await server.start()
        assert server.address == OWN_NAME
        [address] = [found for found in discover() if found.pid == os.getpid()]
        assert address == Address(f"\0{OWN_NAME[1:]}", os.geteuid(), os.getpid())
        assert str(address) == OWN_NAME
        talker = await Talker.to(address.path)
        assert (await talker.ask("status"))["ok"]
        # A socket that is connected has the name of the one that listens; it is no server.
        assert [found.pid for found in discover()].count(os.getpid()) == 1
        await talker.leave()
        await server.close()
        assert os.getpid() not in [found.pid for found in discover()]

    run(main())


@linux
def test_who_takes_the_name_takes_the_control_and_no_more(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        server = ControlServer(Fake(), "auto", "shop")
        await server.start()
        assert server.address == ""
        await server.close()

    with squatter(OWN_NAME):
        run(main())
    [message] = caplog.messages
    assert message.startswith(f"shop cannot be controlled: {OWN_NAME} is in use")


@linux
@as_root
def test_another_user_is_turned_away(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(Fake(name="shop"), "auto", f"\0{OWN_NAME[1:]}") as (_, talk):
            for _ in range(20):
                with unprivileged():
                    stranger = await talk()
                stranger.writer.write(b'{"command": "stop"}\n')
                assert await stranger.at_end()
            assert (await (await talk()).ask("status"))["ok"]

    run(main())
    [message] = [text for text in caplog.messages if "turned away" in text]
    process = f"process {os.getpid()} of uid {NOBODY}"
    assert message == f"{process} may not control shop, and was turned away"


@linux
@as_root
def test_root_controls_everybodys_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = ControlServer(Fake(), "auto", "fake")
        with unprivileged():
            await server.start()
        assert server.address == f"@pulsar/{NOBODY}/{os.getpid()}"
        [address] = listed(monkeypatch, os.getpid())
        with connect(address, PATIENCE) as client:
            status = await asyncio.to_thread(client.request, "status", timeout=PATIENCE)
            assert status["name"] == "fake"
        await server.close()

    run(main())


def listed(monkeypatch: pytest.MonkeyPatch, *pids: int) -> list[Address]:
    only(monkeypatch, *pids)
    return discover()


@linux
def test_a_name_with_another_process_id_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = 10**9 + os.getpid()  # no process has it, and no other test takes the name
    with squatter(f"@pulsar/{os.geteuid()}/{pid}"):
        [address] = listed(monkeypatch, pid)
        with pytest.raises(ControlError) as caught:
            connect(address, PATIENCE)
    who = f"process {os.getpid()} of uid {os.geteuid()}"
    assert str(caught.value) == f"the control socket {address} is held by {who}"


@linux
@as_root
@pytest.mark.parametrize("uid", [0, 4711])
def test_a_name_with_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    with squatter(f"@pulsar/{uid}/{os.getpid()}", NOBODY):
        [address] = listed(monkeypatch, os.getpid())
        assert address.uid == uid
        with pytest.raises(ControlError, match=f"is held by process .* of uid {NOBODY}$"):
            connect(address, PATIENCE)


@linux
@as_root
def test_root_finds_all_servers_and_others_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with squatter(f"@pulsar/{NOBODY}/{os.getpid()}", NOBODY), squatter(OWN_NAME):
        assert [found.uid for found in listed(monkeypatch, os.getpid())] == [0, NOBODY]
        with unprivileged():
            [address] = discover()
            assert address.uid == NOBODY
        # Root trusts the owner's name at the owner's process; the owner trusts himself.
        connect(address, PATIENCE).close()
        with unprivileged():
            connect(address, PATIENCE).close()


@linux
@as_root
def test_a_path_where_another_user_listens_is_not_trusted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0{path}")
        sock.listen()
        # The kernel says root listens here: everybody trusts root. Root trusts any path it names.
        with unprivileged():
            connect(Address(f"\0{path}"), PATIENCE).close()
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: 4711)
            connect(Address(f"\0{path}"), PATIENCE).close()
    with squatter(f"@{path}", NOBODY), monkeypatch.context() as patch:
        connect(Address(f"\0{path}"), PATIENCE).close()
        patch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(ControlError, match=f"of uid {NOBODY}$"):
            connect(Address(f"\0{path}"), PATIENCE)


def test_other_names_are_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    head = "Num       RefCount Protocol Flags    Type St Inode Path"
    start = "00000000f3ac8b1c: 00000002 00000000"
    lines = [
        f"{start} 00010000 0001 01 12345 @pulsar/{me}/20",
        f"{start} 00010000 0001 01   123 @pulsar/{me}/3",
        f"{start} 00010000 0001 01 12345 @pulsar/{me}/3",
        f"{start} 00000000 0001 03 12345 @pulsar/{me}/4",
        f"{start} 00010000 0005 01 12345 @pulsar/{me}/5",
        f"{start} 00010000 0001 01 12345 /srv/@pulsar/{me}/6",
        f"{start} 00010000 0001 01 12345 @pulsar/{me}/7/8",
        f"{start} 00010000 0001 01 12345 @pulsar/{me}/9@",
        f"{start} 00010000 0001 01 12345 @pulsar/who/10",
        f"{start} 00010000 0001 01 12345",
    ]
    table = tmp_path / "unix"
    table.write_bytes("\n".join([head, *lines, ""]).encode() + b"\xff\n")
    monkeypatch.setattr(control_client, "_TABLE", table)
    assert [address.pid for address in discover()] == [3, 20]
    # Root sees the rest, and nobody else does.
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert discover() == []


def test_no_table_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "_TABLE", tmp_path / "missing")
    assert discover() == []


# The client


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[ControlClient]:
    """A client of a server that reads a line, says ``answers``, and hangs up."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            while b"\n" not in connection.recv(100):
                pass
            for part in answers:
                try:
                    connection.sendall(part)
                except OSError:
                    return

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with connect(Address(str(path)), PATIENCE) as client:
                yield client
        finally:
            thread.join(PATIENCE)


def test_the_client_joins_what_comes_in_parts(path: Path) -> None:
    heard: list[str] = []
    parts = (b'{"progress": "o', b'ne"}\n{"progress": "two"}\n{"ok": true, "res', b'ult": [1]}\n')
    with answering(path, *parts) as client:
        assert client.request("reload", timeout=PATIENCE, progress=heard.append) == [1]
    assert heard == ["one", "two"]


def test_progress_need_not_be_heard(path: Path) -> None:
    with answering(path, b'{"progress": "one"}\n{"ok": true}\n') as client:
        assert client.request("reload", timeout=PATIENCE) is None


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (b'{"ok": false, "error": "no"}\n', ControlError, "^no$"),
        (b"pong\n", ControlError, "the server's answer is not understood: "),
        (b"[" * 60000 + b"\n", ControlError, "the server's answer is not understood: "),
        (b'{"ok": 1}\n', ControlError, "the server's answer is not understood: "),
        (b"", ConnectionClosed, "the server has closed the connection without an answer"),
        (b'{"ok": tr', ConnectionClosed, "the server has closed the connection"),
    ],
)
def test_answers_that_are_no_results(
    path: Path, answer: bytes, error: type[Exception], reason: str
) -> None:
    with answering(path, answer) as client, pytest.raises(error, match=reason):
        client.request("status", timeout=PATIENCE)


def test_an_endless_answer_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "MAX_ANSWER", 100_000)
    with (
        answering(path, b"x" * 2**22) as client,
        pytest.raises(ControlError, match="the server's answer is longer than 100000 bytes"),
    ):
        client.request("status", timeout=PATIENCE)


def test_a_status_that_is_none() -> None:
    with pytest.raises(ControlError, match="the server's status is not understood: Object missing"):
        ServerStatus.of({"name": "fake"})


def test_a_server_that_says_nothing(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            connect(Address(str(path)), PATIENCE) as client,
            pytest.raises(TimeoutError),
        ):
            client.request("status", timeout=0.05)


def test_a_server_that_does_not_accept(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with (
            connect(Address(str(path)), PATIENCE),
            pytest.raises(TimeoutError, match=r"it has not accepted within 0\.05 seconds"),
        ):
            connect(Address(str(path)), 0.05)


def test_nobody_is_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(Address(str(path)), PATIENCE)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        connect(Address(str(path)), PATIENCE)


@linux
def test_the_end_of_the_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with controlled() as server:
        [address] = listed(monkeypatch, server.process.pid)
        with connect(address, PATIENCE) as client:
            assert client.pid == server.process.pid
            assert client.stop(graceful=True, timeout=PATIENCE)
        # Nobody has reaped it so far, and it has ended all the same.
        assert server.process.poll() == 0
        server.wait()
