"""What a chaos run deploys as ``deployed``: the echo example over UDP, with words for the run.

``!version`` is answered with the version that was deployed; ``!sleep`` and ``!spin`` are never
answered, nor is anything behind them in the same worker.
"""

import time

from manage import EchoUdpServerProtocol

VERSION = b"0"


class Served(EchoUdpServerProtocol):
    """The example's protocol."""

    def datagram_received(self, data, addr):
        match data:
            case b"!version":
                self.sendto(VERSION, addr)
            case b"!sleep":
                asleep_for_good()
            case b"!spin":
                spins_for_good()
            case _:
                super().datagram_received(data, addr)


def asleep_for_good():
    """A blocking call."""
    while True:
        time.sleep(3600)


def spins_for_good():
    """No call at all."""
    while True:
        pass
