"""The public room of the framers: lines, delimiters and lengths, without I/O.

Owns: nothing; it re-exports.
Leaves: the framers to ``pulsar.wire.framing``, their errors to ``pulsar.errors``.
"""

from .errors import FrameTooLarge, IncompleteFrame, InvalidMessage
from .wire.framing import DelimiterFramer, Framer, LengthFramer, LineFramer

__all__ = [
    "DelimiterFramer",
    "FrameTooLarge",
    "Framer",
    "IncompleteFrame",
    "InvalidMessage",
    "LengthFramer",
    "LineFramer",
]
