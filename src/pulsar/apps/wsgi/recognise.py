"""What looks like a WSGI application, told without calling it.

Owns: ``is_wsgi`` and ``takes_two``.
Leaves: what else there is to serve to ``protocols.kinds``.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from ...protocols.consumer import ProtocolConsumer

__all__ = ["is_asynchronous", "is_wsgi", "takes_two"]


def is_wsgi(thing: Any) -> bool:
    """True for what is called as ``application(environ, start_response)``, and is no protocol.

    A function, an instance with ``__call__``, or a class whose instances are iterables. A
    coroutine function of two arguments is a stream handler, unless told otherwise.
    """
    if not callable(thing) or is_asynchronous(thing) or _is_protocol(thing):
        return False
    if isinstance(thing, type):
        return hasattr(thing, "__iter__") and _required(thing) == 2
    required = _required(thing)
    if required == 2:
        return True
    # Decorators hide what they decorate: wrapper(*args), which shows in its signature
    # nothing, or the one argument of a function that takes a framework's request.
    return required in {0, 1} and _takes_any_number(thing, required)


def takes_two(thing: Any) -> bool:
    """False for what cannot be called with two arguments, as far as that can be seen."""
    if not callable(thing):
        return False
    try:
        signature = inspect.signature(thing, follow_wrapped=False)
        signature.bind({}, None)
    except TypeError:
        return False
    except ValueError:
        pass  # built in: it is not known
    return True


def is_asynchronous(thing: Any) -> bool:
    """True for a coroutine function, and an object that is called as one."""
    return inspect.iscoroutinefunction(thing) or inspect.iscoroutinefunction(
        getattr(type(thing), "__call__", None)  # noqa: B004 - the method itself, not whether
    )


def _is_protocol(thing: Any) -> bool:
    bases = (asyncio.BaseProtocol, ProtocolConsumer)
    return issubclass(thing, bases) if isinstance(thing, type) else isinstance(thing, bases)


def _required(thing: Any) -> int | None:
    """How many positional arguments it needs; None: it is not known, or others, too."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [one for one in parameters if one.default is one.empty]
    if any(one.kind is one.KEYWORD_ONLY for one in needed):
        return None
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in needed)


def _takes_any_number(thing: Any, required: int) -> bool:
    """True for ``wrapper(*args)``; a wrapper that says it needs nothing is believed."""
    shown = _has_var_positional(inspect.signature(thing))
    hidden = _has_var_positional(inspect.signature(thing, follow_wrapped=False))
    return shown if required == 0 else hidden


def _has_var_positional(signature: inspect.Signature) -> bool:
    return any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values())
