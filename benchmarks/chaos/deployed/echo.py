"""What a chaos run deploys as ``deployed``: the echo example, with words for the run.

``!version`` is answered with the version that was deployed; ``!sleep`` and ``!spin`` are never
answered, nor is anything behind them in the same worker.
"""

import time

from manage import EchoServerProtocol

VERSION = b"0"


class Served(EchoServerProtocol):
    """The example's protocol."""

    def data_received(self, data):
        match data.removesuffix(self.separator):
            case b"!version":
                self.write(VERSION + self.separator)
                self.finished()
                return b""
            case b"!sleep":
                asleep_for_good()
            case b"!spin":
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
