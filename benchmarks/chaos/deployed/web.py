"""What a chaos run deploys as ``deployed``: a WSGI application that answers with its path.

``/!version`` is answered with the version that was deployed; ``/!sleep`` and ``/!spin`` are never
answered, nor is anything behind them in the same worker, unless it has threads.
"""

import time

VERSION = b"0"


def Served(environ, start_response):  # noqa: N802 - the name that is served in all flavours
    """The application."""
    answer = environ["PATH_INFO"].encode("latin-1")[1:]
    match answer:
        case b"!version":
            answer = VERSION
        case b"!sleep":
            asleep_for_good()
        case b"!spin":
            spins_for_good()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


def asleep_for_good():
    """A blocking call."""
    while True:
        time.sleep(3600)


def spins_for_good():
    """No call at all."""
    while True:
        pass
