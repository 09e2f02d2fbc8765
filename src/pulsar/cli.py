"""The command line: ``pulsar serve MODULE:THING``.

Owns: finding and importing what is to be served, and choosing its application.
Leaves: the flags to the settings, serving to the application.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .actors.forkserver import Loaded
from .actors.served import BOOT_FAILED, NOT_LOADABLE
from .actors.tree import ServeAlone, can_fork, is_fork_server, run_tree
from .application import USAGE as BAD_USAGE
from .application import Application
from .apps.socket import SocketServer, UdpSocketServer
from .config import Config, FlagParser, settings_of
from .errors import ImproperlyConfigured
from .net import parse_bind
from .protocols.kinds import is_datagram_class
from .version import __version__

__all__ = ["main"]

USAGE = "pulsar serve MODULE:THING [options]"

DESCRIPTION = """
    Serve THING from MODULE on sockets: a ProtocolConsumer class, an asyncio protocol class, a
    factory of either, a coroutine function handler(reader, writer), or a pulsar application.
    Servers that run are seen to with pulsar ps, status, reload, scale, stop and config.
"""

# Flags that are answered without serving.
_ONLY_LOOKS = frozenset({"-h", "--help", "-V", "--version"})

# What is said to servers that run: see console.
COMMANDS = frozenset({"ps", "status", "reload", "scale", "stop", "config"})

# What MODULE alone stands for, as with gunicorn.
DEFAULT_THING = "application"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, by default that of the process.

    Exit codes: 2 for what was typed wrong, 3 when serving cannot start, 4 when
    the application cannot be imported or found.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        from .console import main as console  # only here: serving does not need it

        console(arguments)
        return
    if arguments and arguments[0] == "serve":
        del arguments[0]
    if arguments in (["--version"], ["-V"]):
        sys.stdout.write(f"pulsar {__version__}\n")
        return
    serve(arguments)


def serve(arguments: list[str]) -> None:
    """Serve what ``arguments`` name, with the flags behind it."""
    # The values of unknown flags would be taken for MODULE:THING: it has to come first.
    target = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if target is None:
        # No application: the flags of every stream server, for --help.
        parser = _parser(SocketServer(None))
        behind = parser.parse_args(arguments).target
        parser.error(
            f"MODULE:THING comes first: pulsar serve {behind} ..."
            if behind
            else "MODULE:THING is missing: what shall be served? (pulsar --help explains)"
        )
    cfg = _first_look(arguments)
    try:
        if _wants_workers(arguments, cfg):
            _serve_in_tree(target, arguments, cfg)
            return
    except ServeAlone:
        pass  # the application itself says so: by now nothing of it is left here
    except ImproperlyConfigured as exc:
        _exit(BOOT_FAILED, str(exc), name=cfg.name or target)
    _find(target, arguments, cfg).start()


def _wants_workers(arguments: list[str], cfg: Config) -> bool:
    """Whether workers serve, as far as that can be told without the application."""
    if is_fork_server():
        return True
    only_looks = cfg.check or cfg.print_config or not _ONLY_LOOKS.isdisjoint(arguments)
    return bool(not only_looks and cfg.concurrency == "process" and cfg.workers and can_fork())


def _serve_in_tree(target: str, arguments: list[str], cfg: Config) -> None:
    """Be the arbiter: the application is imported where the workers come from, never here."""

    def load() -> Loaded:
        application = _find(target, arguments, cfg)
        application.warn_of_the_command_line()
        application.change_directory()
        return application.loaded()

    def prepare() -> None:
        if cfg.cert_file is not None:
            SocketServer(None, **_tls_files(cfg)).prepare()

    code = run_tree(load, cfg, title=cfg.name or target, prepare=prepare)
    if code:
        raise SystemExit(code)


def _tls_files(cfg: Config) -> dict[str, Any]:
    section = [name for name, setting in cfg.settings.items() if setting.section == "TLS"]
    return {name: cfg.get(name) for name in section if cfg.is_set(name)}


def _find(target: str, arguments: list[str], cfg: Config) -> Application:
    """Import what ``target`` names; its application, with its settings."""
    here = Path.cwd()
    if cfg.chdir is not None:
        _change_directory(cfg.chdir)
    thing = _load(target)
    os.chdir(here)  # the paths in settings are taken from there
    application = _application(thing, target, cfg)
    namespace = _parser(application).parse_args(arguments)
    try:
        application.load_config(namespace=namespace)
    except ImproperlyConfigured as exc:
        _exit(BAD_USAGE, str(exc))
    return application


def _first_look(arguments: list[str]) -> Config:
    """The settings that every server has, before it is known which others there are."""
    cfg = Config(settings=settings_of(SocketServer.cfg_apps).values())
    parser = FlagParser(prog="pulsar", add_help=False, allow_abbrev=False)
    cfg.add_flags(parser)
    namespace, _ = parser.parse_known_args(arguments)
    try:
        cfg.load_namespace(namespace, partial=True)
    except ImproperlyConfigured as exc:
        _exit(BAD_USAGE, str(exc))
    return cfg


def _change_directory(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as exc:
        _exit(BAD_USAGE, f"cannot change to the directory {directory}: {exc.strerror}")


def _parser(application: Application) -> FlagParser:
    application.cfg.prog = "pulsar"
    application.cfg.description = DESCRIPTION
    parser = application.cfg.parser(usage=USAGE)
    parser.add_argument("target", metavar="MODULE:THING", nargs="?", help="what to serve")
    parser.add_argument(
        "--version",
        action="version",
        version=f"pulsar {__version__}",
        help="show the version and exit",
    )
    return parser


def _application(thing: Any, target: str, cfg: Config) -> Application:
    """The application that serves ``thing``, named after its ``target``."""
    if isinstance(thing, Application):
        return thing
    if isinstance(thing, type) and issubclass(thing, Application):
        return thing()
    if _is_for_datagrams(thing, cfg):
        return UdpSocketServer(thing, name=target)
    if cfg.kind == "wsgi" or (cfg.kind == "auto" and not isinstance(thing, type)):
        # Not before: who serves a protocol need not have HTTP in memory.
        from .apps.wsgi.server import WSGIServer, is_wsgi

        if cfg.kind == "wsgi" or is_wsgi(thing):
            return WSGIServer(thing, name=target)
    return SocketServer(thing, name=target)


def _is_for_datagrams(thing: Any, cfg: Config) -> bool:
    if cfg.kind != "auto":
        return bool(cfg.kind == "datagram")
    return is_datagram_class(thing) or any(parse_bind(bind).scheme == "udp" for bind in cfg.bind)


def _load(target: str) -> Any:
    """Import MODULE and find THING in it; ends the process with code 4 when that fails."""
    name, _, path = target.partition(":")
    if not name:
        _exit(NOT_LOADABLE, f"{target!r} is not MODULE:THING, as in mypackage.mymodule:MyProtocol")
    if name.endswith(".py") or "/" in name:
        file = Path(name)
        move = "" if file.parent == Path() else f" --chdir {file.parent}"
        meant = f"{file.stem}:{path or 'THING'}{move}"
        _exit(NOT_LOADABLE, f"{target!r} names a file: name its module, {meant}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            _exit(NOT_LOADABLE, f"there is no module {name!r}, looked for in {here} and sys.path")
        _exit_with_traceback(name)
    except (Exception, SystemExit):
        _exit_with_traceback(name)
    thing: Any = module
    for part in (path or DEFAULT_THING).split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            if not path:
                _exit(
                    NOT_LOADABLE,
                    f"the module {name!r} has no {DEFAULT_THING!r}: "
                    f"say what in it shall be served, as in {name}:THING",
                )
            close = get_close_matches(part, [n for n in dir(thing) if not n.startswith("_")], n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            _exit(NOT_LOADABLE, f"the module {name!r} has no {path!r}{hint}")
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


def _exit(code: int, message: str, *, name: str = "pulsar") -> NoReturn:
    sys.stderr.write(f"{name}: error: {message}\n")
    raise SystemExit(code)
