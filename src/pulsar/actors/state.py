"""The life of an actor: its states, and the moves between them.

Owns: ``State`` and the one table of legal moves.
Leaves: when an actor moves to the actor.
"""

from __future__ import annotations

from enum import IntEnum

from ..errors import ActorError

__all__ = ["State", "check_move"]


class State(IntEnum):
    """The states of an actor, in their only order."""

    INITIAL = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    CLOSED = 4


_MOVES: dict[State, frozenset[State]] = {
    State.INITIAL: frozenset({State.STARTING, State.CLOSED}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.CLOSED}),
    State.RUNNING: frozenset({State.STOPPING, State.CLOSED}),
    State.STOPPING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


def check_move(old: State, new: State) -> State:
    """``new``, if an actor may go there from ``old``. Raises ``ActorError`` otherwise."""
    if new not in _MOVES[old]:
        raise ActorError(f"an actor cannot go from {old.name.lower()} to {new.name.lower()}")
    return new
