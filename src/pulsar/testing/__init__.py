"""Servers for test suites: whatever pulsar serves, on a free port, in the background.

Owns: the names that are public. They are imported when they are asked for, so that the
fixture of ``plugin`` costs nothing until a test uses it.
Leaves: everything else to the modules in here.
"""

from typing import TYPE_CHECKING

from ..doors import lazy

if TYPE_CHECKING:
    from .server import Server
    from .serving import serve
else:
    __getattr__ = lazy(__name__, {"Server": "server", "serve": "serving"})

__all__ = ["Server", "serve"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
