"""What a chaos run deploys as ``deployed``: the line example, with words for the run.

``!version`` is answered with the version that was deployed; ``!sleep`` and ``!spin`` are never
answered, nor is anything behind them in the same worker.
"""

import time

from manage import LineServerProtocol

VERSION = b"0"


class Served(LineServerProtocol):
    """The example's protocol."""

    def data_received(self, data):
        match data:
            case b"!version\r\n":
                self.write(b"OK " + VERSION + b"\r\n")
                self.finished()
                return b""
            case b"!sleep\r\n":
                asleep_for_good()
            case b"!spin\r\n":
                spins_for_good()
        return super().data_received(data)


def asleep_for_good():
    """A blocking call."""
    while True:
        time.sleep(3600)


def spins_for_good():
    """No call at all."""
    while True:
        pass
