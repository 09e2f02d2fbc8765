"""The command line: what may be typed, what is served then, and what is said otherwise."""

from __future__ import annotations

import os
import re
import runpy
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pulsar.cli import main
from pulsar.version import __version__
from tests.support.plain import connect, read_to_the_end
from tests.support.privileges import unprivileged
from tests.support.process import PATIENCE, ServerProcess, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What the fixtures typed and refused give.
Typed = Any

ANYWHERE = ("--bind", "127.0.0.1:0")

THINGS = '''
import asyncio

from pulsar import DatagramProtocol, ProtocolConsumer, Setting
from pulsar.apps.socket import SocketServer


class Echo(ProtocolConsumer):
    def data_received(self, data):
        self.write(data)
        self.finished()


class Plain(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = bytearray(100)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.transport.write(bytes(self.buffer[:nbytes]))


class Datagrams(DatagramProtocol):
    def datagram_received(self, data, addr):
        self.sendto(data, addr)


class Both(Plain, asyncio.DatagramProtocol):
    def datagram_received(self, data, addr):
        self.transport.sendto(data, addr)


class Namespace:
    Echo = Echo


async def stream(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


def consumers():
    return Echo()


def protocols():
    return Plain()


def datagrams():
    return Datagrams()


def both():
    return Both()


class Volume(Setting):
    name = "volume"
    app = "things"
    section = "Things"
    flags = ("--volume",)
    choices = ("soft", "loud")
    default = "soft"
    desc = "How loud the answer is."


class Voice(ProtocolConsumer):
    def data_received(self, data):
        loud = self.producer.name == "loud"
        self.write(data.upper() if loud else data)
        self.finished()


class Shop(SocketServer):
    """Echoes at a volume."""

    cfg_apps = ("socket", "things")

    def __init__(self, callable=Voice, **params):
        super().__init__(callable, **params)

    async def create_server(self, *args, **kw):
        server = await super().create_server(*args, **kw)
        server.name = self.cfg.volume
        return server


application = Shop(name="things", keep_alive=5, backlog=7)


async def asgi(scope, receive, send):
    pass


def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode()]


async def async_wsgi(environ, start_response):
    return wsgi(environ, start_response)


class AsgiObject:
    async def __call__(self, scope, receive, send):
        pass


class WsgiObject:
    def __call__(self, environ, start_response):
        return wsgi(environ, start_response)


asgi_object, wsgi_object = AsgiObject(), WsgiObject()


def fails():
    raise LookupError("mine")


def needs_one(thing):
    return Echo()


number = 5
instance = Plain()
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, where a module ``things`` lies; what is imported is forgotten."""
    (tmp_path / "things.py").write_text(THINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        # Of ours there must not be two, of which one has the other's classes.
        if name.partition(".")[0] != "pulsar":
            del sys.modules[name]


@pytest.fixture
def typed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, str, str]]:
    """Run a command line in this process; gives exit code, output and complaints."""
    # Without workers; a process tree says the same, see test_a_tree_says_the_same.
    monkeypatch.setenv("PULSAR_CONCURRENCY", "thread")

    def typed(*arguments: str) -> tuple[Any, str, str]:
        code: Any = 0
        try:
            main(list(arguments))
        except SystemExit as exc:
            code = exc.code
        return code, *capsys.readouterr()

    return typed


@pytest.fixture
def refused(typed: Typed) -> Callable[..., tuple[Any, str]]:
    """Run a command line that is refused in one line; gives exit code and sentence."""

    def refused(*arguments: str) -> tuple[Any, str]:
        code, out, err = typed(*arguments)
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(("pulsar: error: ", f"{''.join(arguments[:1])}: error: "))
        return code, err.partition(": error: ")[2].rstrip("\n")

    return refused


def serve(here: Path, *arguments: str, **kw: Any) -> ServerProcess:
    """``pulsar ARGUMENTS`` in a process of its own."""
    return ServerProcess("-m", "pulsar", *arguments, cwd=here, **kw)


def ask(address: Any, data: bytes = b"hello") -> bytes:
    with socket.create_connection(address, timeout=PATIENCE) as sock:
        sock.sendall(data)
        return sock.recv(100)


def ask_datagram(address: Any, data: bytes = b"hello") -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(data, address)
        return sock.recv(100)


# -- the ways to type it


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "pulsar", "serve", "things:Echo"),
        ("-m", "pulsar", "things:Echo"),
        (Path(sysconfig.get_path("scripts")) / "pulsar", "serve", "things:Echo"),
    ],
    ids=["serve", "short", "script"],
)
def test_the_ways_to_serve(here: Path, command: tuple[Any, ...]) -> None:
    with ServerProcess(*command, *ANYWHERE, cwd=here) as server:
        assert ask(server.address) == b"hello"
        assert server.stop() == 0
        assert "things:Echo has stopped" in server.stderr


def test_main_without_arguments_takes_those_of_the_process(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pulsar", "serve", "things:Echo", "--check"])
    main()
    assert capsys.readouterr().out == "things:Echo: settings and application are fine\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_the_module_runs_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pulsar", "--version"])
    runpy.run_module("pulsar", run_name="__main__")
    assert capsys.readouterr().out == f"pulsar {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["-V"], ["serve", "--version"], ["things:Echo", "--version"]],
)
def test_version(typed: Typed, arguments: list[str]) -> None:
    assert typed(*arguments) == (0, f"pulsar {__version__}\n", "")


def test_help_is_grouped_and_names_the_variables(typed: Typed) -> None:
    code, out, err = typed("--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: pulsar serve MODULE:THING [options]\n")
    headings = re.findall(r"^([A-Z]\w+):$", out, re.M)
    assert headings == ["General", "Workers", "Process", "Logging", "Sockets", "Limits", "TLS"]
    words = " ".join(out.split())
    assert "[default: 127.0.0.1:8060; PULSAR_BIND]" in words
    assert "[default: 75; PULSAR_KEEP_ALIVE]" in words
    assert "A flag wins over its environment variable" in words
    assert typed("serve", "-h") == (code, out, err)


def test_help_of_an_application_has_its_own_flags(typed: Typed) -> None:
    code, out, _ = typed("serve", "things:application", "--help")
    assert code == 0
    assert re.search(r"^Things:\n  --volume soft\|loud", out, re.M)
    assert "[default: soft; PULSAR_VOLUME]" in out


# -- nothing, or too much, was typed


@pytest.mark.parametrize("arguments", [[], ["serve"], ["--check"], ["serve", "--bind", ":0"]])
def test_nothing_to_serve(refused: Typed, arguments: list[str]) -> None:
    sentence = "MODULE:THING is missing: what shall be served? (pulsar --help explains)"
    assert refused(*arguments) == (2, sentence)


def test_flags_in_front(refused: Typed) -> None:
    sentence = "MODULE:THING comes first: pulsar serve things:Echo ..."
    assert refused("--bind", ":0", "things:Echo") == (2, sentence)
    assert refused("serve", "--check", "things:Echo") == (2, sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bnd", ":0"], "unknown flag --bnd; did you mean --bind?"),
        (["--bnd=:0"], "unknown flag --bnd; did you mean --bind?"),
        (["--volume", "loud"], "unknown flag --volume"),
        (["more"], "unexpected argument 'more'"),
        (["--bind"], "argument -b/--bind: expected one argument"),
        (["--bind", "8080"], "argument -b/--bind: '8080': a port alone is written ':8080'"),
        (["--bind", "ucp://:1"], "unknown scheme 'ucp', did you mean 'udp'?"),
        (["--workers", "x"], "argument -w/--workers: cannot be 'x': give a whole number, 0 or"),
        (["--kind", "steam"], "argument --kind: cannot be 'steam': choose auto, consumer, "),
        (["--kind", "steam"], "did you mean stream?"),
        (["--cert-file", "no.pem"], "--cert-file: cannot be 'no.pem': give the path of a file "),
        (["--chdir", "nowhere"], "argument --chdir: cannot be 'nowhere': give the path of a dir"),
        (["-c", "no.toml"], "argument -c/--config: cannot be 'no.toml': give the path of a file"),
    ],
)
def test_flags_that_are_wrong(refused: Typed, arguments: list[str], sentence: str) -> None:
    code, err = refused("things:Echo", *arguments)
    assert code == 2
    assert sentence in err


def test_an_environment_that_is_wrong(refused: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSAR_KEEP_ALIVE", "soon")
    code, err = refused("things:Echo")
    assert code == 2
    assert err.startswith("keep_alive cannot be 'soon': give a number of seconds, 0 or more")
    assert err.endswith("(environment PULSAR_KEEP_ALIVE)")


def test_a_file_that_is_wrong(refused: Typed, here: Path) -> None:
    (here / "server.toml").write_text("keep-alife = 5\n")
    sentence = "keep_alife is not a setting (file server.toml); did you mean keep_alive?"
    assert refused("things:Echo", "-c", "server.toml") == (2, sentence)


# -- modules that cannot be imported


@pytest.mark.parametrize("target", ["nothing:Echo", "things.more:Echo", "serv"])
def test_a_module_that_does_not_exist(refused: Typed, here: Path, target: str) -> None:
    module = target.partition(":")[0]
    sentence = f"there is no module {module!r}, looked for in {here} and sys.path"
    assert refused(target) == (4, sentence)


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("things.py:Echo", "things:Echo"),
        ("things.py", "things:THING"),
        ("./things.py:Echo", "things:Echo"),
        ("app/things.py:Echo", "things:Echo --chdir app"),
        ("/srv/app/things:Echo", "things:Echo --chdir /srv/app"),
    ],
)
def test_a_file_instead_of_a_module(refused: Typed, target: str, meant: str) -> None:
    assert refused(target) == (4, f"{target!r} names a file: name its module, {meant}")


def test_no_module(refused: Typed) -> None:
    sentence = "':Echo' is not MODULE:THING, as in mypackage.mymodule:MyProtocol"
    assert refused(":Echo") == (4, sentence)


@pytest.mark.parametrize(
    ("content", "last"),
    [
        ("import helper\n", "ZeroDivisionError: division by zero"),
        (
            "import no_such_dependency\n",
            "ModuleNotFoundError: No module named 'no_such_dependency'",
        ),
        (
            "from helper2 import nothing\n",
            "ImportError: cannot import name 'nothing' from 'helper2'",
        ),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        ("raise SystemExit('I will not')\n", "SystemExit: I will not"),
    ],
    ids=["error", "dependency", "name", "syntax", "exit"],
)
def test_a_module_with_an_error(typed: Typed, here: Path, content: str, last: str) -> None:
    (here / "broken.py").write_text(content)
    (here / "helper.py").write_text("def work():\n    return 1 / 0\n\nwork()\n")
    (here / "helper2.py").write_text("")
    code, out, err = typed("broken:Echo")
    assert (code, out) == (4, "")
    *trace, said, ours = err.splitlines()
    assert said.startswith(last)
    assert ours == "pulsar: error: the module 'broken' cannot be imported, see the traceback above"
    # Its own traceback: nothing of pulsar, nothing of the machinery of import.
    files = re.findall(r'File "(.*?)", line \d+', err)
    assert files[0] == str(here / "broken.py")
    assert {Path(file).parent for file in files} == {here}
    if content == "import helper\n":
        assert [line.strip() for line in trace if "1 / 0" in line] == ["return 1 / 0"]


def test_a_package_with_an_error(typed: Typed, here: Path) -> None:
    (here / "package").mkdir()
    (here / "package" / "__init__.py").write_text("from . import inner\n")
    (here / "package" / "inner.py").write_text("raise LookupError('mine')\n")
    code, _, err = typed("package.served:Echo")
    assert code == 4
    files = re.findall(r'File "(.*?)", line \d+', err)
    assert files == [str(here / "package" / name) for name in ("__init__.py", "inner.py")]
    assert err.splitlines()[-2:] == [
        "LookupError: mine",
        "pulsar: error: the module 'package.served' cannot be imported, see the traceback above",
    ]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("things:Ecko", "the module 'things' has no 'Ecko': did you mean 'Echo'?"),
        ("things:zzz", "the module 'things' has no 'zzz'"),
        ("things:Namespace.Ecko", "has no 'Namespace.Ecko': did you mean 'Echo'?"),
        (
            "plain",
            "the module 'plain' has no 'application': say what in it shall be served, as in ",
        ),
        ("plain:", "as in plain:THING"),
    ],
)
def test_a_thing_that_is_not_there(refused: Typed, here: Path, target: str, sentence: str) -> None:
    (here / "plain.py").write_text("")
    code, err = refused(target)
    assert code == 4
    assert sentence in err


def test_a_module_beside_us_wins_over_an_installed_one(
    typed: Typed, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dns"]:
        monkeypatch.delitem(sys.modules, name)
    (here / "dns.py").write_text("from things import Echo as application\n")
    assert typed("dns", "--check")[0] == 0


# -- what can be served


@pytest.mark.parametrize(
    "arguments",
    [
        ("things:Echo",),
        ("things:Namespace.Echo",),
        ("things:Plain",),
        ("things:Buffered",),
        ("things:stream",),
        ("things:consumers",),
        ("things:protocols",),
        ("things:Both", "--kind", "protocol"),
        ("things",),
        ("things:application",),
        ("things:Shop",),
    ],
    ids=" ".join,
)
def test_what_is_served_on_streams(here: Path, arguments: tuple[str, ...]) -> None:
    with serve(here, *arguments, *ANYWHERE) as server:
        assert ask(server.address) == b"hello"


@pytest.mark.parametrize(
    "arguments",
    [
        ("things:Datagrams", *ANYWHERE),
        ("things:Both", *ANYWHERE),
        ("things:datagrams", "--bind", "udp://127.0.0.1:0"),
        ("things:both", *ANYWHERE, "--kind", "datagram"),
        ("things:datagrams", "-c", "udp.toml"),
    ],
    ids=" ".join,
)
def test_what_is_served_on_datagrams(here: Path, arguments: tuple[str, ...]) -> None:
    (here / "udp.toml").write_text('bind = "udp://127.0.0.1:0"\nkind = "datagram"\n')
    with serve(here, *arguments) as server:
        assert ask_datagram(server.address) == b"hello"


@pytest.mark.parametrize(
    "arguments",
    [
        ("things:wsgi",),
        ("things:wsgi_object",),
        ("things:async_wsgi", "--kind", "wsgi"),
    ],
    ids=" ".join,
)
def test_web_applications(here: Path, arguments: tuple[str, ...]) -> None:
    with serve(here, *arguments, *ANYWHERE) as server, connect(server.address) as sock:
        sock.sendall(b"GET /hello HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = read_to_the_end(sock)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n/hello")


def test_datagrams_by_the_environment(here: Path) -> None:
    environment = {"PULSAR_BIND": "udp://127.0.0.1:0"}
    with serve(here, "things:datagrams", env=environment) as server:
        assert ask_datagram(server.address) == b"hello"


@pytest.mark.parametrize("target", ["things:application", "things:Shop"])
def test_an_application_with_flags_of_its_own(here: Path, target: str) -> None:
    with serve(here, target, *ANYWHERE, "--volume", "loud") as server:
        assert ask(server.address) == b"HELLO"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("asgi", "cannot serve asgi: a coroutine function of three arguments looks like an ASGI"),
        (
            "asgi_object",
            "looks like an ASGI application, which uvicorn, hypercorn or granian serve",
        ),
        ("number", "cannot serve 5: an object of type int cannot be called"),
        ("instance", "it is an instance: give its class"),
        ("Namespace", "cannot serve Namespace: the class Namespace is no protocol"),
        ("needs_one", "cannot serve needs_one: it needs 1 argument"),
        ("fails", "cannot serve fails: calling it raised LookupError: mine"),
    ],
)
def test_what_cannot_be_served(refused: Typed, target: str, sentence: str) -> None:
    accepted = (
        "accepted is a ProtocolConsumer class, an asyncio Protocol, BufferedProtocol or "
        "DatagramProtocol class, a factory of one of these that takes no arguments, or a "
        "coroutine function handler(reader, writer)"
    )
    for flags in (["--check"], ANYWHERE):
        code, err = refused(f"things:{target}", *flags)
        assert code == 3
        assert sentence in err
        assert err.endswith(accepted)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Echo", "--bind", "udp://:0"], "cannot serve Echo over datagrams: accepted is a Da"),
        (["Echo", "--kind", "stream"], "cannot serve Echo: it cannot be of the kind stream"),
        (["stream", "--kind", "protocol"], "stream: it cannot be of the kind protocol"),
        (["Both", "--kind", "protocol", "-b", "udp://:0"], "is for datagrams, which are served by"),
        (["Datagrams", "--bind", "unix:x"], "unix:x is for streams, which are served by Socket"),
    ],
)
def test_what_does_not_fit(refused: Typed, arguments: list[str], sentence: str) -> None:
    for flags in (["--check"], []):
        code, err = refused(f"things:{arguments[0]}", *arguments[1:], *flags)
        assert code == 3
        assert sentence in err


# -- flags


def test_check(typed: Typed) -> None:
    assert typed("things:Echo", "--check", "--name", "joe") == (
        0,
        "joe: settings and application are fine\n",
        "",
    )


def test_check_looks_at_files(refused: Typed) -> None:
    code, err = refused("things:Echo", "--check", "--cert-file", "things.py")
    assert code == 3
    assert re.fullmatch("TLS file .*/things.py holds no certificate in PEM form", err)


def test_print_config_says_where_each_value_came_from(
    typed: Typed, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "server.toml").write_text("backlog = 6\nstall_timeout = 6\n")
    monkeypatch.setenv("PULSAR_STALL_TIMEOUT", "8")
    monkeypatch.setenv("PULSAR_BIND", ":1")
    code, out, err = typed(
        "things:application", "-c", "server.toml", "-b", ":9", "-b", ":10", "--print-config"
    )
    assert (code, err) == (0, "")
    lines = [re.split(r" = |\s+# ", line) for line in out.splitlines() if " = " in line]
    values = {name.strip(): (value.strip(), origin) for name, value, origin in lines}
    assert values["bind"] == ('[":9", ":10"]', "flag --bind")
    assert values["stall_timeout"] == ("8", "environment PULSAR_STALL_TIMEOUT")
    assert values["backlog"] == ("6", "file server.toml")
    assert values["keep_alive"] == ("5", "keyword")
    assert values["volume"] == ('"soft"', "default")
    assert values["#print_config"] == ("true", "flag --print-config")
    # It is a file that --config accepts.
    (here / "printed.toml").write_text(out)
    assert typed("things:application", "-c", "printed.toml", "--check")[0] == 0


def test_flags_count_more_than_keywords(here: Path) -> None:
    environment = {"PULSAR_NAME": "environed"}
    with serve(here, "things:application", *ANYWHERE, "--name", "flagged", env=environment) as one:
        assert "flagged serves on" in one.stderr
    with serve(here, "things:application", *ANYWHERE, env=environment) as other:
        assert "environed serves on" in other.stderr


@pytest.fixture
def elsewhere(here: Path) -> Path:
    """A directory with a module that only lies there."""
    directory = here / "elsewhere"
    directory.mkdir()
    (directory / "hidden.py").write_text(
        "from pathlib import Path\n"
        "imported_in = Path.cwd().name\n"
        "async def where(reader, writer):\n"
        "    writer.write(f'{imported_in} {Path.cwd().name}'.encode())\n"
        "    writer.close()\n"
    )
    (here / "server.toml").write_text('chdir = "elsewhere"\nname = "fromfile"\n')
    return directory


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (("--chdir", "elsewhere"), {}),
        ((), {"PULSAR_CHDIR": "elsewhere"}),
        (("-c", "server.toml"), {}),
        ((), {"PULSAR_CONFIG": "server.toml"}),
    ],
    ids=["flag", "environment", "file", "file by environment"],
)
def test_chdir(
    here: Path, elsewhere: Path, flags: tuple[str, ...], environment: dict[str, str]
) -> None:
    with serve(here, "hidden:where", *ANYWHERE, *flags, env=environment) as server:
        assert ask(server.address) == b"elsewhere elsewhere"


def test_chdir_leaves_other_paths_alone(typed: Typed, here: Path, elsewhere: Path) -> None:
    arguments = ("hidden:where", "-c", "server.toml", "--check")
    assert typed(*arguments) == (0, "fromfile: settings and application are fine\n", "")


@pytest.mark.skipif("sys.platform == 'win32'", reason="directories have no such modes there")
def test_chdir_to_where_we_may_not_go(typed: Typed, refused: Typed, here: Path) -> None:
    assert typed("things:Echo", "--check")[0] == 0  # which imports what is imported late
    here.chmod(0o755)
    locked = here / "locked"
    locked.mkdir(mode=0o600)
    with unprivileged():
        sentence = f"cannot change to the directory {locked}: Permission denied"
        assert refused("things:Echo", "--chdir", "locked") == (2, sentence)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ("things:Echo", "--bnd", ":0")),
        (2, ("things:Echo", "--volume", "loud")),
        (2, ("things:application", "--volume", "louder")),
        (2, ("things:Echo", "-c", "server.toml")),
        (2, ("things:application", "-c", "server.toml")),
        (3, ("things:number",)),
        (3, ("things:fails",)),
        (3, ("things:Echo", "--bind", "udp://:0")),
        (3, ("things:Echo", "--bind", "unix:/missing/echo.sock")),
        (3, ("things:Echo", "--cert-file", "things.py")),
        (4, ("nothing:Echo",)),
        (4, ("things.py:Echo",)),
        (4, ("things:Ecko",)),
        (4, ("broken:Echo",)),
        (2, ("things:application", "--volume", "louder", "--no-preload")),
        (3, ("things:number", "--no-preload")),
        (3, ("things:Echo", "--bind", "unix:/missing/echo.sock", "--no-preload")),
        (4, ("broken:Echo", "--no-preload")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_tree_says_the_same(
    typed: Typed, here: Path, code: int, arguments: tuple[str, ...]
) -> None:
    (here / "server.toml").write_text("keep-alife = 5\n")
    (here / "broken.py").write_text("def work():\n    return 1 / 0\n\nwork()\n")
    if "--bind" not in arguments:
        arguments = (*arguments, *ANYWHERE)
    said = typed(*arguments)
    assert said[0] == code
    assert run(here, *arguments) == said


def test_a_terminal_sees_plain_lines(here: Path) -> None:
    """A whole command that fails: one line, no traceback, the code."""
    code, out, err = run(here, "things:number", *ANYWHERE)
    assert (code, out) == (3, "")
    assert err.startswith("things:number: error: cannot serve 5: ")
    assert err.count("\n") == 1


def run(here: Path, *arguments: str) -> tuple[int, str, str]:
    """``pulsar ARGUMENTS`` in a process of its own, which ends: exit code, output, complaints."""
    done = subprocess.run(
        [sys.executable, "-m", "pulsar", *arguments],
        cwd=here,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
