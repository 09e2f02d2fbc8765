"""Commands: what one actor can ask of another.

Owns: the registry, the ``command`` decorator, ``CommandRequest`` and the built-in
commands.
Leaves: the way to the actor and back to ``router``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CommandNotFound

if TYPE_CHECKING:
    from .actor import Actor
    from .proxy import ActorProxy

__all__ = ["Command", "CommandRequest", "command", "find_command", "run_command"]


class CommandRequest(NamedTuple):
    """What a command function is called with, before its arguments."""

    actor: Actor
    """The actor that the command is for: this one."""
    caller: ActorProxy
    """The actor that has sent it."""
    command: str
    """The command's name."""


class Command(NamedTuple):
    """A registered command."""

    name: str
    function: Callable[..., Any]
    ack: bool


_commands: dict[str, Command] = {}


def command(
    ack: bool = True, name: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function, plain or ``async``, as a command of every actor.

    It is called as ``function(request, *args, **kwargs)`` with a ``CommandRequest``,
    in the process of the actor that the command is sent to; what it returns, or
    raises, the sender gets. A process knows the commands of the modules that it
    has imported.

    :param ack: False: nobody waits for it, and ``send`` returns None at once
    :param name: by default the function's
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        found = Command(name or function.__name__, function, ack)
        _commands[found.name] = found
        return function

    return register


def find_command(name: str) -> Command:
    """The command called ``name``. Raises ``CommandNotFound``."""
    try:
        return _commands[name]
    except KeyError:
        from difflib import get_close_matches  # only for those who mistype

        near = get_close_matches(name, _commands, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CommandNotFound(f"this actor has no command {name!r}{hint}") from None


def wants_answer(name: str) -> bool:
    """False for a command that is known here to have no answer."""
    found = _commands.get(name)
    return found is None or found.ack


async def run_command(
    request: CommandRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the command and return its result. Raises what it raises, or ``CommandNotFound``."""
    result = find_command(request.command).function(request, *args, **kwargs)
    if inspect.isawaitable(result):
        result = await result
    return result


@command()
def ping(request: CommandRequest) -> str:
    """``"pong"``: the actor's loop turns."""
    return "pong"


@command()
def echo(request: CommandRequest, message: Any) -> Any:
    """``message``, there and back."""
    return message


@command()
def info(request: CommandRequest) -> dict[str, Any]:
    """``Actor.info()``: what there is to know about the actor, as plain data."""
    return request.actor.info()


@command(ack=False)
def notify(request: CommandRequest, news: dict[str, Any]) -> None:
    """Tell the actor something about the caller: it is kept in ``actor.notices``."""
    request.actor.notices[request.caller.aid] = news


@command()
async def run(
    request: CommandRequest, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """The result of ``function(actor, *args, **kwargs)``, called in the actor's loop.

    The function, plain or ``async``, must be importable where the actor lives, or
    have existed before its process was forked.
    """
    result = function(request.actor, *args, **kwargs)
    if inspect.isawaitable(result):
        result = await result
    return result


@command(ack=False)
def stop(request: CommandRequest) -> None:
    """End the actor gracefully; the arbiter's end is everybody's end."""
    request.actor.stop()


@command()
async def kill_actor(request: CommandRequest, aid: str) -> str:
    """End another actor that hangs below this one, at once. Raises ``ActorGone``."""
    return await request.actor.kill_actor(aid)
