"""The documentation is true: every example in it is run, as its reader would run it.

Each page is played from top to bottom in a directory of its own:

- ``python`` with ``title="NAME"`` is a file of the reader's; something further
  down has to use it. Without a title it is a program: it must end well, print
  what the comments behind its ``print`` calls say, and nothing else.
- ``pycon`` is a session, checked as a doctest; blocks that follow one another
  without a command between them are one session.
- ``console`` holds commands behind ``$`` and what they print. A command that
  prints ``serves on`` is a server: it runs until ``^C``, the next server, or the
  end of the page. ``nc`` is played by a socket: one line typed, one received.
- ``toml`` and ``ini`` are files; ``text`` is for reading only.

``...`` stands for any text, a line of it for any lines. Dates, process ids
(12345), and ports from 50000 up are placeholders; the ports of ``PORTS`` become
free ones. ``<!-- not run: REASON -->`` above a block leaves it out.
"""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from pulsar import TcpServer
from pulsar.apps.socket import SocketServer
from pulsar.apps.wsgi import WSGIServer
from tests.support.programs import require_program
from tests.test_layers import FLOORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What is generated, and what lists changes, has no examples.
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PLAYED = [page for page in PAGES if page.name not in ("settings.md", "changelog.md")]

LANGUAGES = {"python", "pycon", "console", "toml", "ini", "text"}
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n+)?"
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<text>(?:.*\n)*?)(?P=indent)```$",
    re.MULTILINE,
)
PRINTED = re.compile(r"\bprint\(.*\)  # (.+)$", re.MULTILINE)
PORTS = ("8060", "8061", "8080", "8443")
PATIENCE = 30.0

# From what a page shows to a pattern; the rest is taken literally.
PLACEHOLDERS = re.compile(
    r"(?P<any>\.\.\.)|(?P<date>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+\d{4})|(?P<pid>\b12345\b)"
    r"|(?P<port>\b5\d{4}\b)|(?P<seconds>\d+\.\d+ ?s\b)|(?P<columns> {2,})"
)
MEANINGS = {
    "any": ".*",
    "date": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}",
    "pid": r"\d+",
    "port": r"\d+",
    "seconds": r"\d+\.\d+ ?s",
    "columns": " +",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    line: int
    language: str
    title: str | None
    text: str
    skipped: bool


def blocks_of(markdown: str) -> list[Block]:
    """The fenced blocks of a page; fails for a fence that would escape the tests."""
    found = [
        Block(
            line=markdown.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            title=match["title"],
            text=re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            skipped=match["reason"] is not None,
        )
        for match in FENCE.finditer(markdown)
    ]
    assert 2 * len(found) == len(re.findall(r"^ *```", markdown, re.MULTILINE)), "a stray fence"
    for block in found:
        assert block.language in LANGUAGES, f"line {block.line}: what is {block.language!r}?"
    return found


def free_ports(markdown: str, reserve: Callable[[], int]) -> str:
    """A page with ports that nobody else uses."""
    for block in blocks_of(markdown):
        for port in re.findall(r"(?<!rsa):(\d{4,5})\b", block.text):
            assert port in PORTS or port[0] == "5", f"line {block.line}: port {port} may be taken"
    for port in PORTS:
        if port in markdown:
            markdown = re.sub(rf"\b{port}\b", str(reserve()), markdown)
    return markdown


def pattern_of(line: str) -> str:
    """The pattern of what may stand where a page shows ``line``."""
    parts, end = [], 0
    for match in PLACEHOLDERS.finditer(line):
        parts += [re.escape(line[end : match.start()]), MEANINGS[str(match.lastgroup)]]
        end = match.end()
    return "".join(parts) + re.escape(line[end:])


def agrees(shown: list[str], actual: str, *, complete: bool = True) -> bool:
    """Whether ``actual`` is what a page shows; not ``complete``: there may be more lines."""
    gap = r"(?:.*\n)*?"
    pattern = "" if complete else gap
    for line in shown:
        pattern += gap if line.strip() == "..." else pattern_of(line.rstrip()) + r"[ \t]*\n"
        pattern += "" if complete else gap
    return re.fullmatch(pattern, actual) is not None


