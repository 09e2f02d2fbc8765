"""The values in force: ``Config``.

Owns: keeping, validating, naming the origin of, copying and printing values.
Leaves: reading flags, files and the environment to ``sources``; the meaning of
each value to the object that copies it, once, when it is made.
"""

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

from pulsar.errors import ImproperlyConfigured

from . import sources
from .setting import Setting, arrange, did_you_mean, literal, settings_of
from .sources import DEFAULT, KEYWORD, RUN_TIME, FlagParser, Given, Origin, Rank


class Config:
    """The settings of an application, and the value of each: ``cfg.keep_alive``.

    Takes the names of the applications whose settings it has beside the core's
    (or, as *settings*, exactly those classes), what ``--help`` says first
    (*prog*, *description*), and values by keyword.

    Values are kept in layers, one for each ``Rank``, so that the order of calls
    does not matter: the uppermost layer with a value for a name is in force.

    Raises ``ImproperlyConfigured`` for an unknown name or a value that its
    setting refuses, here and in every method through which values enter.
    """

    __slots__ = ("_layers", "_settings", "description", "prog", "warnings")

    def __init__(
        self,
        *,
        apps: Iterable[str] = (),
        settings: Iterable[type[Setting]] | None = None,
        prog: str | None = None,
        description: str | None = None,
        **keywords: Any,
    ) -> None:
        self._settings = settings_of(apps) if settings is None else arrange(settings)
        for name in self._settings:
            if hasattr(Config, name):
                raise ImproperlyConfigured(f"a setting cannot be called {name}: Config has that")
        self._layers: dict[Rank, dict[str, Given]] = {rank: {} for rank in reversed(Rank)}
        self.prog = prog
        self.description = description
        self.warnings: list[str] = []
        """What ``load`` noticed and did not refuse; for the log, once there is one."""
        self._apply(Given(name, value, KEYWORD) for name, value in keywords.items())

    # Reading

    def __getattr__(self, name: str) -> Any:
        # An object that is being unpickled has no slots yet: do not look there.
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._settings:
            near = did_you_mean(name, self._settings)
            raise AttributeError(f"no setting is called {name!r}{near}", name=name, obj=self)
        return self._given(name).value

    def get(self, name: str, default: Any = None) -> Any:
        """The value of *name*; *default* when there is no such setting."""
        return self._given(name).value if name in self._settings else default

    def origin(self, name: str) -> str:
        """Where the value of *name* came from, such as ``flag --keep-alive``."""
        return self._given(name).origin.label

    def is_set(self, name: str) -> bool:
        """Whether somebody gave *name* a value: it is not just the default."""
        return self._given(name).origin is not DEFAULT

    @property
    def settings(self) -> Mapping[str, type[Setting]]:
        """The settings by name, one section after the other."""
        return MappingProxyType(self._settings)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Each name and its value, one section after the other."""
        return ((name, self._given(name).value) for name in self._settings)

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __contains__(self, name: object) -> bool:
        return name in self._settings

    def __repr__(self) -> str:
        given = sum(map(self.is_set, self))
        return f"<Config: {len(self)} settings, {given} of them given>"

    def _given(self, name: str) -> Given:
        for layer in self._layers.values():
            if name in layer:
                return layer[name]
        return Given(name, self._settings[name].default, DEFAULT)

    # Writing

    def set(self, name: str, value: Any, *, origin: Origin = RUN_TIME) -> None:
        """Give *name* a value, which counts as much as the rank of its *origin*.

        Without an origin it is in force from now on, whatever else was given.
        """
        if name not in self._settings:
            near = did_you_mean(name, self._settings)
            raise ImproperlyConfigured(f"{name} is not a setting ({origin.label}){near}")
        try:
            clean = self._settings[name].clean(value)
        except ValueError as exc:
            raise ImproperlyConfigured(f"{exc} ({origin.label})") from exc
        self._layers[origin.rank][name] = Given(name, clean, origin)

    def _apply(self, given: Iterable[Given]) -> None:
        for name, value, origin in given:
            self.set(name, value, origin=origin)

    def copy(self) -> Self:
        """An independent copy."""
        twin = self._copy(Rank)
        twin.warnings = [*self.warnings]
        return twin

    __copy__ = copy

    def fresh(self) -> Self:
        """A copy with only what code gave, to ``load`` everything else anew."""
        return self._copy((Rank.KEYWORD, Rank.RUN_TIME))

    def _copy(self, ranks: Iterable[Rank]) -> Self:
        twin = type(self)(
            settings=self._settings.values(), prog=self.prog, description=self.description
        )
        # Past set(), which would look again whether a file exists.
        for rank in ranks:
            twin._layers[rank].update(self._layers[rank])  # noqa: SLF001
        return twin

    def take(self, other: Self, names: Iterable[str]) -> None:
        """Let *names* have the values that they have in *other*, and their origins."""
        for rank, layer in self._layers.items():
            source = other._layers[rank]
            for name in names:
                layer.pop(name, None)
                if name in source:
                    layer[name] = source[name]

    # Loading

    def load(self, argv: list[str] | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Read the flags in *argv*, the environment, and the file that either names.

        They default to this process's own. A flag that is wrong ends the process
        with code 2 and one line on standard error.
        """
        self.load_namespace(self.parser().parse_args(argv), environ)

    def load_namespace(
        self,
        namespace: argparse.Namespace,
        environ: Mapping[str, str] | None = None,
        *,
        partial: bool = False,
    ) -> None:
        """``load`` for a command line that a parser with these flags has read.

        ``partial``: pass over what the file says of other settings than these.
        """
        environ = os.environ if environ is None else environ
        self._apply(sources.from_flags(namespace, self._settings))
        self._apply(sources.from_environment(environ, self._settings))
        self.warnings += sources.unknown_variables(environ, self._settings)
        if path := self.get("config"):
            found = sources.from_file(path, self._settings)
            self._apply(given for given in found if given.name in self or not partial)

    def parser(self, usage: str = "%(prog)s [options]") -> FlagParser:
        """A new parser of these flags, for ``load_namespace``; add positionals at will."""
        parser = FlagParser(
            prog=self.prog,
            usage=usage,
            description=self.description,
            epilog="A flag wins over its environment variable, that over the file given "
            "with --config, that over a keyword in the program, that over the default.",
            allow_abbrev=False,
        )
        self.add_flags(parser)
        return parser

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add these flags to a parser of yours, one group for each section."""
        sources.add_flags(parser, self._settings)


def render_config(cfg: Config) -> str:
    """Every value and its origin, as a TOML file that ``--config`` accepts.

    What a file cannot say (unset values, secrets, orders to the command line)
    stands in comments; a secret is not shown.
    """
    rows = [(setting, *_row(cfg, setting)) for setting in cfg.settings.values()]
    names = max(len(name) for _, name, _ in rows)
    values = min(max(len(value) for _, _, value in rows), 40)
    lines: list[str] = []
    section = None
    for setting, name, value in rows:
        if setting.section != section:
            section = setting.section
            lines += ["", f"# {section}"]
        lines.append(f"{name:{names}} = {value:{values}}  # {cfg.origin(setting.name)}")
    return "\n".join(lines[1:]) + "\n"


def _row(cfg: Config, setting: type[Setting]) -> tuple[str, str]:
    value = cfg.get(setting.name)
    if value is None:
        return f"#{setting.name}", "unset"
    if setting.secret:
        return f"#{setting.name}", '"***"'
    return setting.name if setting.in_file else f"#{setting.name}", literal(value)
