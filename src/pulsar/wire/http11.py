"""HTTP/1.1 without I/O, for servers and for clients.

Owns: the names that the floors above use; each is documented where it is defined.
Leaves: everything else to the modules whose names begin with ``http11_``.

::

    heads = RequestHeads(limits)               # one for a server

    request = heads.find(data)                 # the common case: a whole head
    parser = RequestParser(heads, request)     # its body, or a head that is not whole
    tail = parser.feed(data[request.size:])    # until parser.complete; parser.read()
"""

from __future__ import annotations

from .headers import Fields, field_line
from .http11_framing import (
    CHUNKED,
    UNTIL_CLOSE,
    answer_framing,
    has_body,
    has_framing_fields,
    options,
    request_framing,
    response_framing,
)
from .http11_limits import IncompleteMessage, Limits, MessageRefused
from .http11_render import CONTINUE, last_chunk, render_chunk, render_request, render_response
from .http11_request import KNOWN_LENGTH, Request, RequestHeads, RequestParser
from .http11_response import Response, ResponseParser

__all__ = [
    "CHUNKED",
    "CONTINUE",
    "KNOWN_LENGTH",
    "UNTIL_CLOSE",
    "Fields",
    "IncompleteMessage",
    "Limits",
    "MessageRefused",
    "Request",
    "RequestHeads",
    "RequestParser",
    "Response",
    "ResponseParser",
    "answer_framing",
    "field_line",
    "has_body",
    "has_framing_fields",
    "last_chunk",
    "options",
    "render_chunk",
    "render_request",
    "render_response",
    "request_framing",
    "response_framing",
]