def commands_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, and what it prints."""
    command, output = "", []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], []
        else:
            output.append(line)
    assert command, "a console block without a command"
    yield command, output


class Player:
    """Plays one page in ``directory``; what it starts ends with ``stack``."""

    def __init__(self, markdown: str, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.default_port = self.reserve()
        self.blocks = blocks_of(free_ports(markdown, self.reserve))
        self.session: list[str] = []
        self.server: subprocess.Popen[bytes] | None = None
        self.log = directory / "server.log"
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PULSAR_", "PYTEST_", "WEB_CONCURRENCY"))
        }
        # A page may replace a file in the second in which it was written.
        environ["PYTHONDONTWRITEBYTECODE"] = "1"
        path = f"{Path(sys.executable).parent}:{environ['PATH']}"
        # As on a terminal: warnings apart, which must not be.
        terminal = {"COLUMNS": "80", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"}
        self.environ = {**environ, **terminal, "PATH": path}
        stack.callback(self.stop_server)

    def reserve(self) -> int:
        """A port that nobody gets by chance, and that a server may listen on."""
        sock = self.stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

    def play(self) -> None:
        for index, block in enumerate(self.blocks):
            if block.skipped:
                continue
            if block.language == "console":
                self.play_session()
            try:
                if block.title is not None:
                    (self.directory / block.title).write_text(block.text)
                    if block.language == "python":
                        later = "\n".join(other.text for other in self.blocks[index + 1 :])
                        stem = block.title.removesuffix(".py")
                        assert stem in later, f"nothing below uses {block.title}"
                elif block.language == "python":
                    self.play_program(block.text)
                elif block.language == "pycon":
                    self.session.append(block.text)
                elif block.language == "console":
                    for command, shown in commands_of(block.text):
                        self.play_command(command, shown)
                else:
                    assert block.language == "text", f"{block.language} needs a title"
            except AssertionError as error:
                error.add_note(f"the block at line {block.line}")
                raise
        self.play_session()
        self.stop_server()

    def run(
        self, *command: str, errors: int = subprocess.PIPE
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=PATIENCE,
        )

    def play_program(self, text: str) -> None:
        (self.directory / "program.py").write_text(text)
        result = self.run(sys.executable, "program.py")
        assert result.returncode == 0, result.stderr
        assert not result.stderr, result.stderr
        shown = PRINTED.findall(text)
        assert agrees(shown, result.stdout), f"shown: {shown}\nprinted: {result.stdout}"

    def play_session(self) -> None:
        if not self.session:
            return
        (self.directory / "session.txt").write_text("\n".join(self.session))
        self.session.clear()
        options = ("-o", "ELLIPSIS", "-o", "FAIL_FAST")
        result = self.run(sys.executable, "-m", "doctest", *options, "session.txt")
        assert result.returncode == 0, result.stdout + result.stderr
        assert not result.stderr, result.stderr

    def play_command(self, command: str, shown: list[str]) -> None:
        if command.startswith("nc "):
            self.play_netcat(command.split()[1:], shown)
        elif any("serves on" in line for line in shown):
            self.stop_server()
            self.start_server(command, shown)
        elif command.startswith("kill "):
            assert self.server is not None
            known = self.log.read_text()
            self.run("/bin/sh", "-c", command.replace("12345", str(self.server.pid)))
            self.await_log(shown, behind=len(known))
            if any("has stopped" in line for line in shown):
                self.stop_server(None)
        else:
            result = self.run("/bin/sh", "-c", command, errors=subprocess.STDOUT)
            assert agrees(shown, result.stdout), f"$ {command}\n{result.stdout}"
            # What fails has to say so.
            assert result.returncode == 0 or any("error" in line for line in shown), command

    def play_netcat(self, address: list[str], lines: list[str]) -> None:
        host, port = address
        with socket.create_connection((host, int(port)), PATIENCE) as sock:
            stream = sock.makefile("rw", encoding="utf-8")
            for typed, shown in zip(lines[::2], lines[1::2], strict=True):
                stream.write(f"{typed}\n")
                stream.flush()
                received = stream.readline()
                assert agrees([shown], received), f"{typed!r} was answered with {received!r}"
            stream.close()

    def start_server(self, command: str, shown: list[str], stdin: int = subprocess.DEVNULL) -> None:
        environ = self.environ
        file = re.match(r"python (\S+)", command)
        says = command + ((self.directory / file[1]).read_text() if file else "")
        if not re.search(r"--bind| -b | -c |bind=", says):
            environ = {**environ, "PULSAR_BIND": f"127.0.0.1:{self.default_port}"}
            shown = [re.sub(r"(?<=serves on ).*", "...", line) for line in shown]
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self.directory,
                env=environ,
                stdin=stdin,
                stdout=log,
                stderr=log,
            )
        before, interrupt, after = (shown, False, [])
        if "^C" in shown:
            at = shown.index("^C")
            before, interrupt, after = shown[:at], True, shown[at + 1 :]
        self.await_log(before)
        if interrupt:
            self.stop_server(signal.SIGINT)
            assert agrees(before + after, self.log.read_text()), self.log.read_text()

    def await_log(self, shown: list[str], behind: int = 0) -> None:
        """Wait until the server has logged these lines."""
        assert self.server is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            # Asked before the log is read: the last thing it does may be to log.
            ended = self.server.poll() is not None or time.monotonic() >= deadline
            log = self.log.read_text()
            if agrees(shown, log[behind:], complete=False):
                return
            assert not ended, f"expected: {shown}\nlogged: {log}"
            time.sleep(0.02)

    def stop_server(self, number: signal.Signals | None = signal.SIGTERM) -> None:
        server, self.server = self.server, None
        if server is not None:
            if number is not None:
                server.send_signal(number)
            try:
                code = server.wait(PATIENCE)
            finally:
                server.kill()
            log = self.log.read_text()
            assert code == 0, log
            assert "ResourceWarning" not in log


def play(markdown: str, directory: Path) -> None:
    with ExitStack() as stack:
        Player(markdown, directory, stack).play()


# The pages


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
def test_the_examples_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    if "openssl " in (text := page.read_text()):
        require_program("openssl", "openssl")
    play(text, tmp_path)


def test_next_to_nothing_is_left_out() -> None:
    blocks = [block for page in PLAYED for block in blocks_of(page.read_text())]
    assert [block.text[:13] for block in blocks if block.skipped] == ["$ mkdir stock"]


def fenced(language: str, text: str, title: str | None = None) -> str:
    head = f'{language} title="{title}"' if title else language
    return f"Text.\n\n```{head}\n{text}\n```\n"


ECHO = fenced(
    "python",
    "from pulsar import ProtocolConsumer\n"
    "class Echo(ProtocolConsumer):\n"
    "    def data_received(self, data):\n"
    "        self.write(data)\n",
    "echo.py",
)
SERVE = "$ pulsar serve echo:Echo --bind 127.0.0.1:8060\n... serves on 127.0.0.1:8060\n"
# Nobody waits for more from a server that has ended.
BRIEF = fenced("python", "print('it serves on nothing')", "brief.py")
BRIEFLY = "$ python brief.py\nit serves on nothing\n"


@pytest.mark.parametrize(
    ("markdown", "complaint"),
    [
        (fenced("python", "print(1)  # 2"), "printed: 1"),
        (fenced("python", "print(1)"), "printed: 1"),
        (fenced("python", "open('/dev/null')"), "ResourceWarning"),
        (fenced("python", "1 / 0"), "ZeroDivisionError"),
        (fenced("python", "x = 1", "unused.py"), "nothing below uses unused.py"),
        (fenced("pycon", ">>> 1 + 1\n3"), r"Expected:\s+3\s+Got:\s+2"),
        (fenced("console", "$ echo one\ntwo"), "one"),
        (fenced("console", "$ exit 3"), "exit 3"),
        (fenced("py", "print(1)  # 1"), "what is 'py'?"),
        (fenced("python", "address = 'localhost:8070'"), "port 8070 may be taken"),
        ("```python\nprint(1)  # 2\n", "a stray fence"),
        (ECHO + fenced("console", f"{SERVE}$ nc 127.0.0.1 8060\none\ntwo"), "answered with 'one"),
        (BRIEF + fenced("console", f"{BRIEFLY}never logged"), "expected: .*never logged"),
        (ECHO + fenced("console", f"{SERVE}^C\nnever logged"), "stopping gracefully"),
    ],
)
def test_a_page_that_is_wrong_fails(markdown: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=complaint):
        play(markdown, tmp_path)


def test_the_systemd_unit_serves_and_a_restart_refuses_nobody(tmp_path: Path) -> None:
    blocks = {block.title: block.text for block in blocks_of((DOCS / "servers.md").read_text())}
    (tmp_path / "shout.py").write_text(blocks["shout.py"])
    unit = re.search(r"^ExecStart=\S+/(pulsar .*)$", blocks["shout.service"], re.MULTILINE)
    assert unit
    assert "ListenStream=127.0.0.1:" in blocks["shout.socket"]
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        player = Player("", tmp_path, stack)

        def start() -> None:
            player.start_server(
                f"env LISTEN_PID=$$ LISTEN_FDS=1 {unit[1]} 3<&0 0</dev/null",
                ["... serves on ..."],
                stdin=listener.fileno(),
            )

        start()
        player.play_netcat(["127.0.0.1", str(listener.getsockname()[1])], ["one", "ONE"])
        player.stop_server()
        with socket.create_connection(listener.getsockname(), PATIENCE) as queued:
            queued.sendall(b"two\n")
            start()
            assert queued.recv(100) == b"TWO\n"


# What pages say in words


def inline_code(page: Path) -> set[str]:
    """The code between backticks, outside fenced blocks."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_dotted_names_exist(page: Path) -> None:
    names = [re.fullmatch(r"(pulsar(?:\.\w+)+)(?:\(.*\))?", code) for code in inline_code(page)]
    for name in sorted(match[1] for match in names if match):
        if name == "pulsar.toml" or name.startswith("pulsar.async."):
            continue  # a file, and the old import paths
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), f"there is no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_and_variables_exist(page: Path) -> None:
    settings = WSGIServer(None, load_config=False).cfg.settings.values()
    flags = {flag for setting in settings for flag in setting.flags}
    flags |= {f"--no-{flag[2:]}" for flag in flags}
    known = flags | {"--help", "--version"} | {setting.variable for setting in settings}
    known.add("PULSAR_WORKER_SLOT")  # no setting: workers have it
    # pulsar's own commands only: other programs have flags of their own.
    text = "\n".join(
        code
        for code in inline_code(page)
        if not code.startswith(("scripts", "python", "flask", "certbot"))
    )
    for word in re.findall(r"(?<![\w-])(--[a-z][\w-]+|PULSAR_\w+)", text):
        assert word in known or word == "PULSAR_", f"there is no {word}"


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), f"README.md links to {link}"


