"""The commands for servers that run: what is typed, what is read, and the exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pulsar import console
from pulsar.actors import control_client, control_messages
from pulsar.cli import main
from pulsar.console import COMMANDS, duration, lag, memory, printable, table
from tests.support.control import ROOT, Fake, controlled, only
from tests.support.privileges import unprivileged
from tests.support.process import PATIENCE, ServerProcess, clean_environment

linux = pytest.mark.skipif(sys.platform != "linux", reason="servers are found on Linux only")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Exit code, standard output, standard error.
Outcome = tuple[Any, str, str]
Typed = Callable[..., Outcome]
Start = Callable[..., ServerProcess]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run ``pulsar ARGUMENTS`` in this process."""

    def typed(*arguments: object) -> Outcome:
        try:
            main([str(argument) for argument in arguments])
            code: Any = 0
        except SystemExit as exc:
            code = exc.code
        return (code, *capsys.readouterr())

    return typed


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start servers, which end behind the test. No others are seen."""
    pids: list[int] = []
    only(monkeypatch)
    with ExitStack() as stack:

        def start(name: str = "fake", **options: Any) -> ServerProcess:
            server = stack.enter_context(controlled(name, **options))
            pids.append(server.process.pid)
            only(monkeypatch, *pids)
            return server

        yield start


# Which servers there are


@linux
def test_no_server(typed: Typed, start: Start) -> None:
    reason = "pulsar: error: no server of this user runs here, or none that can be controlled\n"
    for command in COMMANDS:
        arguments = ["4"] if command == "scale" else []
        assert typed(command, *arguments) == (3, "", reason)


def test_no_server_where_none_can_be_found(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control_client, "_TABLE", tmp_path / "missing")
    monkeypatch.setattr(console, "LINUX", False)
    reason = "servers are found on Linux only: name the socket with --control PATH"
    assert typed("ps") == (3, "", f"pulsar: error: {reason}\n")


@linux
def test_ps_lists_all_servers(typed: Typed, start: Start) -> None:
    first, second = start("shop", applications=["echo", "chat"]), start("x" * 20)
    rows = [
        (first, "shop", "2/4", ", ".join(["127.0.0.1:8060, [::1]:8060"] * 2)),
        (second, "x" * 20, "1/2", "127.0.0.1:8060, [::1]:8060"),
    ]
    code, out, err = typed("ps")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == [
        *("PID", "NAME", "STATE", "WORKERS", "GENERATION", "UPTIME", "ADDRESSES")
    ]
    width = max(len(str(server.process.pid)) for server in (first, second))
    expected = [
        f"{server.process.pid:>{width}}  {name:20}  running  {workers:>7}           1   "
        f"3h 5m  {addresses}"
        for server, name, workers, addresses in sorted(rows, key=lambda row: row[0].process.pid)
    ]
    assert lines == expected
    assert head.index("ADDRESSES") == lines[0].index("127.0.0.1")


@linux
def test_ps_prints_json(typed: Typed, start: Start) -> None:
    server = start("shop")
    code, out, err = typed("ps", "--json")
    assert (code, err) == (0, "")
    [status] = json.loads(out)
    assert (status["name"], status["pid"]) == ("shop", server.process.pid)


@linux
def test_what_cannot_be_trusted_is_left_out(
    typed: Typed, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start("shop")
    pid = 10**9 + os.getpid()  # no process has it, and no other test takes the name
    name = f"pulsar/{os.geteuid()}/{pid}"
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0{name}")
        squatter.listen()
        only(monkeypatch, pid, server.process.pid)
        code, out, err = typed("ps")
    assert code == 0
    assert len(out.splitlines()) == 2
    who = f"process {os.getpid()} of uid {os.geteuid()}"
    assert err == f"pulsar: warning: the control socket @{name} is held by {who}: left out\n"


@linux
@as_root
def test_nobody_elses_server_is_seen(typed: Typed, start: Start) -> None:
    start("shop")
    with unprivileged():
        assert typed("ps")[0] == 3


@linux
def test_a_server_that_does_not_answer_is_listed(
    typed: Typed, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PATIENCE", 0.1)
    name = f"pulsar/{os.geteuid()}/{os.getpid()}"
    me = os.getpid()
    only(monkeypatch, me)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(f"\0{name}")
        stuck.listen()
        code, out, err = typed("ps")
        assert (code, err) == (0, "")
        assert out.splitlines()[1].split() == [str(me), "-", "no", "answer", "-", "-", "-", "-"]
        reason = (
            f"pulsar: error: no good answer from process {me}: nothing came within 0.1 seconds\n"
        )
        for command in ("status", "reload", "stop", "config"):
            assert typed(command) == (1, "", reason)
        # Now its queue is full: the connections above are still in it.
        stuck.listen(0)
        reason = f"no good answer from process {me}: it has not accepted within 0.1 seconds"
        assert typed("status") == (1, "", f"pulsar: error: {reason}\n")
        assert json.loads(typed("ps", "--json")[1]) == [
            {"pid": me, "error": "it has not accepted within 0.1 seconds"}
        ]


@linux
@pytest.mark.parametrize("answer", [b"", b"pong\n", b'{"ok": true, "result": {}}\n'])
def test_what_is_no_server_of_ours(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0pulsar/{os.geteuid()}/{os.getpid()}")
        listener.listen()
        only(monkeypatch, os.getpid())
        thread = threading.Thread(target=serve)
        thread.start()
        code, _, err = typed("status")
        thread.join(PATIENCE)
    if answer:
        assert code == 1
        assert f"no good answer from process {os.getpid()}: the server's " in err
        assert "is not understood" in err
    else:
        assert code == 3


# Which server is meant


@linux
def test_one_of_several_must_be_named(typed: Typed, start: Start) -> None:
    servers = [start("shop", applications=["echo"]), start("bar", applications=["echo", "chat"])]
    names = dict(zip((server.process.pid for server in servers), ("shop", "bar"), strict=True))
    listed = ", ".join(f"{names[pid]} ({pid})" for pid in sorted(names))
    for command in ("status", "reload", "stop", "config"):
        reason = f"several servers run, name one of them: {listed}"
        assert typed(command) == (2, "", f"pulsar: error: {reason}\n")
    reason = f"several servers are called 'echo', give the pid: {listed}"
    assert typed("status", "echo") == (2, "", f"pulsar: error: {reason}\n")
    reason = f"no server is called 'shopp'; there are: {listed}"
    assert typed("status", "shopp") == (3, "", f"pulsar: error: {reason}\n")
    shop, bar = servers
    for target, server in (
        ("shop", shop),
        ("bar", bar),
        ("chat", bar),
        (shop.process.pid, shop),
        (bar.process.pid, bar),
    ):
        code, out, err = typed("status", target, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["pid"] == server.process.pid


@linux
def test_a_process_id_comes_before_a_name(typed: Typed, start: Start) -> None:
    first = start("shop")
    start(str(first.process.pid))
    code, out, _ = typed("status", first.process.pid, "--json")
    assert (code, json.loads(out)["name"]) == (0, "shop")


@linux
def test_a_server_at_a_path(typed: Typed, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "control"
    start("shop", where=str(path))
    start("other")
    code, out, err = typed("ps", "--control", path)
    assert (code, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == ["NAME", "shop"]
    assert typed("status", "--control", path, "--json")[0] == 0
    assert typed("status", "shop", "--control", path, "--json")[0] == 0
    assert typed("status", "other", "--control", path)[0] == 3


def test_where_the_system_does_not_say_who_listens(
    typed: Typed, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control"
    server = start("shop", where=str(path))
    for module in (control_client, control_messages):
        monkeypatch.setattr(module, "LINUX", False)
    who = f"shop ({server.process.pid})"
    assert typed("stop", server.process.pid, "--control", path) == (0, f"{who} has stopped\n", "")
    assert server.wait() == 0


def test_nobody_listens_at_the_path(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "control"
    reason = f"pulsar: error: no server can be reached at {path}: No such file or directory\n"
    assert typed("status", "--control", path) == (3, "", reason)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    reason = f"pulsar: error: no server can be reached at {path}: Connection refused\n"
    assert typed("ps", "--control", path) == (3, "", reason)
    long = tmp_path / ("x" * 200)
    reason = f"pulsar: error: no server can be reached at {long}: AF_UNIX path too long\n"
    assert typed("ps", "--control", long) == (3, "", reason)


@linux
@as_root
def test_somebody_else_listens_at_the_path(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(str(path))
        squatter.listen()
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        monkeypatch.setattr(control_messages.Peer, "of", lambda _: control_messages.Peer(99, 1001))
        reason = f"the control socket {path} is held by process 99 of uid 1001"
        assert typed("stop", "--control", path) == (1, "", f"pulsar: error: {reason}\n")


# What the commands do


@linux
def test_the_status(typed: Typed, start: Start) -> None:
    server = start("shop", applications=["echo", "chat"])
    code, out, err = typed("status")
    assert (code, err) == (0, "")
    application = """\
        127.0.0.1:8060, [::1]:8060
        1 of 2 workers ready, 1 restarted
        last failure: slot 1: killed by SIGKILL
        SLOT   PID  STATE     GENERATION  UPTIME  CONNECTIONS  REQUESTS     LAG    MEMORY
           0  5000  running            1   1m 2s           12     34567  0.4 ms  32.0 MiB
           1     -  starting           1       -            -         -       -         -
        """
    lines = [line.removeprefix("        ") for line in application.splitlines()[:-1]]
    assert out.splitlines() == [
        f"shop ({server.process.pid}), pulsar 1.2.3: running, ready",
        "generation 1, up 3h 5m",
        "fork server 4000 of generation 1",
        "",
        f"echo at {lines[0]}",
        *lines[1:],
        "",
        f"chat at {lines[0]}",
        *lines[1:],
    ]


@linux
def test_the_status_of_a_server_that_is_not_ready(typed: Typed, start: Start) -> None:
    server = start("shop", ready=False)
    for arguments in ([], ["--json"]):
        assert typed("status", *arguments)[0] == 1
    assert f"shop ({server.process.pid}), pulsar 1.2.3: running, not ready\n" in typed("status")[1]


@linux
def test_the_status_without_workers(typed: Typed, start: Start) -> None:
    start("shop")
    assert typed("scale", 0)[0] == 0
    said = typed("status")[1].splitlines()
    assert said[4:] == [
        "echo at 127.0.0.1:8060, [::1]:8060",
        "0 of 0 workers ready, 0 restarted",
    ]


@linux
def test_a_reload(typed: Typed, start: Start) -> None:
    server = start("shop")
    said = "generation 2 starts\ngeneration 2 serves\n"
    said += f"shop ({server.process.pid}) has been reloaded\n"
    assert typed("reload") == (0, said, "")


@linux
def test_a_reload_that_fails(typed: Typed, start: Start) -> None:
    server = start("shop", failure="Traceback (most recent\n  x\x1b[2J\nSyntaxError: invalid\n")
    reason = "Traceback (most recent\n  x\\x1b[2J\nSyntaxError: invalid\n"
    reason += f"pulsar: error: shop ({server.process.pid}) has not been reloaded, "
    reason += "it goes on as it was\n"
    assert typed("reload", "shop") == (1, "generation 2 starts\n", reason)
    assert "\ngeneration 1, " in typed("status")[1]


@linux
def test_the_scale(typed: Typed, start: Start) -> None:
    server = start("shop", applications=["echo", "chat"])
    who = f"shop ({server.process.pid})"
    assert typed("scale", 4, "--app", "chat") == (0, "chat has 4 workers\n", "")
    assert typed("scale", 5, "shop", "--app", "echo") == (0, "echo has 5 workers\n", "")
    assert typed("ps")[1].splitlines()[1].split()[3] == "7/9"
    reason = "pulsar: error: say which application: echo, chat\n"
    assert typed("scale", 0, "shop") == (1, "", reason)
    reason = "pulsar: error: there is no application 'ehco'\n"
    assert typed("scale", 1, "--app", "ehco") == (1, "", reason)
    server.stop()
    server = start("bar")
    who = f"bar ({server.process.pid})"
    assert typed("scale", 1) == (0, f"{who} has 1 worker\n", "")


@linux
@pytest.mark.parametrize("flags", [(), ("--now",)])
def test_a_stop_waits_for_the_end(typed: Typed, start: Start, flags: Sequence[str]) -> None:
    server = start("shop")
    pid = server.process.pid
    assert typed("stop", *flags) == (0, f"shop ({pid}) has stopped\n", "")
    assert server.process.poll() == 0
    server.wait()
    assert f"stop graceful={not flags}: asked for by process {os.getpid()}" in server.stderr
    assert typed("stop")[0] == 3


@linux
def test_a_stop_that_takes_too_long(typed: Typed, start: Start) -> None:
    server = start("shop", deaf=True)
    reason = f"pulsar: error: shop ({server.process.pid}) still runs after 0.2 seconds"
    assert typed("stop", "--now", "--timeout", 0.2) == (1, "", f"{reason}\n")
    advice = "; --now does not wait for requests in hand"
    assert typed("stop", "--timeout", 0.2) == (1, "", f"{reason}{advice}\n")


@linux
def test_the_settings(typed: Typed, start: Start) -> None:
    start("shop", applications=["echo", "chat"])
    code, out, err = typed("config")
    assert (code, err) == (0, "")
    settings = [
        "workers = 2                   # flag --workers",
        'bind    = ["127.0.0.1:8060"]  # default',
        "config  = unset               # default",
    ]
    assert out.splitlines() == ["# echo", *settings, "", "# chat", *settings]
    code, out, err = typed("config", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["chat"]["workers"] == [2, "flag --workers"]


# What takes too long, and what goes wrong on the way


def scripted(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, *answers: bytes | None
) -> threading.Thread:
    """A server that answers its status, then ``answers`` (None: it keeps silent until the end)."""
    status = json.dumps({"ok": True, "result": Fake("shop").status()}).encode() + b"\n"
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(f"\0pulsar/{os.geteuid()}/{os.getpid()}")
    listener.listen()
    only(monkeypatch, os.getpid())

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in (status, *answers):
                connection.recv(1000)
                if answer is None:
                    connection.recv(1000)
                else:
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    stack.callback(thread.join, PATIENCE)
    return thread


@linux
def test_a_reload_that_takes_too_long(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        scripted(monkeypatch, stack, None)
        reason = "the server does not answer in time; what it was asked for goes on"
        assert typed("reload", "--timeout", 0.1) == (1, "", f"pulsar: error: {reason}\n")


@linux
def test_a_server_that_dies_meanwhile(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        scripted(monkeypatch, stack, b'{"progress": "generation 2 starts"}\n')
        reason = "the server has closed the connection without an answer"
        assert typed("reload") == (1, "generation 2 starts\n", f"pulsar: error: {reason}\n")


@linux
def test_settings_that_are_none(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        scripted(monkeypatch, stack, b'{"ok": true, "result": [1]}\n')
        code, _, err = typed("config")
    assert code == 1
    assert err.startswith("pulsar: error: the server's settings are not understood: ")


@linux
def test_an_impatient_user(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with ExitStack() as stack:
        scripted(monkeypatch, stack, b'{"progress": "generation 2 starts"}\n')
        monkeypatch.setattr(console, "_print", interrupt)
        reason = "interrupted; what the server was asked for goes on"
        assert typed("reload") == (130, "", f"pulsar: error: {reason}\n")


# What is typed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(typed: Typed, command: str) -> None:
    code, out, err = typed(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: pulsar {command} ")
    assert "exit codes: 0 done" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("ps", "shop"), "unexpected argument 'shop'"),
        (("ps", "--jsno"), "unknown flag --jsno; did you mean --json?"),
        (("status", "a", "b"), "unexpected argument 'b'"),
        (("scale",), "the following arguments are required: N"),
        (("scale", "shop"), "argument N: 'shop' is not a number of workers"),
        (("scale", "-1"), "argument N: '-1' is not a number of workers"),
        (("stop", "--timeout", "0"), "argument --timeout: '0' is not a number of seconds above 0"),
        (("stop", "--timeout", "x"), "argument --timeout: 'x' is not a number of seconds above 0"),
        (("stop", "--timeout", "inf"), "argument --timeout: 'inf' is not a number of seconds"),
        (("stop", "--timeout", "nan"), "argument --timeout: 'nan' is not a number of seconds"),
        (("status", "--timeout", "1"), "unknown flag --timeout"),
    ],
)
def test_what_is_typed_wrong(typed: Typed, arguments: tuple[str, ...], reason: str) -> None:
    code, out, err = typed(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"pulsar {arguments[0]}: error: {reason}")
    assert err.count("\n") == 1


@linux
def test_in_a_process_of_its_own(start: Start) -> None:
    server = start("shop")
    pid = str(server.process.pid)
    # Among all servers of this user: other tests may run.
    for command, code, said in ((["ps"], 0, pid), (["status", pid], 0, f"shop ({pid})")):
        result = subprocess.run(
            [sys.executable, "-m", "pulsar", *command],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == code, result.stderr
        assert said in result.stdout


@linux
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_nobody_reads_the_output(start: Start, flags: Sequence[str]) -> None:
    start("shop")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        result = subprocess.run(
            [sys.executable, "-m", "pulsar", "ps", *flags],
            cwd=ROOT,
            env=clean_environment(),
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
    assert (result.returncode, result.stderr) == (1, b"")


# What people read


def test_a_table() -> None:
    rows = [(1, "one", None), (1000, "t\nwo\x1b", "x")]
    assert table(("N", "NAME", "LAST"), rows, right=(0,)) == [
        "   N  NAME      LAST",
        "   1  one       -",
        "1000  t wo\\x1b  x",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0s"),
        (59.9, "59s"),
        (60, "1m 0s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (86399, "23h 59m"),
        (86400, "1d 0h"),
        (1e6, "11d 13h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_sizes_and_lags() -> None:
    assert [lag(value) for value in (0.0, 0.00123, 1.26)] == ["0.0 ms", "1.2 ms", "1.3 s"]
    assert [memory(value) for value in (0, 2**20, 3.5 * 2**30)] == [
        *("0.0 MiB", "1.0 MiB", "3584.0 MiB")
    ]


def test_control_characters_are_shown() -> None:
    assert printable("a\tb\n\x1b[2J\r\x9b\u202eé") == "a\tb\n\\x1b[2J\\r\\x9b\\u202eé"
