"""The RESP server, asked by redis-py, redis-benchmark and plain sockets."""

import csv
import io
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from examples.respserver.resp import MAX_BULK, MAX_WORDS, CommandReader, ReplyError, encode
from pulsar import ProtocolError
from tests.support.plain import connect, read, read_to_the_end
from tests.support.process import EXAMPLES, PATIENCE, ServerProcess
from tests.support.programs import require_program

SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n"
MIB = 1024 * 1024


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    options = ("--bind", "127.0.0.1:0", "--event-loop", request.param)
    with ServerProcess("manage.py", *options, cwd=EXAMPLES / "respserver") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[redis.Redis]:
    host, port = server.address
    with redis.Redis(host, port, protocol=2, socket_timeout=PATIENCE, retry=None) as client:
        client.flushdb()
        yield client


@pytest.fixture
def raw(server: ServerProcess) -> Iterator[socket.socket]:
    with connect(server.address) as sock:
        yield sock


# redis-py


@pytest.mark.parametrize(
    "value", [b"", b"\r\n", bytes(range(256)), b"$5\r\nx", b"x" * MAX_BULK], ids=len
)
def test_a_value_comes_back_as_it_was(client: redis.Redis, value: bytes) -> None:
    assert client.get("key") is None
    assert client.set("key", value) is True
    assert client.get("key") == value


def test_keys(client: redis.Redis) -> None:
    assert client.mset({"a": 1, "b": 2})
    assert client.mget("a", "none", "b") == [b"1", None, b"2"]
    assert client.exists("a", "b", "none") == 2
    assert client.dbsize() == 2
    assert client.delete("a", "none") == 1
    assert client.dbsize() == 1


def test_counting(client: redis.Redis) -> None:
    assert client.incr("n") == 1
    assert client.incr("n", 41) == 42
    assert client.execute_command("DECR", "n") == 41
    assert client.get("n") == b"41"
    client.set("n", 2**63 - 1)
    with pytest.raises(redis.ResponseError, match="not an integer or out of range"):
        client.incr("n")
    assert client.get("n") == b"%d" % (2**63 - 1)


def test_lists(client: redis.Redis) -> None:
    assert client.rpush("list", "c", "d") == 2
    assert client.lpush("list", "b", "a") == 4
    assert client.lrange("list", 0, -1) == [b"a", b"b", b"c", b"d"]
    assert client.lrange("list", 1, 2) == [b"b", b"c"]
    assert client.lrange("list", -2, 9) == [b"c", b"d"]
    assert client.lrange("none", 0, -1) == []
    assert (client.lpop("list"), client.rpop("list"), client.llen("list")) == (b"a", b"d", 2)
    client.lpop("list"), client.lpop("list")
    assert client.lpop("list") is None
    assert client.exists("list") == 0


def test_a_pipeline_is_answered_in_order(client: redis.Redis) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(3000):
        pipeline.set(f"key{number}", number)
        pipeline.get(f"key{number}")
    assert pipeline.execute() == [
        reply for number in range(3000) for reply in (True, b"%d" % number)
    ]


def test_an_error_costs_nothing_but_its_command(client: redis.Redis) -> None:
    pipeline = client.pipeline(transaction=False)
    pipeline.lpush("list", "x").get("list").execute_command("NOSUCH").execute_command("GET")
    pipeline.incr("list").execute_command("INCRBY", "n", " 1").execute_command("MSET", "a")
    pipeline.get("none")
    one, *errors, none = pipeline.execute(raise_on_error=False)
    assert (one, none) == (1, None)
    wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value"
    assert [str(error).partition(" (")[0].removeprefix("Command # ") for error in errors] == [
        wrong_type,
        "unknown command 'nosuch'",
        "wrong number of arguments for 'get' command",
        wrong_type,
        "value is not an integer or out of range",
        "wrong number of arguments for 'mset' command",
    ]


def test_a_client_that_insists_on_resp3_is_told(server: ServerProcess) -> None:
    host, port = server.address
    with (
        redis.Redis(host, port, protocol=3, retry=None) as client,
        pytest.raises(redis.RedisError, match="NOPROTO unsupported protocol version"),
    ):
        client.ping()


def test_hello_and_info(client: redis.Redis) -> None:
    hello = client.execute_command("HELLO", 2)
    assert dict(zip(hello[::2], hello[1::2], strict=True))[b"proto"] == 2
    assert client.info()["server_name"] == "pulsar"
    assert client.config_get("save") == {"save": ""}


# redis-benchmark


