"""Certificates for the TLS tests: one authority per session, and files made with it.

Owns: the ``certs`` fixture and the plain function behind it, ``make_certificates``.
Leaves: contexts and handshakes to the tests.

A test module that uses the fixture imports it by name, unless a conftest does.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

KEY_PASSWORD = "open sesame"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files; each key stands in a file next to its certificate.

    ``server`` and ``renewed`` are for localhost, 127.0.0.1 and ::1 and differ in
    their serial numbers only. ``elsewhere`` is for elsewhere.example. ``client``
    is signed by ``ca``, ``stranger`` by ``other_ca``. ``server_encrypted_key`` is
    the server's key under ``KEY_PASSWORD``, ``server_bundle`` key and certificate
    in one file.
    """

    ca: Path
    other_ca: Path
    server_cert: Path
    server_key: Path
    server_encrypted_key: Path
    server_bundle: Path
    renewed_cert: Path
    renewed_key: Path
    elsewhere_cert: Path
    elsewhere_key: Path
    client_cert: Path
    client_key: Path
    stranger_cert: Path
    stranger_key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make two authorities and write all files into ``directory``."""
    ca, other_ca = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    other_ca.cert_pem.write_to_path(directory / "other_ca.pem")

    def issue(authority: trustme.CA, name: str, *identities: str) -> trustme.LeafCert:
        leaf = authority.issue_cert(*identities)
        leaf.private_key_pem.write_to_path(directory / f"{name}.key")
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(directory / f"{name}.crt", append=True)
        return leaf

    server = issue(ca, "server", "localhost", "127.0.0.1", "::1")
    issue(ca, "renewed", "localhost", "127.0.0.1", "::1")
    issue(ca, "elsewhere", "elsewhere.example")
    issue(ca, "client", "client@pulsar.example")
    issue(other_ca, "stranger", "stranger@pulsar.example")
    server.private_key_and_cert_chain_pem.write_to_path(directory / "server_bundle.pem")
    key = serialization.load_pem_private_key(server.private_key_pem.bytes(), None)
    (directory / "server_encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(KEY_PASSWORD.encode()),
        )
    )
    return Certificates(
        ca=directory / "ca.pem",
        other_ca=directory / "other_ca.pem",
        server_cert=directory / "server.crt",
        server_key=directory / "server.key",
        server_encrypted_key=directory / "server_encrypted.key",
        server_bundle=directory / "server_bundle.pem",
        renewed_cert=directory / "renewed.crt",
        renewed_key=directory / "renewed.key",
        elsewhere_cert=directory / "elsewhere.crt",
        elsewhere_key=directory / "elsewhere.key",
        client_cert=directory / "client.crt",
        client_key=directory / "client.key",
        stranger_cert=directory / "stranger.crt",
        stranger_key=directory / "stranger.key",
    )


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The session's certificates, in a directory of pytest's."""
    return make_certificates(tmp_path_factory.mktemp("certs"))
