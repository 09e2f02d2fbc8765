"""The commands of the server: functions of the data and the words that the client sent.

Owns: ``execute``, and what each command does. A function is a command: its name and its
parameters are those of the command, what it returns is the reply.
Leaves: bytes to ``resp``, connections to ``manage``.
"""

import inspect
from collections import deque
from itertools import islice

from resp import MAX_COMMAND, ReplyError

# By name: a function, and the fewest and the most words that may follow the name.
COMMANDS = {}


def execute(data, words):
    """The reply to a command; what the client did wrong is a reply, too."""
    name, *arguments = words
    try:
        function, fewest, most = COMMANDS[name.upper()]
    except KeyError:
        return ReplyError(f"ERR unknown command '{printable(name)}'")
    if not fewest <= len(arguments) <= most:
        return ReplyError(f"ERR wrong number of arguments for '{printable(name)}' command")
    try:
        return function(data, *arguments)
    except ReplyError as exc:
        return exc


def command(function):
    """Register ``function(data, *words)``; its name and its parameters are the command's."""
    _, *words = inspect.signature(function).parameters.values()
    rest = [word for word in words if word.kind is word.VAR_POSITIONAL]
    fewest = sum(word.default is word.empty for word in words) - len(rest)
    name = function.__name__.rstrip("_").upper().encode()
    COMMANDS[name] = function, fewest, float("inf") if rest else len(words)
    return function


def printable(word):
    return word[:64].decode("ascii", "backslashreplace").lower()


def integer(word):
    try:
        number = int(word)
    except ValueError:
        number = None
    if number is None or word != b"%d" % number or not -(2**63) <= number < 2**63:
        raise ReplyError("ERR value is not an integer or out of range")
    return number


def of_kind(kind, value):
    if not isinstance(value, kind):
        raise ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
    return value


def bounded(values):
    """A list of few words can ask for a value many times."""
    if sum(map(len, filter(None, values))) > MAX_COMMAND:
        raise ReplyError("ERR the reply is too large")
    return values


# The connection and the server


@command
def ping(data, message=None):
    return "PONG" if message is None else message


@command
def echo(data, message):
    return message


@command
def quit_(data):
    return "OK"


@command
def hello(data, version=b"2", *options):
    """Clients ask for a version of the protocol with it: there is only the second."""
    if version != b"2":
        raise ReplyError("NOPROTO unsupported protocol version")
    if options:
        raise ReplyError("ERR HELLO takes no options here: there are no users and no names")
    return [b"server", b"pulsar", b"proto", 2, b"mode", b"standalone", b"role", b"master"]


@command
def client(data, subcommand, *words):
    if subcommand.upper() not in (b"SETINFO", b"SETNAME"):
        raise ReplyError(f"ERR unknown subcommand '{printable(subcommand)}'")
    return "OK"


@command
def config(data, subcommand, *names):
    if subcommand.upper() != b"GET":
        raise ReplyError("ERR there is nothing to configure but with --help")
    return [word for name in names for word in (name, b"")]


@command
def command_(data, *words):
    return []  # redis-cli asks for hints


@command
def info(data, *sections):
    return b"# Server\r\nserver_name:pulsar\r\n\r\n# Keyspace\r\nkeys:%d\r\n" % len(data)


# Keys


@command
def exists(data, key, *more):
    return sum(name in data for name in (key, *more))


@command
def del_(data, key, *more):
    return sum(data.pop(name, None) is not None for name in (key, *more))


@command
def dbsize(data):
    return len(data)


@command
def flushdb(data):
    data.clear()
    return "OK"


# Strings


@command
def get(data, key):
    return of_kind(bytes, data[key]) if key in data else None


@command
def set_(data, key, value):
    data[key] = value
    return "OK"


@command
def mget(data, *keys):
    values = (data.get(key) for key in keys)
    return bounded([value if isinstance(value, bytes) else None for value in values])


@command
def mset(data, *words):
    if not words or len(words) % 2:
        raise ReplyError("ERR wrong number of arguments for 'mset' command")
    data.update(zip(words[::2], words[1::2], strict=True))
    return "OK"


@command
def incrby(data, key, amount):
    value = b"%d" % (integer(of_kind(bytes, data.get(key, b"0"))) + integer(amount))
    number = integer(value)  # or it has become too large
    data[key] = value
    return number


@command
def incr(data, key):
    return incrby(data, key, b"1")


@command
def decr(data, key):
    return incrby(data, key, b"-1")


# Lists


def items(data, key):
    return of_kind(deque, data.get(key, deque()))


@command
def lpush(data, key, value, *more):
    values = data[key] = items(data, key)
    values.extendleft((value, *more))
    return len(values)


@command
def rpush(data, key, value, *more):
    values = data[key] = items(data, key)
    values.extend((value, *more))
    return len(values)


@command
def lpop(data, key):
    return pop(data, key, deque.popleft)


@command
def rpop(data, key):
    return pop(data, key, deque.pop)


def pop(data, key, take):
    values = items(data, key)
    value = take(values) if values else None
    if not values:
        data.pop(key, None)
    return value


@command
def llen(data, key):
    return len(items(data, key))


@command
def lrange(data, key, start, stop):
    values = items(data, key)
    first, last, _ = slice(integer(start), integer(stop) + 1 or None).indices(len(values))
    return bounded(list(islice(values, first, last)))
