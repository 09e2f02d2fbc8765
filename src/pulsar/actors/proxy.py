"""Proxies: how an actor is known to others.

Owns: ``ActorProxy``, which can be sent around like any value.
Leaves: finding the actor to ``router``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actor import Actor

__all__ = ["ActorProxy", "address_of"]


class ActorProxy:
    """An actor somewhere, perhaps in another process, perhaps gone by now."""

    __slots__ = ("aid", "name")

    def __init__(self, aid: str, name: str | None = None) -> None:
        self.aid = aid
        self.name = name or aid

    def __repr__(self) -> str:
        return (
            f"<actor {self.name}>" if self.name == self.aid else f"<actor {self.name} {self.aid}>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorProxy) and other.aid == self.aid

    def __hash__(self) -> int:
        return hash(self.aid)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return type(self), (self.aid, self.name)


def address_of(target: str | ActorProxy | Actor) -> str:
    """The name or id that a message to ``target`` carries."""
    return target if isinstance(target, str) else target.aid
