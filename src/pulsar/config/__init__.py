"""Settings: one class declares one, ``Config`` holds their values.

Owns: nothing; re-exports what applications and users need.
Importing it declares the core's settings; an application's are declared by
importing the module that holds them.
"""

from . import core as core  # declares the core's settings
from .setting import (
    Setting,
    boolean,
    existing_directory,
    existing_file,
    file_path,
    identity,
    log_level,
    non_negative_int,
    positive_int,
    positive_seconds,
    seconds,
    settings_of,
    size,
    text,
)
from .sources import DEFAULT, KEYWORD, RUN_TIME, FlagParser, Origin, Rank
from .values import Config, render_config

__all__ = [
    "DEFAULT",
    "KEYWORD",
    "RUN_TIME",
    "Config",
    "FlagParser",
    "Origin",
    "Rank",
    "Setting",
    "boolean",
    "existing_directory",
    "existing_file",
    "file_path",
    "identity",
    "log_level",
    "non_negative_int",
    "positive_int",
    "positive_seconds",
    "render_config",
    "seconds",
    "settings_of",
    "size",
    "text",
]
