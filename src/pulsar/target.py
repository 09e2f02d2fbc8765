"""What ``MODULE:THING`` stands for: an application, found and imported.

Owns: importing what is to be served, choosing its application, and the parser of its
flags.
Leaves: whether it is done here or in a fork server to ``cli``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .actors.served import BAD_USAGE, NOT_LOADABLE
from .application import Application
from .apps.socket import SocketServer, UdpSocketServer
from .apps.wsgi.recognise import is_wsgi
from .config import Config, FlagParser
from .errors import ImproperlyConfigured
from .net import parse_bind
from .protocols.kinds import is_datagram_class
from .version import __version__

__all__ = ["application_for", "find_application", "flag_parser"]

USAGE = "pulsar serve MODULE:THING [options]"

DESCRIPTION = """
    Serve THING from MODULE on sockets: a ProtocolConsumer class, an asyncio protocol class, a
    factory of either, a coroutine function handler(reader, writer), a WSGI application, or a
    pulsar application. Servers that run are seen to with pulsar ps, status, reload, scale, stop
    and config. Which options there are depends on THING: pulsar serve MODULE:THING --help shows
    those of a web application, such as --threads and --access-log, where it is one.
"""

# What MODULE alone stands for, as with gunicorn.
DEFAULT_THING = "application"


def find_application(target: str, arguments: list[str], cfg: Config) -> Application:
    """Import what ``target`` names; its application, with its settings.

    :param arguments: the whole command line behind ``serve``
    :param cfg: what was looked at before

    Ends the process, with a sentence: code 2 for bad settings, 4 when it cannot be imported
    or found.
    """
    here = Path.cwd()
    if cfg.chdir is not None:
        _change_directory(cfg.chdir)
    thing = _load(target)
    os.chdir(here)  # the paths in settings are taken from there
    application = application_for(thing, target, cfg)
    namespace = flag_parser(application).parse_args(arguments)
    try:
        application.load_config(namespace=namespace)
    except ImproperlyConfigured as exc:
        _exit(BAD_USAGE, str(exc))
    return application


def _change_directory(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as exc:
        _exit(BAD_USAGE, f"cannot change to the directory {directory}: {exc.strerror}")


def flag_parser(application: Application) -> FlagParser:
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


def application_for(thing: Any, target: str, cfg: Config) -> Application:
    """The application that serves ``thing``, named after its ``target``."""
    if isinstance(thing, Application):
        return thing
    if isinstance(thing, type) and issubclass(thing, Application):
        return thing()
    name = target.partition("(")[0]
    if _is_for_datagrams(thing, cfg):
        return UdpSocketServer(thing, name=name)
    if cfg.kind == "wsgi" or (cfg.kind == "auto" and is_wsgi(thing)):
        # Not before: who serves a protocol need not have HTTP in memory.
        from .apps.wsgi.server import WSGIServer

        return WSGIServer(thing, name=name)
    return SocketServer(thing, name=name)


def _is_for_datagrams(thing: Any, cfg: Config) -> bool:
    if cfg.kind != "auto":
        return bool(cfg.kind == "datagram")
    return is_datagram_class(thing) or any(parse_bind(bind).scheme == "udp" for bind in cfg.bind)


def _load(target: str) -> Any:
    """Import MODULE and find THING in it; ends the process with code 4 when that fails.

    THING may be called: ``create_app()``, with literals between the parentheses.
    """
    name, _, path = target.partition(":")
    call = None
    if path.endswith(")"):
        path, call = _split_call(target, path)
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
        _exit_with_traceback(f"the module {name!r} cannot be imported")
    except (Exception, SystemExit):
        _exit_with_traceback(f"the module {name!r} cannot be imported")
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
    return thing if call is None else _made_by(thing, call, target)


def _split_call(target: str, path: str) -> tuple[str, ast.Call]:
    try:
        call = ast.parse(path, mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or not path.startswith(callee := ast.unparse(call.func)):
        _exit(NOT_LOADABLE, f"{target!r} is not MODULE:THING, as in mypackage:create_app()")
    return callee, call


def _made_by(factory: Any, call: ast.Call, target: str) -> Any:
    """What ``factory`` makes when it is called so."""
    try:
        arguments = [ast.literal_eval(one) for one in call.args]
        keywords = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
        if len(keywords) < len(call.keywords):
            raise ValueError("** is no literal")
    except ValueError:
        _exit(NOT_LOADABLE, f"{target!r}: only literals can be arguments, as in create_app('x')")
    try:
        made = factory(*arguments, **keywords)
    except (Exception, SystemExit):
        _exit_with_traceback(f"{target!r} has failed")
    if inspect.iscoroutine(made):
        made.close()
        _exit(NOT_LOADABLE, f"{target!r} makes a coroutine: a factory is a plain function")
    return made


def _exit_with_traceback(what: str) -> NoReturn:
    """Say why loading failed, in the words of the code that failed."""
    kind, exc, trace = sys.exc_info()
    # Leave out our own frame and those of the import machinery.
    while trace is not None and (
        trace.tb_frame.f_code.co_filename == __file__
        or "importlib" in trace.tb_frame.f_code.co_filename
    ):
        trace = trace.tb_next
    traceback.print_exception(kind, exc, trace)
    _exit(NOT_LOADABLE, f"{what}, see the traceback above")


def _exit(code: int, message: str) -> NoReturn:
    sys.stderr.write(f"pulsar: error: {message}\n")
    raise SystemExit(code)