def test_redis_benchmark(server: ServerProcess, client: redis.Redis) -> None:
    program = require_program("redis-benchmark", "redis-tools")
    host, port = server.address
    tests = ["ping_inline", "ping_mbulk", "set", "get", "incr", "lpush", "lrange_100", "mset"]
    command = [program, "-h", host, "-p", str(port), "-n", "1000", "-c", "10", "-P", "4", "--csv"]
    run = subprocess.run(
        [*command, "-t", ",".join(tests)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    rows = {row["test"].partition(" (")[0]: row for row in csv.DictReader(io.StringIO(run.stdout))}
    assert run.stderr == ""
    assert {name.upper() for name in tests} <= rows.keys()
    assert all(float(row["rps"]) > 0 for row in rows.values())
    assert client.get("counter:__rand_int__") == b"1000"
    assert client.llen("mylist") >= 1000


# Bytes


def test_inline_commands(raw: socket.socket) -> None:
    raw.sendall(b"\r\nping\r\n\n  set  key value \nGET key\r\n*0\r\necho x\n")
    expected = b"+PONG\r\n+OK\r\n$5\r\nvalue\r\n$1\r\nx\r\n"
    assert read(raw, len(expected)) == expected


def test_one_byte_at_a_time(raw: socket.socket) -> None:
    for byte in SET + b"GET k\r\n":
        raw.send(bytes([byte]))
    assert read(raw, 15) == b"+OK\r\n$4\r\na\r\nb\r\n"


def test_quit_ends_the_connection_and_what_follows_is_ignored(
    raw: socket.socket, client: redis.Redis
) -> None:
    raw.sendall(b"SET k 1\r\nQUIT\r\nSET k 2\r\n")
    assert read_to_the_end(raw) == b"+OK\r\n+OK\r\n"
    assert client.get("k") == b"1"


def test_a_client_that_ends_in_the_middle_of_a_command_is_let_go(raw: socket.socket) -> None:
    raw.sendall(b"PING\r\n" + SET[:10])
    raw.shutdown(socket.SHUT_WR)
    assert read_to_the_end(raw) == b"+PONG\r\n"


MALFORMED = {
    b"*x\r\n": "invalid multibulk length",
    b"*-1\r\n": "invalid multibulk length",
    b"*1_0\r\n": "invalid multibulk length",
    b"*%d\r\n" % (MAX_WORDS + 1): "invalid multibulk length",
    b"*%s\r\n" % (b"9" * 5000): "invalid multibulk length",
    b"*1\r\nPING\r\n": "expected '$', got 'P'",
    b"*1\r\n$\r\n": "invalid bulk length",
    b"*1\r\n$-1\r\n": "invalid bulk length",
    b"*1\r\n$%d\r\n" % (MAX_BULK + 1): "invalid bulk length",
    b"*1\r\n$4\r\nPINGPING\r\n": "a word is longer than its length says",
    b"x" * 70_000: "too big inline request",
    b"*1\r\n$" + b"1" * 70_000: "too big inline request",
    b"*9\r\n" + (b"$%d\r\n%s\r\n" % (MAX_BULK, b"x" * MAX_BULK)) * 8 + b"$1\r\n": (
        "the command is too large"
    ),
}


@pytest.mark.parametrize(("data", "reason"), MALFORMED.items(), ids=lambda x: repr(x)[:30])
def test_malformed_input_is_answered_and_ends_the_connection(
    server: ServerProcess, raw: socket.socket, client: redis.Redis, data: bytes, reason: str
) -> None:
    raw.sendall(b"PING\r\n" + data)
    assert read_to_the_end(raw) == f"+PONG\r\n-ERR Protocol error: {reason}\r\n".encode()
    host, port = raw.getsockname()
    server.wait_for(f"connection from {host}:{port} closed: {reason}")
    assert "Traceback" not in server.stderr
    assert client.ping() is True


def test_a_client_that_asks_and_never_reads_costs_little_memory(
    server: ServerProcess, raw: socket.socket, client: redis.Redis
) -> None:
    client.set("big", b"x" * MIB)
    before = resident_memory(server)
    raw.sendall(b"GET big\r\n" * 600)
    for _ in range(10):
        assert client.ping() is True
    assert resident_memory(server) - before < 300 * MIB
    # Nothing is lost for one who reads after all.
    reply = len(encode(b"x" * MIB))
    assert sum(len(read(raw, reply)) for _ in range(600)) == 600 * reply


def resident_memory(server: ServerProcess) -> int:
    """Of all its processes; what they share is counted as often as they are."""
    pids = {server.process.pid, *server.below}
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(status.partition("VmRSS:")[2].split()[0]) * 1024 for status in statuses)


# Without a server


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_reader_does_not_care_how_bytes_are_cut_up(size: int) -> None:
    stream = SET + b"GET  k\n" + SET + b"*1\r\n$0\r\n\r\n" + b"*2\r\n$1\r\n"
    commands, reader = [], CommandReader()
    for start in range(0, len(stream), size):
        data = stream[start : start + size]
        while data:
            words, data = reader.split(data)
            if words is not None:
                commands.append(words)
                reader = CommandReader()
    assert commands == [[b"SET", b"k", b"a\r\nb"], [b"GET", b"k"], [b"SET", b"k", b"a\r\nb"], [b""]]


def test_what_follows_a_command_is_handed_back() -> None:
    assert CommandReader().split(SET + b"GET") == ([b"SET", b"k", b"a\r\nb"], b"GET")
    assert CommandReader().split(b"GET k") == (None, b"")


def test_a_refused_command_is_refused_before_its_bytes_have_come() -> None:
    with pytest.raises(ProtocolError):
        CommandReader().split(b"*1\r\n$%d\r\n" % (MAX_BULK + 1))


def test_replies() -> None:
    assert encode([1, None, b"\r\n", "OK", [], ReplyError("ERR a\r\nb")]) == (
        b"*6\r\n:1\r\n$-1\r\n$2\r\n\r\n\r\n+OK\r\n*0\r\n-ERR a b\r\n"
    )
