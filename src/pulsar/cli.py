"""The command line: ``pulsar serve MODULE:THING``.

Owns: whether a command line is served here or by a process tree, and what that needs to
know beforehand.
Leaves: finding what is served to ``target``, which is imported where that is loaded: in
the fork server, while this process becomes the arbiter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .actors.forkserver import Loaded
from .actors.served import BAD_USAGE, BOOT_FAILED, ServeAlone
from .actors.tree import can_fork, is_fork_server, run_tree
from .apps.socket import settings  # noqa: F401 - declares them
from .config import Config, FlagParser, settings_of
from .errors import ImproperlyConfigured
from .version import __version__

__all__ = ["main"]

# The settings that are looked at before it is known what is served are those of its servers.
_APPS = ("socket",)

# Flags that are answered without serving.
_ONLY_LOOKS = frozenset({"-h", "--help", "-V", "--version"})

# What is said to servers that run: see console.
COMMANDS = frozenset({"ps", "status", "reload", "scale", "stop", "config"})


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
        from .apps.socket import SocketServer
        from .target import flag_parser

        parser = flag_parser(SocketServer(None))
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
    from .target import find_application

    find_application(target, arguments, cfg).start()


def _wants_workers(arguments: list[str], cfg: Config) -> bool:
    """Whether workers serve, as far as that can be told without the application."""
    if is_fork_server():
        return True
    only_looks = cfg.check or cfg.print_config or not _ONLY_LOOKS.isdisjoint(arguments)
    return bool(not only_looks and cfg.concurrency == "process" and cfg.workers and can_fork())


def _serve_in_tree(target: str, arguments: list[str], cfg: Config) -> None:
    """Be the arbiter: the application is imported where the workers come from, never here."""

    def load() -> Loaded:
        from .target import find_application

        application = find_application(target, arguments, cfg)
        application.warn_of_the_command_line()
        application.change_directory()
        return application.loaded()

    def prepare() -> None:
        # While everything can be read.
        from .target import find_application as _  # noqa: F401

        if cfg.cert_file is not None:
            from .apps.socket import SocketServer

            SocketServer(None, **_tls_files(cfg)).prepare()

    code = run_tree(load, cfg, title=cfg.name or target, prepare=prepare)
    if code:
        raise SystemExit(code)


def _tls_files(cfg: Config) -> dict[str, Any]:
    section = [name for name, setting in cfg.settings.items() if setting.section == "TLS"]
    return {name: cfg.get(name) for name in section if cfg.is_set(name)}


def _first_look(arguments: list[str]) -> Config:
    """The settings that every server has, before it is known which others there are."""
    cfg = Config(settings=settings_of(_APPS).values())
    parser = FlagParser(prog="pulsar", add_help=False, allow_abbrev=False)
    cfg.add_flags(parser)
    namespace, _ = parser.parse_known_args(arguments)
    try:
        cfg.load_namespace(namespace, partial=True)
    except ImproperlyConfigured as exc:
        _exit(BAD_USAGE, str(exc))
    return cfg


def _exit(code: int, message: str, *, name: str = "pulsar") -> NoReturn:
    sys.stderr.write(f"{name}: error: {message}\n")
    raise SystemExit(code)