def rows_of(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    below = page.read_text().partition(f"# {heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table, f"{page.name} has no table below {heading!r}"
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[0].splitlines()]
    return rows[2:]


def test_the_limits_that_the_docs_promise_are_the_defaults() -> None:
    cfg = SocketServer(None, load_config=False).cfg
    bare = {**inspect.signature(TcpServer).parameters}
    bare |= inspect.signature(TcpServer.start_serving).parameters
    bare |= inspect.signature(TcpServer.close).parameters
    rows = rows_of(DOCS / "servers.md", "Limits and their defaults")
    assert len(rows) == 7
    for name, settings, server, *_ in rows:
        name = name.strip("`")
        given = cfg.get(name)
        assert settings == shown_number(given), name
        default = bare["timeout" if name == "graceful_timeout" else name].default
        assert server == shown_number(default), name


def shown_number(value: float | None) -> str:
    return "none" if not value else f"{value:g}"


def test_the_floors_that_the_docs_draw_are_those_that_are_tested() -> None:
    rows = rows_of(DOCS / "design.md", "Who may import whom")
    drawn = [set(re.findall(r"`(\w+)`", parts)) for _, parts, *_ in rows]
    exist = {path.stem for path in (ROOT / "src/pulsar").iterdir()}
    assert drawn == [set(floor) & exist for floor in FLOORS]
