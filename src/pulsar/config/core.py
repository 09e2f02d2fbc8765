"""The settings that every application has.

Owns: their declarations. Importing the module declares them.
Leaves: what they do to ``application``, which copies the values once.
"""

from pulsar.cpus import available_cpus
from pulsar.log import LOG_FORMATS, LOG_LEVELS

from .setting import (
    Setting,
    existing_directory,
    existing_file,
    file_path,
    identity,
    log_level,
    non_negative_int,
    seconds,
    size,
    text,
)


def worker_count(value: object) -> int:
    """A number of workers; ``auto`` is as many as there are processors."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return available_cpus()
    try:
        return non_negative_int(value)
    except ValueError as exc:
        raise ValueError(f"{exc}, or auto") from exc


def log_destination(value: object) -> str:
    """The path of a log file, made absolute, or ``-``, standard error."""
    return "-" if value == "-" else file_path(value)


def control_address(value: object) -> str:
    """``auto``, ``off``, or the path of a socket, made absolute."""
    return str(value) if value in ("auto", "off") else file_path(value)


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


class Reload(Setting):
    name = "reload"
    section = "General"
    flags = ("--reload",)
    default = False
    is_flag = True
    desc = """
        Reload when a source file of the application changes. Needs watchfiles (the extra reload
        brings it). For development only.
        """


class Workers(Setting):
    name = "workers"
    section = "Workers"
    flags = ("-w", "--workers")
    metavar = "NUMBER|auto"
    validator = worker_count
    default = 1
    convention = "WEB_CONCURRENCY"
    change = "live"
    desc = """
        How many worker processes serve. auto: one for each processor that this process may use,
        by its affinity and by the limits of its control group. 0: none, the process that was
        started serves by itself. Where it is not given, the variable WEB_CONCURRENCY supplies the
        default.
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
    change = "new workers"
    desc = "The event loop: uvloop, asyncio's own, or (auto) uvloop where it is installed."


class Preload(Setting):
    name = "preload"
    section = "Workers"
    flags = ("--preload",)
    default = True
    is_flag = True
    change = "new workers"
    desc = """
        Import the application once, before the workers are forked, which then share its memory.
        --no-preload imports it in each worker, for an application that starts threads or opens
        connections when it is imported.
        """


class Timeout(Setting):
    name = "timeout"
    section = "Workers"
    flags = ("--timeout",)
    metavar = "SECONDS"
    validator = seconds
    default = 30
    change = "new workers"
    desc = """
        Replace a worker whose event loop has stood still for this long; its stacks are logged
        before. Time in which the machine gave it no processor does not count. 0: never.
        """


class BootTimeout(Setting):
    name = "boot_timeout"
    section = "Workers"
    flags = ("--boot-timeout",)
    metavar = "SECONDS"
    validator = seconds
    default = 60
    change = "new workers"
    desc = """
        How long importing the application, and then the start of a worker, may take before they
        have failed. 0: as long as they like.
        """


class MaxRequests(Setting):
    name = "max_requests"
    section = "Workers"
    flags = ("--max-requests",)
    metavar = "NUMBER"
    validator = non_negative_int
    default = 0
    change = "new workers"
    desc = """
        Replace a worker, gracefully, after this many requests; connections are counted where
        requests cannot be seen. A server of one process stops instead. 0: never.
        """


class MaxRequestsJitter(Setting):
    name = "max_requests_jitter"
    section = "Workers"
    flags = ("--max-requests-jitter",)
    metavar = "NUMBER"
    validator = non_negative_int
    change = "new workers"
    desc = """
        Let each worker serve up to this many requests more than max_requests, by chance, so that
        they are not all replaced at once. Unset: a tenth of max_requests.
        """


class MaxLifetime(Setting):
    name = "max_lifetime"
    section = "Workers"
    flags = ("--max-lifetime",)
    metavar = "SECONDS"
    validator = seconds
    default = 0
    change = "new workers"
    desc = """
        Replace a worker, gracefully, when it has served for this long, a tenth more or less by
        chance. 0: never.
        """


class MaxMemory(Setting):
    name = "max_memory"
    section = "Workers"
    flags = ("--max-memory",)
    metavar = "BYTES"
    validator = size
    default = 0
    change = "new workers"
    desc = """
        Replace a worker, gracefully, when it uses more memory than this, what it shares with
        others included. K, M and G behind the number stand for powers of 1024, as in 512M. 0:
        never.
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


class Pidfile(Setting):
    name = "pidfile"
    section = "Process"
    flags = ("-p", "--pidfile")
    metavar = "PATH"
    validator = file_path
    desc = """
        Write the number of the process that was started into this file, and remove it at the
        end. A file whose process is gone is replaced; while it runs, nothing is started.
        """


class User(Setting):
    name = "user"
    section = "Process"
    flags = ("-u", "--user")
    metavar = "USER"
    validator = identity
    change = "new workers"
    desc = """
        Run the application as this user, a name or a number, with the user's groups. Sockets are
        opened and TLS keys are read before. Needs root.
        """


class Group(Setting):
    name = "group"
    section = "Process"
    flags = ("-g", "--group")
    metavar = "GROUP"
    validator = identity
    change = "new workers"
    desc = """
        Run the application as this group, a name or a number. Needs root. Unset: the group of
        user.
        """


class ProcessName(Setting):
    name = "process_name"
    section = "Process"
    flags = ("--process-name",)
    metavar = "NAME"
    validator = text
    desc = """
        What ps and top call the processes, with what each of them is behind it. Needs
        setproctitle (the extra process brings it). Unset: the application's name.
        """


class Control(Setting):
    name = "control"
    section = "Process"
    flags = ("--control",)
    metavar = "auto|off|PATH"
    validator = control_address
    default = "auto"
    desc = """
        Where the server listens to pulsar reload, stop and the like: auto, a Unix socket with an
        abstract name, which leaves no file, on Linux, and nowhere on other systems; off, nowhere;
        or a Unix socket at this path.
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


class LogFormat(Setting):
    name = "log_format"
    section = "Logging"
    flags = ("--log-format",)
    choices = LOG_FORMATS
    default = "plain"
    change = "live"
    desc = """
        How messages are logged: plain, lines for people, where a traceback takes several; json,
        one object per line, whatever is in it.
        """


class LogFile(Setting):
    name = "log_file"
    section = "Logging"
    flags = ("--log-file",)
    metavar = "PATH"
    validator = log_destination
    default = "-"
    change = "live"
    desc = """
        Where messages are logged: -, standard error, or a file, which is appended to. After it
        was moved, as logrotate does, the signal USR1 makes a new one.
        """
