"""Where values come from besides code: flags, the environment, a TOML file.

Owns: the one precedence rule (``Rank``), reading each source into ``Given``
values, and the parser of the command line.
Leaves: what a value may be to each ``Setting``, which value is in force to
``values``. Nothing here keeps state.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pulsar.errors import ImproperlyConfigured

from .setting import PREFIX, Setting, declared_variables, did_you_mean, literal

Settings = Mapping[str, type[Setting]]


# Variables that a worker sets for what it starts.
_OURS = frozenset({"PULSAR_WORKER_SLOT"})


class Rank(IntEnum):
    """The precedence rule: the highest rank that has a value for a setting wins."""

    DEFAULT = 0
    CONVENTION = 1
    KEYWORD = 2
    FILE = 3
    ENVIRONMENT = 4
    FLAG = 5
    RUN_TIME = 6


class Origin(NamedTuple):
    """Where a value came from: how much that counts, and how to say it."""

    rank: Rank
    label: str


DEFAULT = Origin(Rank.DEFAULT, "default")
KEYWORD = Origin(Rank.KEYWORD, "keyword")
RUN_TIME = Origin(Rank.RUN_TIME, "run time")


class Given(NamedTuple):
    """A value that somebody gave, before (from a source) or after validation."""

    name: str
    value: Any
    origin: Origin


def from_environment(environ: Mapping[str, str], settings: Settings) -> Iterator[Given]:
    """What *environ* says. An empty variable counts as one that is not there."""
    for setting in settings.values():
        for variable, rank in (
            (setting.variable, Rank.ENVIRONMENT),
            (setting.convention, Rank.CONVENTION),
        ):
            if variable and (value := environ.get(variable)):
                yield Given(setting.name, value, Origin(rank, f"environment {variable}"))


def unknown_variables(environ: Mapping[str, str], settings: Settings) -> list[str]:
    """A sentence for each ``PULSAR_`` variable that no setting reads.

    They are not refused: another program may use the prefix.
    """
    known = declared_variables()
    names = [name.upper() for name in settings]
    found = []
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known | _OURS:
            near = did_you_mean(variable.removeprefix(PREFIX), names, prefix=PREFIX)
            found.append(f"the environment variable {variable} belongs to no setting{near}")
    return found


def from_file(path: str, settings: Settings) -> Iterator[Given]:
    """What the TOML file *path* says, at its top or in its ``[pulsar]`` table.

    A key that no setting owns is passed on, for ``Config`` to refuse.

    Raises ``ImproperlyConfigured`` when the file cannot be read or parsed, gives
    a key twice, or gives one that does not belong in a file.
    """
    import tomllib  # only here: most processes read no file

    shown = _shorten(path)
    try:
        with Path(path).open("rb") as file:
            top = tomllib.load(file)
    except OSError as exc:
        raise ImproperlyConfigured(f"cannot read {shown}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ImproperlyConfigured(f"{shown} is not valid TOML: {exc}") from exc
    table = top.pop("pulsar", {})
    if not isinstance(table, dict):
        raise ImproperlyConfigured(f"pulsar must be a table in {shown}: write [pulsar]")
    seen: set[str] = set()
    for key, value in (*top.items(), *table.items()):
        name = key.replace("-", "_")
        if name in seen:
            raise ImproperlyConfigured(f"{name} is given twice in {shown}")
        seen.add(name)
        if name in settings and not settings[name].in_file:
            raise ImproperlyConfigured(f"{name} belongs on the command line, not in {shown}")
        yield Given(name, value, Origin(Rank.FILE, f"file {shown}"))


def _shorten(path: str) -> str:
    here = Path.cwd()
    full = Path(path)
    return str(full.relative_to(here)) if full.is_relative_to(here) else path


def from_flags(namespace: argparse.Namespace, settings: Settings) -> Iterator[Given]:
    """What the command line said; anything else in *namespace* is passed over."""
    for name, value in vars(namespace).items():
        if name not in settings:
            continue
        setting = settings[name]
        flag = setting.flags[-1]
        if setting.multiple:
            value = [item for part in value for item in setting.split(part)]
        elif value is False:
            flag = f"--no-{flag[2:]}"
        yield Given(name, value, Origin(Rank.FLAG, f"flag {flag}"))


class FlagParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that refuses in one line, and names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                near = did_you_mean(flag, self._option_string_actions)
                self.error(f"unknown flag {flag}{near}")
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return found


def add_flags(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Add the flags of *settings* to *parser*, one group for each section."""
    groups: dict[str, Any] = {}
    for setting in settings.values():
        if not setting.flags:
            continue
        if setting.section not in groups:
            groups[setting.section] = parser.add_argument_group(setting.section)
        options: dict[str, Any]
        if setting.is_flag:
            twin = argparse.BooleanOptionalAction if setting.in_file else "store_true"
            options = {"action": twin}
        else:
            options = {
                "action": "append" if setting.multiple else "store",
                "type": _checker(setting),
                "metavar": setting.metavar or "|".join(setting.choices) or None,
            }
        # SUPPRESS keeps what was not given out of the namespace.
        groups[setting.section].add_argument(
            *setting.flags,
            dest=setting.name,
            default=argparse.SUPPRESS,
            help=_help(setting),
            **options,
        )


def _checker(setting: type[Setting]) -> Callable[[str], str]:
    """Let the parser refuse a bad value itself; it names the flag before the message."""

    def check(value: str) -> str:
        try:
            setting.clean(value)
        except ValueError as exc:
            message = str(exc).removeprefix(f"{setting.name} ")
            raise argparse.ArgumentTypeError(message) from exc
        return value

    return check


def _help(setting: type[Setting]) -> str:
    default = setting.default
    if setting.multiple:
        default = ",".join(map(str, default or ())) or None
    default = literal(default).strip('"')
    return f"{setting.desc} [default: {default}; {setting.variable}]".replace("%", "%%")
