"""The settings that every application has.

Owns: their declarations. Importing the module declares them.
Leaves: what they do to ``application``, which copies the values once.
"""

from pulsar.log import LOG_LEVELS

from .setting import (
    Setting,
    existing_directory,
    existing_file,
    log_level,
    non_negative_int,
    seconds,
    text,
)


class ConfigFile(Setting):
    name = "config"
    section = "General"
    flags = ("-c", "--config")
    metavar = "PATH"
    validator = existing_file
    in_file = False
    desc = """
        A TOML file with settings: the names as keys, with dashes or underscores, at the top of
        the file or in its [pulsar] table. No file is read unless one is named.
        """


class Name(Setting):
    name = "name"
    section = "General"
    flags = ("--name",)
    validator = text
    desc = """
        The application's name, in log lines and for get_application. Unset: the name of its
        class in small letters.
        """


class Chdir(Setting):
    name = "chdir"
    section = "General"
    flags = ("--chdir",)
    metavar = "DIRECTORY"
    validator = existing_directory
    desc = """
        Change to this directory before the application is imported; in a script, when it is
        started. Relative paths of files in other settings are taken from where the command was
        started, and relative unix: paths in bind from here.
        """


class Debug(Setting):
    name = "debug"
    section = "General"
    flags = ("--debug",)
    default = False
    is_flag = True
    change = "new workers"
    desc = """
        Run the event loop in asyncio's debug mode, which reports slow callbacks and coroutines
        that nobody awaited. Slow: for development only.
        """


class Check(Setting):
    name = "check"
    section = "General"
    flags = ("--check",)
    default = False
    is_flag = True
    in_file = False
    desc = """
        Check the settings and that the application can be imported, say so and exit without
        serving.
        """


class PrintConfig(Setting):
    name = "print_config"
    section = "General"
    flags = ("--print-config",)
    default = False
    is_flag = True
    in_file = False
    desc = "Print every setting with its value and where it came from, and exit without serving."


class Workers(Setting):
    name = "workers"
    section = "Workers"
    flags = ("-w", "--workers")
    metavar = "NUMBER"
    validator = non_negative_int
    default = 1
    convention = "WEB_CONCURRENCY"
    change = "live"
    desc = """
        How many worker processes serve. 0: none, the process that was started serves by itself.
        Where it is not given, the variable WEB_CONCURRENCY supplies the default.
        """


class Concurrency(Setting):
    name = "concurrency"
    section = "Workers"
    flags = ("--concurrency",)
    choices = ("process", "thread")
    default = "process"
    desc = """
        What serves: process, worker processes; thread, the one process that was started,
        whatever workers says (for tests, debugging and small loads).
        """


class EventLoop(Setting):
    name = "event_loop"
    section = "Workers"
    flags = ("--event-loop",)
    choices = ("auto", "uvloop", "asyncio")
    default = "auto"
    desc = "The event loop: uvloop, asyncio's own, or (auto) uvloop where it is installed."


class MaxRequests(Setting):
    name = "max_requests"
    section = "Workers"
    flags = ("--max-requests",)
    metavar = "NUMBER"
    validator = non_negative_int
    default = 0
    change = "new workers"
    desc = """
        Stop serving gracefully after this many requests; connections are counted where requests
        cannot be seen. 0: never.
        """


class GracefulTimeout(Setting):
    name = "graceful_timeout"
    section = "Workers"
    flags = ("--graceful-timeout",)
    metavar = "SECONDS"
    validator = seconds
    default = 30
    change = "live"
    desc = """
        How long a graceful stop waits for requests in hand before their connections are cut. 0:
        not at all.
        """


class LogLevel(Setting):
    name = "log_level"
    section = "Logging"
    flags = ("--log-level",)
    choices = tuple(LOG_LEVELS)
    validator = log_level
    default = "info"
    change = "live"
    desc = "How severe a message must be, at least, to be logged."
