"""What the tests of protocols share: flavours of stream, certificates."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support.conformance")

from pulsar.tls import client_context, server_context  # noqa: E402 - rewritten first
from tests.support.certs import Certificates, certs  # noqa: E402
from tests.support.flavours import Flavour  # noqa: E402

__all__ = ["certs"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="pulsar-") as path:
        yield Path(path)


@pytest.fixture
def tcp(directory: Path) -> Flavour:
    return Flavour("tcp", directory)


@pytest.fixture
def unix(directory: Path) -> Flavour:
    return Flavour("unix", directory)


@pytest.fixture
def tls(directory: Path, certs: Certificates) -> Flavour:
    return Flavour(
        "tls",
        directory,
        server_context(certs.server_cert, certs.server_key),
        client_context(certs.ca),
    )


@pytest.fixture(params=["tcp", "tls", "unix"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Each flavour in turn."""
    made: Flavour = request.getfixturevalue(request.param)
    return made
