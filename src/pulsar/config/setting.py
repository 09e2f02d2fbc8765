"""What a setting is: the declaration, and the validators that declarations use.

Owns: ``Setting``, the record of everything declared, the validators, and how a
value is written down (``literal``).
Leaves: the values in force to ``values``; flags, files and the environment to
``sources``; the declarations themselves to ``core`` and to each application.

A setting is a class that nobody instantiates. Writing it is all there is to
do: from it come the flag, the environment variable, the key in the file, the
line of ``--help`` and the entry in the documentation::

    class Greeting(Setting):
        name = "greeting"
        app = "chat"
        section = "Chat"
        flags = ("--greeting",)
        default = "hello"
        desc = "What a visitor is told first."
        change = "new workers"
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pulsar.errors import ImproperlyConfigured
from pulsar.log import LOG_LEVELS

Change = Literal["live", "new workers", "restart"]

PREFIX = "PULSAR_"
"""What the environment variables of settings start with."""

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMG])(?:i?B)?", re.ASCII | re.IGNORECASE)

_declared: dict[tuple[str | None, str], type["Setting"]] = {}


# Files that we could read. A server reads its keys, gives up its privileges, and reads
# its settings again where it could not: what was good stays good.
_readable: set[str] = set()


# Validators: each takes what a flag, a variable, a file or code gave, returns
# the value to use, and raises ValueError with a sentence of what is accepted.
# Each accepts its own result.


def text(value: object) -> str:
    """A string, as it is."""
    if isinstance(value, str):
        return value
    raise ValueError("give a text")


def boolean(value: object) -> bool:
    """True or False, also written as yes/no, on/off, 1/0."""
    match value.strip().lower() if isinstance(value, str) else value:
        case "true" | "yes" | "on" | "1" | 1:
            return True
        case "false" | "no" | "off" | "0" | 0:
            return False
    raise ValueError("give true or false")


def non_negative_int(value: object) -> int:
    """A whole number, 0 or more."""
    return _integer(value, 0)


def positive_int(value: object) -> int:
    """A whole number, 1 or more."""
    return _integer(value, 1)


def seconds(value: object) -> float:
    """A number of seconds, 0 or more."""
    number = _number(value)
    if number is None or number < 0:
        raise ValueError("give a number of seconds, 0 or more")
    return number


def positive_seconds(value: object) -> float:
    """A number of seconds, more than 0."""
    number = _number(value)
    if number is None or number <= 0:
        raise ValueError("give a number of seconds, more than 0")
    return number


def size(value: object) -> int:
    """A number of bytes, 0 or more, also written with K, M or G, the powers of 1024."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        return int(float(match[1]) * 1024 ** (1 + "KMG".index(match[2].upper())))
    with suppress(ValueError):
        return _integer(value, 0)
    raise ValueError("give a number of bytes, 0 or more, or one with K, M or G, as 512M")


def identity(value: object) -> str:
    """A user or a group: a name, or a number, which stays a text."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("give a name or a number")


def file_path(value: object) -> str:
    """The path of a file that need not exist yet, made absolute, as ``existing_file`` is."""
    path = _path(value)
    # Nothing is Path("."), too; a directory is refused where it can be seen.
    if path is None or not path.name or os.path.isdir(path):  # noqa: PTH112
        raise ValueError("give the path of a file")
    return str(path.absolute())


def existing_file(value: object) -> str:
    """The path of a readable file, made absolute, so that ``chdir`` cannot break it."""
    path = _path(value)
    if path is not None and str(path.absolute()) in _readable:
        return str(path.absolute())
    # A path's own is_file() raises where we may not look.
    if path is None or not os.path.isfile(path) or not os.access(path, os.R_OK):  # noqa: PTH113
        raise ValueError("give the path of a file that exists and can be read")
    _readable.add(str(path.absolute()))
    return str(path.absolute())


def existing_directory(value: object) -> str:
    """The path of a directory, made absolute."""
    path = _path(value)
    if path is None or not os.path.isdir(path):  # noqa: PTH112
        raise ValueError("give the path of a directory that exists")
    return str(path.absolute())


def log_level(value: object) -> str:
    """One of pulsar's log levels, by its name or by its number in ``logging``."""
    for name, number in LOG_LEVELS.items():
        if value == number or (isinstance(value, str) and value.lower() == name):
            return name
    raise ValueError(f"choose {_either(LOG_LEVELS)}{did_you_mean(str(value), LOG_LEVELS)}")


def _integer(value: object, least: int) -> int:
    # Neither True nor 1.5 is a whole number, though int() takes both.
    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):
            if (number := int(value)) >= least:
                return number
    raise ValueError(f"give a whole number, {least} or more")


def _number(value: object) -> float | None:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if math.isfinite(number := float(value)):
                return number
    return None


def _path(value: object) -> Path | None:
    if not isinstance(value, str | Path) or "\0" in str(value):
        return None
    return Path(value)


