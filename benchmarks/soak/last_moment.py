"""Requests in the very moment in which a server that ends closes idle connections.

    python benchmarks/soak/last_moment.py

A connection of HTTP that waits for its next request cannot be told that there is to be none:
the server gives it a second, and closes it. Here 400 connections wait, the server is told to
stop, and each sends a request around that second, unless its end has come before. A request
that was sent and has no answer is lost: nobody knows whether it was served.

A line for each round, and exit code 1 where more than one in a hundred was lost.

Owns: the connections, the moment, the count.
Leaves: the server to ``serving``.
"""

import argparse
import random
import select
import socket
import sys
import time
from collections import Counter
from pathlib import Path

if not __package__:
    # Run as a script: the repository's root is not among the places to import from.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.soak.serving import Serving

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENCE = 5.0
# Seconds behind the signal between which the requests are sent: the server closes idle
# connections a second later, when it looks.
MOMENT = (0.97, 1.12)


def one_round(connections: int, chance: random.Random, options: list[str]) -> Counter[str]:
    """Start a server, stop it, and send; how many were closed before, answered and lost."""
    found: Counter[str] = Counter()
    with Serving("--workers=1", *options) as server:
        socks = []
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(REQUEST)
            sock.recv(4096)
            socks.append(sock)
        moments = sorted(chance.uniform(*MOMENT) for _ in socks)
        server.stop()
        begun = time.monotonic()
        asked = []
        for moment, sock in zip(moments, socks, strict=True):
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            if select.select([sock], [], [], 0)[0]:
                found["closed before"] += 1
                continue
            asked.append(sock)
            try:
                sock.sendall(REQUEST)
            except OSError:
                continue  # its answer does not come, either
        for sock in asked:
            try:
                answered = sock.recv(4096).startswith(b"HTTP/1.1 200 ")
            except OSError:
                answered = False
            found["answered" if answered else "lost"] += 1
        for sock in socks:
            sock.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--connections", type=int, default=400, help="(400)")
    add("--rounds", type=int, default=5, help="(5)")
    add("--option", action="append", default=[], help="one more of pulsar serve: --option=--x=1")
    options = parser.parse_args()
    chance = random.Random(1)
    total: Counter[str] = Counter()
    for _ in range(options.rounds):
        found = one_round(options.connections, chance, options.option)
        total += found
        print(dict(found), flush=True)
    print(f"in all: {dict(total)}")
    return int(total["lost"] * 100 > total["lost"] + total["answered"])


if __name__ == "__main__":
    sys.exit(main())
