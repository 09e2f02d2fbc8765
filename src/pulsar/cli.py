"""The command line: ``pulsar serve MODULE:THING``.

Owns: finding and importing what is to be served, and choosing its application.
Leaves: the flags to the settings, serving to the application.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .actors.single import NOT_LOADABLE
from .application import Application
from .apps.socket import SocketServer, UdpSocketServer
from .errors import ImproperlyConfigured
from .net import parse_bind
from .protocols.kinds import is_datagram_class
from .version import __version__

__all__ = ["main"]

USAGE = "pulsar serve MODULE:THING [options]"

DESCRIPTION = """
    Serve THING from MODULE on sockets: a ProtocolConsumer class, an asyncio protocol class, a
    factory of either, a coroutine function handler(reader, writer), or a pulsar application.
"""

# What MODULE alone stands for, as with gunicorn.
DEFAULT_THING = "application"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, by default that of the process.

    Exit codes: 2 for what was typed wrong, 3 when serving cannot start, 4 when
    the application cannot be imported or found.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] == "serve":
        del arguments[0]
    if arguments in (["--version"], ["-V"]):
        sys.stdout.write(f"pulsar {__version__}\n")
        return
    serve(arguments)


def serve(arguments: list[str]) -> None:
    """Serve what ``arguments`` name, with the flags behind it."""
    target, directory = _first_look(arguments)
    if target is None:
        # No application: the flags of every stream server, for --help.
        parser = _parser(SocketServer(None))
        parser.parse_args(arguments)
        parser.error("MODULE:THING is missing: what shall be served?")
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as exc:
            _exit(2, f"cannot change to the directory {directory}: {exc.strerror}")
    application = _application(target, arguments)
    parser = _parser(application)
    namespace = parser.parse_args(arguments)
    try:
        application.load_config(namespace=namespace)
    except ImproperlyConfigured as exc:
        _exit(2, str(exc))
    application.start()


def _first_look(arguments: list[str]) -> tuple[str | None, str | None]:
    """MODULE:THING and the directory, before it is known which flags there are."""
    # The values of unknown flags would be taken for MODULE:THING: it has to come first.
    target = arguments[0] if arguments and not arguments[0].startswith("-") else None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--chdir")
    known, _ = parser.parse_known_args(arguments)
    return target, known.chdir or os.environ.get("PULSAR_CHDIR")


def _parser(application: Application) -> argparse.ArgumentParser:
    application.cfg.prog = "pulsar"
    application.cfg.description = DESCRIPTION
    parser = application.cfg.parser(usage=USAGE)
    parser.add_argument("target", metavar="MODULE:THING", help="what to serve")
    parser.add_argument("--version", action="version", version=f"pulsar {__version__}")
    return parser


def _application(target: str, arguments: list[str]) -> Application:
    """The application that serves ``target``."""
    thing = _load(target)
    if isinstance(thing, Application):
        return thing
    if isinstance(thing, type) and issubclass(thing, Application):
        return thing()
    if is_datagram_class(thing) or _has_datagram_bind(arguments):
        return UdpSocketServer(thing)
    return SocketServer(thing)


def _has_datagram_bind(arguments: list[str]) -> bool:
    """True when the flags or the environment say ``udp://``, or ``--kind datagram``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-b", "--bind", action="append", default=[])
    parser.add_argument("--kind", default=os.environ.get("PULSAR_KIND"))
    known, _ = parser.parse_known_args(arguments)
    binds = known.bind or [os.environ.get("PULSAR_BIND", "")]
    if known.kind == "datagram":
        return True
    for text in (part for bind in binds for part in bind.split(",") if part):
        try:
            if parse_bind(text.strip()).scheme == "udp":
                return True
        except ImproperlyConfigured:
            return False  # the settings will say what is wrong with it
    return False


def _load(target: str) -> Any:
    """Import MODULE and find THING in it; ends the process with code 4 when that fails."""
    name, _, path = target.partition(":")
    if not name or name.endswith(".py") or "/" in name:
        _exit(NOT_LOADABLE, f"{target!r} is not MODULE:THING, as in mypackage.mymodule:MyProtocol")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            _exit(NOT_LOADABLE, f"there is no module {name!r}, looked for in {here} and sys.path")
        _exit_with_traceback(name)
    except Exception:
        _exit_with_traceback(name)
    thing: Any = module
    for part in (path or DEFAULT_THING).split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            close = get_close_matches(part, [n for n in dir(thing) if not n.startswith("_")], n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            _exit(NOT_LOADABLE, f"the module {name!r} has no {path or DEFAULT_THING!r}{hint}")
    return thing


def _exit_with_traceback(name: str) -> NoReturn:
    """Say why the import failed, in the words of the code that failed."""
    kind, exc, trace = sys.exc_info()
    # Leave out our own frame and those of the import machinery.
    while trace is not None and (
        trace.tb_frame.f_code.co_filename == __file__
        or "importlib" in trace.tb_frame.f_code.co_filename
    ):
        trace = trace.tb_next
    traceback.print_exception(kind, exc, trace)
    _exit(NOT_LOADABLE, f"the module {name!r} cannot be imported, see the traceback above")


def _exit(code: int, message: str) -> NoReturn:
    sys.stderr.write(f"pulsar: error: {message}\n")
    raise SystemExit(code)
