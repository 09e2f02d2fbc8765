"""The ambient actor: ``get_actor``, ``arbiter``, ``spawn``, ``send``.

Owns: these functions, for code that has no actor at hand.
Leaves: everything to the actor that runs.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import ActorError
from .actor import Actor, current_actor
from .hosts import spawn as spawn_from
from .proxy import ActorProxy

__all__ = ["get_actor", "send", "spawn"]


def get_actor() -> Actor | None:
    """The actor whose code runs; None outside of any.

    In a worker it is the worker, in a monitor's hook the monitor, in a spawned
    actor's commands and hooks that actor.
    """
    return current_actor()


async def spawn(
    name: str | None = None,
    *,
    concurrency: str = "process",
    actor_class: type[Actor] = Actor,
    **params: Any,
) -> ActorProxy:
    """A new actor, started by the one that runs; returns its proxy when it runs.

    See ``pulsar.actors.hosts.spawn`` for the arguments. Raises ``ActorError`` when
    there is no actor to start it.
    """
    actor = _here("spawn an actor")
    return await spawn_from(actor, name, concurrency=concurrency, actor_class=actor_class, **params)


def send(
    target: str | ActorProxy | Actor, command: str, *args: Any, **kwargs: Any
) -> asyncio.Task[Any]:
    """Send a command from the actor that runs: see ``Actor.send``.

    Raises ``ActorError`` when there is no actor to send it.
    """
    return _here("send a command").send(target, command, *args, **kwargs)


def _here(purpose: str) -> Actor:
    actor = current_actor()
    if actor is None:
        raise ActorError(
            f"no actor runs here to {purpose}: do it in a hook, a command, or a worker, or "
            "give your function to arbiter(start=...)"
        )
    return actor