class Setting:
    """The declaration of one setting; subclass it, do not instantiate it.

    A later declaration with the same ``app`` and ``name`` replaces the earlier
    one; one that an application makes replaces the core's for that application.
    """

    name: ClassVar[str]
    """How code, files and messages call it: small letters and underscores."""

    app: ClassVar[str | None] = None
    """The application that owns it; ``None``: every application has it."""

    section: ClassVar[str] = "General"
    """The heading it stands under in ``--help`` and in the documentation."""

    flags: ClassVar[tuple[str, ...]] = ()
    """Its flags, the long one last; none: it cannot be given on a command line."""

    validator: ClassVar[Callable[[Any], Any]] = text
    """Takes a string or a native value, returns the value to use. Raises
    ``ValueError`` with a sentence of what is accepted. Never called with ``None``."""

    default: ClassVar[Any] = None
    """The value in force when nobody gives one; ``None``: unset."""

    convention: ClassVar[str | None] = None
    """An environment variable that other tools share, which supplies the default."""

    desc: ClassVar[str] = ""
    """One paragraph: what it does, its unit, and what special values mean."""

    change: ClassVar[Change] = "restart"
    """What it takes to change it: nothing (``live``), workers started after the
    change (``new workers``; for a server of one process: a restart), or a restart."""

    metavar: ClassVar[str | None] = None
    """What ``--help`` calls the value, such as ``SECONDS``."""

    choices: ClassVar[tuple[str, ...]] = ()
    """The only values accepted, when there are few."""

    multiple: ClassVar[bool] = False
    """The value is a tuple: the flag may be repeated, a string is split at its commas."""

    is_flag: ClassVar[bool] = False
    """A boolean: ``--x`` and ``--no-x``, no value behind them."""

    in_file: ClassVar[bool] = True
    """False for an order to the command line, which a file has no business giving."""

    secret: ClassVar[bool] = False
    """Never show the value."""

    virtual: ClassVar[bool] = True
    """Set in a class's own body: a base for other settings, not a setting itself."""

    variable: ClassVar[str]
    """The environment variable; it follows from the name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__dict__.get("virtual", False):
            return
        name = getattr(cls, "name", "")
        if not name.isidentifier() or name != name.lower() or name.startswith("_"):
            raise TypeError(f"{cls.__qualname__}: name must be an identifier in small letters")
        if not all(flag.startswith("-") for flag in cls.flags):
            raise TypeError(f"{cls.__qualname__}: each of its flags must start with a dash")
        if cls.change not in get_args(Change):
            raise TypeError(f"{cls.__qualname__}: change must be one of {get_args(Change)}")
        cls.desc = " ".join(cls.desc.split())
        cls.variable = PREFIX + name.upper()
        if cls.is_flag:
            cls.validator = boolean
        _declared[cls.app, name] = cls

    @classmethod
    def clean(cls, value: object) -> Any:
        """Return the value to use for *value*.

        Raises ``ValueError``: a sentence that names the setting, what was given
        and what is accepted.
        """
        if value is None:
            if cls.default is None:
                return None
            raise cls._refusal(value, "leave it out to have the default")
        return cls._clean_all(value) if cls.multiple else cls._clean_one(value)

    @classmethod
    def split(cls, value: str) -> list[str]:
        """The values in one string of a ``multiple`` setting."""
        return [item.strip() for item in value.split(",") if item.strip()]

    @classmethod
    def _clean_all(cls, value: object) -> tuple[Any, ...]:
        items = cls.split(value) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise cls._refusal(value, "give a list, or a text with commas between the values")
        if cls.default and not items:
            raise cls._refusal(value, "give at least one value")
        return tuple(cls._clean_one(item) for item in items)

    @classmethod
    def _clean_one(cls, value: object) -> Any:
        try:
            clean = cls.validator(value)
        except ImproperlyConfigured as exc:
            # A parser of ours, whose sentence is complete.
            raise ValueError(str(exc)) from exc
        except (ValueError, TypeError) as exc:
            raise cls._refusal(value, exc) from exc
        if cls.choices and clean not in cls.choices:
            near = did_you_mean(str(clean), cls.choices)
            raise cls._refusal(value, f"choose {_either(cls.choices)}{near}")
        return clean

    @classmethod
    def _refusal(cls, value: object, reason: object) -> ValueError:
        shown = "***" if cls.secret else repr(value)
        return ValueError(f"{cls.name} cannot be {shown}: {reason}")


def settings_of(apps: Iterable[str] = ()) -> dict[str, type[Setting]]:
    """The core's settings and those of *apps*, by name.

    Only what has been declared so far, that is, by modules already imported.
    Raises ``ImproperlyConfigured`` when two of them claim the same flag.
    """
    chosen: dict[str, type[Setting]] = {}
    for wanted in (None, *apps):
        chosen.update({name: s for (app, name), s in _declared.items() if app == wanted})
    return arrange(chosen.values())


def arrange(settings: Iterable[type[Setting]]) -> dict[str, type[Setting]]:
    """*settings* by name, one section after the other, each in order of declaration.

    Raises ``ImproperlyConfigured`` when two of them claim the same flag.
    """
    sections: dict[str, list[type[Setting]]] = {}
    claimed: dict[str, str] = {}
    for setting in settings:
        sections.setdefault(setting.section, []).append(setting)
        for flag in setting.flags:
            owner = claimed.setdefault(flag, setting.name)
            if owner != setting.name:
                raise ImproperlyConfigured(
                    f"the flag {flag} is claimed by two settings, {owner} and {setting.name}"
                )
    return {s.name: s for group in sections.values() for s in group}


def declared_variables() -> set[str]:
    """The environment variables of every setting declared so far, of any application."""
    return {setting.variable for setting in _declared.values()}


def did_you_mean(word: str, words: Iterable[str], *, prefix: str = "") -> str:
    """The end of a message: the nearest of *words*, or nothing when none is near.

    *prefix* is put before the answer; what all words share must not count as near.
    """
    from difflib import get_close_matches  # only for those who mistype

    near = get_close_matches(word, list(words), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def literal(value: object) -> str:
    """*value* as a TOML file would have it; ``unset`` for ``None``."""
    match value:
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(map(literal, value))}]"
    # JSON's strings are TOML's, but for the one character that JSON lets pass.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
