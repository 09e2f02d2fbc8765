"""The commands for servers that run: ``pulsar ps``, ``status``, ``reload``, ``scale``, ...

Owns: what is typed after ``pulsar COMMAND``, which server is meant, and what people read.
Leaves: finding servers and talking to them to ``control_client``; ``pulsar serve`` to ``cli``.

What comes from a server is shown without control characters: the names and tracebacks
in it are not this terminal's to obey.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import msgspec

from .actors.control_client import Address, ControlClient, connect, discover
from .actors.control_messages import LINUX, ServerStatus
from .config import FlagParser
from .config.setting import literal
from .errors import ConnectionClosed, ControlError

__all__ = ["COMMANDS", "main"]

# Exit codes.
FAILED = 1
BAD_USAGE = 2
NO_SERVER = 3
INTERRUPTED = 130

# Seconds for what a server answers at once.
PATIENCE = 5.0
# Seconds, unless --timeout says otherwise, for what takes its time.
LONG_PATIENCE = 120.0


def main(arguments: Sequence[str]) -> None:
    """Run the command that ``arguments`` begin with, one of ``COMMANDS``.

    Exit codes: 1 when the server says no, does not answer or is not ready, 2 for
    what was typed wrong, 3 when there is no such server.
    """
    name, *rest = arguments
    command = COMMANDS[name]
    options = _parser(name, command).parse_args(rest)
    with ExitStack() as stack:
        try:
            code = command.run(options, stack)
        except ControlError as exc:
            _exit(FAILED, str(exc))
        except TimeoutError:
            _exit(FAILED, "the server does not answer in time; what it was asked for goes on")
        except ConnectionClosed as exc:
            _exit(FAILED, str(exc))
        except BrokenPipeError:
            # Whoever read the output has gone; at its end the interpreter tries it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(FAILED) from None
        except KeyboardInterrupt:
            _exit(INTERRUPTED, "interrupted; what the server was asked for goes on")
    if code:
        raise SystemExit(code)


def _parser(name: str, command: _Command) -> FlagParser:
    parser = FlagParser(
        prog=f"pulsar {name}",
        description=command.description,
        epilog="exit codes: 0 done, 1 failed or not ready, 2 typed wrong, 3 no such server",
        allow_abbrev=False,
    )
    for argument in command.arguments:
        parser.add_argument(argument, **_ARGUMENTS[argument])
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


# Which server


@dataclass(slots=True)
class _Server:
    """A server that was found, and what it says of itself, if it answers."""

    client: ControlClient | None
    pid: int | None
    result: Any = None
    status: ServerStatus | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return self.status.name if self.status is not None else "?"

    def __str__(self) -> str:
        return printable(f"{self.name} ({self.pid or '?'})")

    def is_called(self, name: str) -> bool:
        status = self.status
        return status is not None and (
            name == status.name or any(name == app.name for app in status.applications)
        )

    def answer(self) -> tuple[ControlClient, ServerStatus]:
        """The connection and the status. Raises ``ControlError`` when there is none."""
        if self.client is None or self.status is None:
            raise ControlError(f"no good answer from process {self.pid or '?'}: {self.error}")
        return self.client, self.status


def _find(options: argparse.Namespace, stack: ExitStack) -> list[_Server]:
    """All servers that there are; ends the process when there is none."""
    if options.control is not None:
        return [_look(Address(options.control), stack)]
    servers = []
    for address in discover():
        try:
            servers.append(_look(address, stack))
        except ControlError as exc:
            sys.stderr.write(f"pulsar: warning: {exc}: left out\n")
        except OSError:
            pass  # it has gone since the table was read
    return servers


def _look(address: Address, stack: ExitStack) -> _Server:
    """Connect and ask for the status; a server that does not answer counts as well.

    Raises ``ControlError`` when it is not what the address says, ``OSError`` when
    nobody is there.
    """
    try:
        client = stack.enter_context(connect(address, PATIENCE))
    except TimeoutError as exc:
        return _Server(None, address.pid, error=str(exc))
    server = _Server(client, client.pid)
    try:
        server.result = client.request("status", timeout=PATIENCE)
        server.status = ServerStatus.of(server.result)
    except TimeoutError:
        server.error = f"nothing came within {PATIENCE:g} seconds"
    except ControlError as exc:
        server.error = str(exc)
    if server.status is not None and server.pid is None:
        server.pid = server.status.pid
    return server


def _choose(options: argparse.Namespace, stack: ExitStack) -> _Server:
    """The one server that is meant; ends the process when that is not clear."""
    servers = _find_or_exit(options, stack)
    target = options.target
    if target is None:
        if len(servers) == 1:
            return servers[0]
        _exit(BAD_USAGE, f"several servers run, name one of them: {_listed(servers)}")
    # A process id is one server's; a name may be that of another's application.
    meant = [server for server in servers if target == str(server.pid)]
    meant = meant or [server for server in servers if server.is_called(target)]
    if not meant:
        _exit(NO_SERVER, f"no server is called {target!r}; there are: {_listed(servers)}")
    if len(meant) > 1:
        _exit(BAD_USAGE, f"several servers are called {target!r}, give the pid: {_listed(meant)}")
    return meant[0]


def _find_or_exit(options: argparse.Namespace, stack: ExitStack) -> list[_Server]:
    try:
        servers = _find(options, stack)
    except OSError as exc:
        _exit(NO_SERVER, f"no server can be reached at {options.control}: {exc.strerror or exc}")
    if not servers:
        why = "no server of this user runs here, or none that can be controlled"
        if not LINUX:
            why = "servers are found on Linux only: name the socket with --control PATH"
        _exit(NO_SERVER, why)
    return servers


def _listed(servers: Iterable[_Server]) -> str:
    return ", ".join(map(str, servers))


# The commands


_PS_HEAD = ("PID", "NAME", "STATE", "WORKERS", "GENERATION", "UPTIME", "ADDRESSES")
_SLOT_HEAD = (
    *("SLOT", "PID", "STATE", "GENERATION", "UPTIME"),
    *("CONNECTIONS", "REQUESTS", "LAG", "MEMORY"),
)


def _ps(options: argparse.Namespace, stack: ExitStack) -> int:
    servers = _find_or_exit(options, stack)
    if options.json:
        _print_json([s.result if s.status else {"pid": s.pid, "error": s.error} for s in servers])
        return 0
    _print(*table(_PS_HEAD, map(_ps_row, servers), right=(0, 3, 4, 5)))
    return 0


def _ps_row(server: _Server) -> Sequence[object]:
    status = server.status
    if status is None:
        return (server.pid, None, "no answer", None, None, None, None)
    applications = status.applications
    return (
        status.pid,
        status.name,
        status.state,
        f"{sum(app.ready for app in applications)}/{sum(app.workers for app in applications)}",
        status.generation,
        duration(status.uptime),
        ", ".join(address for app in applications for address in app.addresses),
    )


def _status(options: argparse.Namespace, stack: ExitStack) -> int:
    server = _choose(options, stack)
    _, status = server.answer()
    if options.json:
        _print_json(server.result)
    else:
        _print(*_details(status))
    return 0 if status.ready else FAILED


def _details(status: ServerStatus) -> Iterable[str]:
    ready = "ready" if status.ready else "not ready"
    yield f"{status.name} ({status.pid}), pulsar {status.version}: {status.state}, {ready}"
    yield f"generation {status.generation}, up {duration(status.uptime)}"
    for forkserver in status.forkservers:
        yield f"fork server {forkserver.pid} of generation {forkserver.generation}"
    for app in status.applications:
        yield ""
        where = f" at {', '.join(app.addresses)}" if app.addresses else ""
        yield f"{app.name}{where}"
        yield f"{app.ready} of {app.workers} workers ready, {app.restarts} restarted"
        if app.last_failure is not None:
            yield f"last failure: {app.last_failure}"
        if app.slots:
            rows = (
                (
                    slot.slot,
                    slot.pid,
                    slot.state,
                    slot.generation,
                    _known(duration, slot.uptime),
                    slot.connections,
                    slot.requests,
                    _known(lag, slot.lag),
                    _known(memory, slot.memory),
                )
                for slot in app.slots
            )
            yield from table(_SLOT_HEAD, rows, right=(0, 1, 3, 4, 5, 6, 7, 8))


def _reload(options: argparse.Namespace, stack: ExitStack) -> int:
    server = _choose(options, stack)
    client, _ = server.answer()
    try:
        client.request("reload", timeout=options.timeout, progress=_print)
    except ControlError as exc:
        sys.stderr.write(f"{printable(str(exc)).rstrip()}\n")
        _exit(FAILED, f"{server} has not been reloaded, it goes on as it was")
    _print(f"{server} has been reloaded")
    return 0


def _scale(options: argparse.Namespace, stack: ExitStack) -> int:
    server = _choose(options, stack)
    client, _ = server.answer()
    client.request(
        "scale",
        timeout=options.timeout,
        progress=_print,
        workers=options.workers,
        application=options.app,
    )
    workers = "1 worker" if options.workers == 1 else f"{options.workers} workers"
    _print(f"{options.app or server} has {workers}")
    return 0


def _stop(options: argparse.Namespace, stack: ExitStack) -> int:
    server = _choose(options, stack)
    client, _ = server.answer()
    if not client.stop(graceful=not options.now, timeout=options.timeout):
        advice = "" if options.now else "; --now does not wait for requests in hand"
        _exit(FAILED, f"{server} still runs after {options.timeout:g} seconds{advice}")
    _print(f"{server} has stopped")
    return 0


def _config(options: argparse.Namespace, stack: ExitStack) -> int:
    client, _ = _choose(options, stack).answer()
    result = client.request("config", timeout=PATIENCE)
    if options.json:
        _print_json(result)
        return 0
    try:
        config = msgspec.convert(result, dict[str, dict[str, tuple[Any, str]]])
    except msgspec.ValidationError as exc:
        raise ControlError(f"the server's settings are not understood: {exc}") from exc
    lines: list[str] = []
    for application, settings in config.items():
        names = max(map(len, settings), default=0)
        shown = {name: literal(value) for name, (value, _) in settings.items()}
        values = min(max(map(len, shown.values()), default=0), 40)
        lines += ["", f"# {application}"]
        lines += [
            f"{name:{names}} = {shown[name]:{values}}  # {origin}"
            for name, (_, origin) in settings.items()
        ]
    _print(*lines[1:])
    return 0


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "workers": {"metavar": "N", "type": _count, "help": "how many workers"},
    "target": {
        "metavar": "TARGET",
        "nargs": "?",
        "help": "a process id, or the name of a server or of its application; "
        "not needed when one server runs",
    },
    "--control": {
        "metavar": "PATH",
        "help": "the server's socket file, where it has one; no other server is looked for",
    },
    "--app": {"metavar": "NAME", "help": "which application, where there are several"},
    "--now": {"action": "store_true", "help": "do not wait for requests in hand"},
    "--timeout": {
        "metavar": "SECONDS",
        "type": _seconds,
        "default": LONG_PATIENCE,
        "help": f"how long to wait for the end of it [default: {LONG_PATIENCE:g}]",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
}


class _Command(NamedTuple):
    run: Callable[[argparse.Namespace, ExitStack], int]
    description: str
    arguments: tuple[str, ...]


COMMANDS: dict[str, _Command] = {
    "ps": _Command(
        _ps,
        "List the servers of this user, or of everybody for root.",
        ("--control", "--json"),
    ),
    "status": _Command(
        _status,
        "Show a server and its workers. The exit code is 1 unless it is ready.",
        ("target", "--control", "--json"),
    ),
    "reload": _Command(
        _reload,
        "Start the code that is on disk now, and let it replace the running one when it is "
        "ready. When it fails, its traceback is shown and the running code goes on.",
        ("target", "--control", "--timeout"),
    ),
    "scale": _Command(
        _scale,
        "Set the number of workers, and wait until that many serve.",
        ("workers", "target", "--app", "--control", "--timeout"),
    ),
    "stop": _Command(
        _stop,
        "Stop a server and wait until its process has ended. Requests in hand are answered.",
        ("target", "--now", "--control", "--timeout"),
    ),
    "config": _Command(
        _config,
        "Show the settings in force, and where each value came from.",
        ("target", "--control", "--json"),
    ),
}


# What people read


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()
) -> list[str]:
    """The lines of a table; ``-`` for None. Columns in ``right`` are aligned there."""
    cells = [head, *(["-" if cell is None else _cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cell(value: object) -> str:
    return printable(str(value)).replace("\n", " ")


def _known(show: Callable[[float], str], value: float | None) -> str | None:
    return None if value is None else show(value)


def duration(seconds: float) -> str:
    """``seconds`` in its two largest units, as ``3h 5m``."""
    whole = int(seconds)
    for size, unit, small, rest in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // small}{rest}"
    return f"{whole}s"


def lag(seconds: float) -> str:
    """A short time: ``0.4 ms``, ``1.2 s``."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def memory(size: float) -> str:
    """``size`` bytes in MiB."""
    return f"{size / 2**20:.1f} MiB"


def printable(text: str) -> str:
    """``text`` with its control characters, but for newline and tab, as escapes."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def _print(*lines: str) -> None:
    _write("".join(f"{printable(line)}\n" for line in lines))


def _print_json(value: Any) -> None:
    _write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _exit(code: int, message: str) -> NoReturn:
    sys.stderr.write(f"pulsar: error: {printable(message)}\n")
    raise SystemExit(code)
