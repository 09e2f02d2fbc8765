"""Slow clients, hundreds and thousands, and one that wants to be served meanwhile.

    python benchmarks/soak/slow.py --workers 2 --connections 1000

The slow ones are those of slowhttptest, in its four modes: heads that take for ever (H),
bodies that do (B), ranges without number (R), and readers of a few bytes a second (X). The
other asks for 13 bytes every 20 ms, on a new connection each time, and on one that it keeps.

A line for each mode, and exit code 1 where the 99th percentile of one of them is above 50 ms,
or where an answer fails to come.

Owns: the modes, the second client, the verdict.
Leaves: the server to ``serving``.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:
    # Run as a script: the repository's root is not among the places to import from.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.soak.serving import MIB, Serving

PACE = 0.02
LIMIT_MS = 50.0
PATIENCE = 5.0
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWER = b"Hello, World!"

# What each mode asks for, and how.
MODES = {
    "H": ("-i", "10", "-x", "24", "-u", "{url}/"),
    "B": ("-i", "10", "-x", "24", "-s", "65536", "-u", "{url}/upload"),
    "R": ("-a", "0", "-b", "3000", "-u", "{url}/page?size=100000"),
    "X": ("-w", "10", "-y", "20", "-n", "2", "-z", "16", "-u", "{url}/page?size=300000"),
}


@dataclass
class Tally:
    """Latencies in milliseconds, and why requests have failed."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def __str__(self) -> str:
        return (
            f"{len(self.latencies)} answers, p50 {self.percentile(0.5):.1f} ms, "
            f"p99 {self.percentile(0.99):.1f} ms, max {self.percentile(1):.1f} ms, "
            f"{len(self.failures)} failed {self.failures[:1] or ''}"
        )


def ask(sock: socket.socket) -> None:
    """One request. Raises ``OSError``."""
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(ANSWER):
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionResetError("ended")
        answer += piece


class Clients:
    """The second client: on a new connection each time, and on one that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept = self._connect()
        self.new = Tally()
        self.kept = Tally()

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), PATIENCE)

    def go(self) -> None:
        """One request of either kind."""
        begun = time.perf_counter()
        try:
            with self._connect() as sock:
                ask(sock)
            self.new.latencies.append((time.perf_counter() - begun) * 1000)
        except OSError as error:
            self.new.failures.append(str(error))
        begun = time.perf_counter()
        try:
            ask(self._kept)
            self.kept.latencies.append((time.perf_counter() - begun) * 1000)
        except OSError as error:
            self.kept.failures.append(str(error))
            self._kept.close()
            self._kept = self._connect()

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            due = time.monotonic() + PACE
            self.go()
            time.sleep(max(0.0, due - time.monotonic()))

    def close(self) -> None:
        self._kept.close()


def torment(mode: str, options: argparse.Namespace) -> bool:
    """One mode; True when the second client was served in time."""
    extra = ["--workers", str(options.workers), *options.option]
    with Serving(*extra) as server:
        clients = Clients(server.port)
        clients.run(1.0)
        before = server.memory()
        clients.new, clients.kept = Tally(), Tally()
        arguments = [part.format(url=f"http://127.0.0.1:{server.port}") for part in MODES[mode]]
        command = ["slowhttptest", f"-{mode}", "-c", str(options.connections)]
        command += ["-r", str(options.rate), "-l", str(options.seconds), *arguments]
        slow = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        clients.run(options.seconds + 1)
        most = server.memory()
        try:
            output, _ = slow.communicate(timeout=60)
        finally:
            slow.kill()
        clients.close()
        last = [line.strip() for line in output.splitlines() if line.startswith(("Exit", "slow "))]
        print(
            f"-{mode} {options.connections} connections, {options.workers} workers\n"
            f"   new:  {clients.new}\n   kept: {clients.kept}\n"
            f"   memory of the workers: {before / MIB:.0f} MiB, then {most / MIB:.0f} MiB; {last}",
            flush=True,
        )
        errors = [line for line in server.log().splitlines() if "Traceback" in line]
        if errors:
            print(server.log()[-3000:])
        tallies = (clients.new, clients.kept)
        served = all(not tally.failures and tally.percentile(0.99) < LIMIT_MS for tally in tallies)
        return served and not errors


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--workers", type=int, default=2, help="(2)")
    add("--connections", type=int, default=1000, help="slow ones (1000)")
    add("--rate", type=int, default=300, help="slow ones that connect in a second (300)")
    add("--seconds", type=int, default=20, help="for each mode (20)")
    add("--modes", default="HBRX", help="(HBRX)")
    add("--option", action="append", default=[], help="one more of pulsar serve: --option=--x=1")
    options = parser.parse_args()
    if shutil.which("slowhttptest") is None:
        parser.error("slowhttptest is needed (Debian package slowhttptest)")
    return int(not all(torment(mode, options) for mode in list(options.modes)))


if __name__ == "__main__":
    sys.exit(main())
