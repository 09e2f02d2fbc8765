"""Clients that go away in the middle leave nothing behind: no descriptor, no memory.

    python benchmarks/soak/gone.py --option=--threads=4

Uploads and downloads that are broken off at random, by a reset, an end, or half of one; 1200 in
each round. A line for each round. Exit code 1 where the worker has more descriptors than
before, has grown by more than 32 MiB behind the first round, or has logged an error.

Owns: the clients, the verdict.
Leaves: the server to ``serving``.
"""

import argparse
import contextlib
import random
import socket
import struct
import sys
import threading
import time
from pathlib import Path

if not __package__:
    # Run as a script: the repository's root is not among the places to import from.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.chaos import kernel
from benchmarks.soak.serving import MIB, Serving

CLIENTS = 8
TIMES = 150
LIMIT = 32 * MIB
PATIENCE = 30.0

RESET = struct.pack("ii", 1, 0)
DOWNLOADS = ("/iterable?size=20000000", "/file?size=20000000", "/page?size=3000000")


def upload(sock: socket.socket, chance: random.Random) -> None:
    """A part of one. Raises ``OSError``."""
    size = chance.choice([100, 70_000, 1_000_000, 5_000_000])
    chunked = chance.random() < 0.3
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    expect = "Expect: 100-continue\r\n" if chance.random() < 0.2 else ""
    sock.sendall(f"POST /upload HTTP/1.1\r\nHost: a\r\n{expect}{framing}\r\n\r\n".encode())
    rest = chance.randrange(size)
    while rest:
        piece = b"x" * min(rest, chance.choice([1000, 65536, 300_000]))
        sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        rest -= len(piece)
        if chance.random() < 0.05:
            time.sleep(0.15)


def download(sock: socket.socket, chance: random.Random) -> None:
    """A part of one, or of the first of three. Raises ``OSError``."""
    request = f"GET {chance.choice(DOWNLOADS)} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    sock.sendall(request * chance.choice([1, 3]))
    sock.recv(chance.choice([1, 1000, 100_000]))


def client(port: int, seed: int) -> None:
    """One after the other."""
    chance = random.Random(seed)
    for _ in range(TIMES):
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        # A server that has had enough may be faster.
        with sock, contextlib.suppress(OSError):
            chance.choice([upload, download])(sock, chance)
            match chance.randrange(3):
                case 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                case 1:
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(1000)


def one_round(port: int, number: int) -> None:
    """All clients at once."""
    seeds = range(number * CLIENTS, (number + 1) * CLIENTS)
    threads = [threading.Thread(target=client, args=(port, seed)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=4, help="(4)")
    add("--option", action="append", default=[], help="one more of pulsar serve: --option=--x=1")
    options = parser.parse_args()
    with Serving("--workers=1", *options.option) as server:
        [worker] = server.workers()
        before = len(kernel.descriptors(worker))
        memory: list[int] = []
        for number in range(options.rounds):
            one_round(server.port, number)
            until = time.monotonic() + PATIENCE
            while (left := len(kernel.descriptors(worker)) - before) > 0:
                if time.monotonic() > until:
                    print(f"{left} descriptors are left: {kernel.descriptors(worker)}")
                    return 1
                time.sleep(0.1)
            memory.append(server.memory())
            print(f"{CLIENTS * TIMES} clients: {memory[-1] / MIB:.1f} MiB", flush=True)
        if "[ERROR]" in server.log():
            print(server.log()[-3000:])
            return 1
    return int(memory[-1] - memory[0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
