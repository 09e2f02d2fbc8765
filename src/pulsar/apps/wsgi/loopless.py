"""Calling synchronous code on the loop as if there were none.

Owns: ``without_loop`` and ``with_loop``.
Leaves: what is called to the caller.

A synchronous application blocks the loop while it runs, so no running loop is any use to
it. To see one does harm: Django's ORM refuses to work, asyncio.run() and asgiref's bridges
to ``async`` views refuse to run another, and database connections are kept for each client
instead of each thread. What makes a Future of a coroutine finds the loop all the same:
``ensure_future`` looks for the thread's loop then, whether it runs or not, until somebody calls
``asyncio.run``, which leaves the thread without one. An ``async def`` application sees the loop
that runs it.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop, _set_running_loop
from collections.abc import Callable
from typing import Any

__all__ = ["with_loop", "without_loop"]

Loop = asyncio.AbstractEventLoop | None


def without_loop(loop: Loop, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, to which ``loop``, which runs, is invisible.

    With None it is simply called.
    """
    if loop is None:
        return function(*args)
    _set_running_loop(None)
    try:
        return function(*args)
    finally:
        _set_running_loop(loop)


def with_loop(loop: Loop, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, to which ``loop`` is visible, in the middle of ``without_loop``."""
    before = _get_running_loop()
    _set_running_loop(loop)
    try:
        return function(*args)
    finally:
        _set_running_loop(before)
