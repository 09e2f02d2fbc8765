"""Fuzzes the engine: ``python -m tests.wire.fuzz_http11 [SECONDS]``.

With atheris, which follows the branches that an input takes, where that is
installed; with hypothesis otherwise. Not collected by pytest. What it finds is
raised; its input becomes a case of the corpus, or an example of a property.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris: Any = None
    watched = contextlib.nullcontext()
else:
    watched = atheris.instrument_imports(include=["pulsar.wire"])

with watched:
    from .http11_corpus.engine import SMALL, check_invariants
from .http11_corpus.load import cases, pieces


def one_input(data: bytes) -> None:
    """The first bytes say where to cut, and by which limits to measure."""
    if len(data) >= 4:
        check_invariants(data[4:], list(data[:3]), SMALL if data[3] & 1 else None)


def with_atheris(seconds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, case in enumerate(cases()):
            if len(case.send) < 4000:
                choice = bytes([5, 30, 60, number & 1])
                (folder / f"{number:03}").write_bytes(choice + case.send)
        options = [f"-max_total_time={seconds}", "-max_len=4096", "-verbosity=1", name]
        atheris.Setup([sys.argv[0], *options], one_input)
        atheris.Fuzz()


def with_hypothesis(seconds: int) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    soup = st.lists(st.sampled_from(pieces()) | st.binary(max_size=3), max_size=24).map(b"".join)
    mixed = soup | st.sampled_from([case.send for case in cases()])

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=4, max_size=4), mixed, st.integers(0, 400), st.binary(max_size=3))
    def run(choice: bytes, data: bytes, where: int, new: bytes) -> None:
        one_input(choice + data[:where] + new + data[where + len(new) :])

    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        run()
        rounds += 1
    print(f"{rounds} rounds of 1000 inputs: nothing found")


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    if atheris is None:
        with_hypothesis(seconds)
    else:
        with_atheris(seconds)


if __name__ == "__main__":
    main()
