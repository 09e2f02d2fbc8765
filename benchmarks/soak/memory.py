"""A million requests on kept connections leave a worker's memory where it was.

    python benchmarks/soak/memory.py
    python benchmarks/soak/memory.py --vary --option=--threads=4
    python benchmarks/soak/memory.py --option=--access-log=/tmp/access.log

One worker, 64 connections; a line with its memory (PSS) for each tenth of the requests. Exit
code 1 where it has grown by more than a MiB behind the first tenth.

With ``--vary`` each request has a path, a user and a cookie of its own, so that nothing that
is kept for heads that come again is found.

Owns: the requests, the samples, the verdict.
Leaves: the server to ``serving``, the clients to ``load.c``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    # Run as a script: the repository's root is not among the places to import from.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.harness.load import build
from benchmarks.harness.peers import BUILD
from benchmarks.soak.serving import MIB, Serving

CONNECTIONS = 64
SAMPLES = 10
LIMIT = MIB
# Seconds for which they send between two looks.
SLICE = 1.0

PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: soak\r\nAccept: */*\r\n\r\n"
VARIED = (
    b"GET /########?user=~~~~~~~~ HTTP/1.1\r\nHost: localhost\r\nUser-Agent: soak\r\n"
    b"Accept: */*\r\nCookie: session=########\r\n\r\n"
)


def send(port: int, request: Path, options: argparse.Namespace) -> int:
    """Requests for a while; returns how many were answered. Raises ``RuntimeError``."""
    command = [str(BUILD / "load"), "http", f"127.0.0.1:{port}", "-q", str(request)]
    command += ["-c", str(CONNECTIONS), "-d", str(SLICE), "-w", "0"]
    if options.vary:
        command.append("--vary")
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    answer = json.loads(ran.stdout)
    if answer["errors"]:
        raise RuntimeError(f"{answer['errors']} requests have failed")
    return int(answer["messages"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--requests", type=int, default=1_000_000, help="(1000000)")
    add("--vary", action="store_true", help="no request is like another")
    add("--option", action="append", default=[], help="one more of pulsar serve: --option=--x=1")
    options = parser.parse_args()
    build()
    samples: list[int] = []
    with tempfile.TemporaryDirectory() as name, Serving("--workers=1", *options.option) as server:
        request = Path(name, "request")
        request.write_bytes(VARIED if options.vary else PLAIN)
        idle = server.memory()
        print(f"idle: {idle / MIB:.2f} MiB", flush=True)
        begun = time.monotonic()
        sent = 0
        while sent < options.requests:
            sent += send(server.port, request, options)
            if sent >= options.requests * (len(samples) + 1) / SAMPLES:
                samples.append(server.memory())
                print(f"{sent} requests: {samples[-1] / MIB:.2f} MiB", flush=True)
        seconds = time.monotonic() - begun
        growth = samples[-1] - samples[0]
        print(
            f"{sent} requests in {seconds:.0f} s, {growth / 1024:+.0f} KiB behind the first tenth"
        )
        if "Traceback" in server.log():
            print(server.log()[-3000:])
            return 1
    return int(growth > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
