"""TLS contexts: what they accept, what they refuse, and the sentences they refuse with.

Handshakes run in memory, both sides in one thread.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest

from pulsar.errors import ImproperlyConfigured
from pulsar.tls import client_context, server_context
from tests.support.certs import KEY_PASSWORD, Certificates, certs
from tests.support.privileges import unprivileged

__all__ = ["certs"]


@dataclass
class Handshake:
    """A finished handshake in memory, and what each side learned from it."""

    client: ssl.SSLObject
    server: ssl.SSLObject


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, hostname: str | None = "localhost"
) -> Handshake:
    """Let two contexts meet; raises what the first side to fail raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    client_side = client.wrap_bio(to_client, to_server, server_hostname=hostname)
    waiting = [client_side, server_side]
    while waiting:
        waiting = [side for side in waiting if not finished(side)]
    # With TLS 1.3 a server judges the client's certificate after the client is done.
    client_side.write(b"ping")
    assert server_side.read() == b"ping"
    server_side.write(b"pong")
    assert client_side.read() == b"pong"
    return Handshake(client_side, server_side)


def finished(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def serial(peer: ssl.SSLObject) -> object:
    certificate = peer.getpeercert()
    assert certificate
    return certificate["serialNumber"]


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        server_context(*args, **options)  # type: ignore[arg-type]
    return str(caught.value)


# What works


def test_a_server_and_a_verifying_client_meet(certs: Certificates) -> None:
    server = server_context(certs.server_cert, certs.server_key)
    meeting = shake_hands(server, client_context(certs.ca))
    assert meeting.client.version() == "TLSv1.3"
    assert meeting.client.compression() is None
    assert meeting.server.getpeercert() is None


def test_paths_may_be_texts(certs: Certificates) -> None:
    server = server_context(str(certs.server_cert), str(certs.server_key))
    shake_hands(server, client_context(str(certs.ca)), "127.0.0.1")


def test_key_and_certificate_may_share_a_file(certs: Certificates) -> None:
    shake_hands(server_context(certs.server_bundle), client_context(certs.ca))


def test_an_encrypted_key_opens_with_its_password(certs: Certificates) -> None:
    server = server_context(
        certs.server_cert, certs.server_encrypted_key, key_password=KEY_PASSWORD
    )
    shake_hands(server, client_context(certs.ca))


def test_new_files_make_a_new_context_and_leave_the_old_one(
    certs: Certificates, tmp_path: Path
) -> None:
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    cert.write_bytes(certs.server_cert.read_bytes())
    key.write_bytes(certs.server_key.read_bytes())
    old = server_context(cert, key)
    cert.write_bytes(certs.renewed_cert.read_bytes())
    key.write_bytes(certs.renewed_key.read_bytes())
    new = server_context(cert, key)
    client = client_context(certs.ca)
    first = serial(shake_hands(old, client).client)
    assert serial(shake_hands(new, client).client) != first
    assert serial(shake_hands(old, client).client) == first


def test_the_protocol_is_the_one_that_the_server_prefers(certs: Certificates) -> None:
    server = server_context(certs.server_cert, certs.server_key, alpn=("echo/2", "echo/1"))
    client = client_context(certs.ca, alpn=("echo/1", "echo/2"))
    meeting = shake_hands(server, client)
    assert meeting.server.selected_alpn_protocol() == "echo/2"
    assert meeting.client.selected_alpn_protocol() == "echo/2"


def test_one_protocol_may_be_a_text(certs: Certificates) -> None:
    server = server_context(certs.server_cert, certs.server_key, alpn="echo")
    meeting = shake_hands(server, client_context(certs.ca, alpn=["echo"]))
    assert meeting.server.selected_alpn_protocol() == "echo"


def test_ciphers_are_for_tls_1_2(certs: Certificates) -> None:
    cipher = "ECDHE-ECDSA-AES128-GCM-SHA256"
    server = server_context(certs.server_cert, certs.server_key, ciphers=cipher)
    client = client_context(certs.ca)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    chosen = shake_hands(server, client).client.cipher()
    assert chosen is not None
    assert chosen[0] == cipher


def test_one_ticket_lets_a_client_resume(certs: Certificates) -> None:
    server = server_context(certs.server_cert, certs.server_key)
    assert server.num_tickets == 1
    client = client_context(certs.ca)
    session = shake_hands(server, client).client.session
    assert session is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    client_side = client.wrap_bio(
        to_client, to_server, server_hostname="localhost", session=session
    )
    with pytest.raises(ssl.SSLWantReadError):
        client_side.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        server_side.do_handshake()
    client_side.do_handshake()
    assert client_side.session_reused


# Versions and options


def test_options_are_the_safe_ones(certs: Certificates) -> None:
    for context in (server_context(certs.server_cert, certs.server_key), client_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_1_is_turned_away(certs: Certificates) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(certs.ca)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server_context(certs.server_cert, certs.server_key), client)
    assert caught.value.reason == "UNSUPPORTED_PROTOCOL"


def test_a_minimum_of_1_3_turns_1_2_away(certs: Certificates) -> None:
    server = server_context(certs.server_cert, certs.server_key, minimum_version="1.3")
    client = client_context(certs.ca)
    assert shake_hands(server, client).client.version() == "TLSv1.3"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server, client)
    assert caught.value.reason == "UNSUPPORTED_PROTOCOL"


@pytest.mark.parametrize("version", ["1.1", "TLSv1.2", ""])
def test_no_other_minimum_is_accepted(certs: Certificates, version: str) -> None:
    message = refusal(certs.server_cert, certs.server_key, minimum_version=version)
    assert message == f"minimum TLS version {version!r}: accepted are '1.2' and '1.3'"


# Client certificates


def test_a_required_client_certificate_is_verified(certs: Certificates) -> None:
    server = server_context(
        certs.server_cert, certs.server_key, ca_certs=certs.ca, cert_reqs="required"
    )
    known = client_context(certs.ca, cert_file=certs.client_cert, key_file=certs.client_key)
    subject = shake_hands(server, known).server.getpeercert()
    assert subject
    assert ("email", "client@pulsar.example") in subject["subjectAltName"]

    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server, client_context(certs.ca))
    assert caught.value.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"

    stranger = client_context(certs.ca, cert_file=certs.stranger_cert, key_file=certs.stranger_key)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, stranger)


def test_an_optional_client_certificate_may_be_left_out_but_not_forged(
    certs: Certificates,
) -> None:
    server = server_context(
        certs.server_cert, certs.server_key, ca_certs=certs.ca, cert_reqs="optional"
    )
    assert not shake_hands(server, client_context(certs.ca)).server.getpeercert()
    known = client_context(certs.ca, cert_file=certs.client_cert, key_file=certs.client_key)
    assert shake_hands(server, known).server.getpeercert()
    stranger = client_context(certs.ca, cert_file=certs.stranger_cert, key_file=certs.stranger_key)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, stranger)


def test_authorities_and_requirement_go_together(certs: Certificates) -> None:
    files = (certs.server_cert, certs.server_key)
    message = refusal(*files, cert_reqs="required")
    assert "client certificates are 'required' and no file names the authorities" in message
    message = refusal(*files, ca_certs=certs.ca)
    assert str(certs.ca) in message
    assert "'optional' and 'required'" in message
    message = refusal(*files, ca_certs=certs.ca, cert_reqs="always")
    assert "'always': accepted are 'none', 'optional' and 'required'" in message


# Files that cannot be used


def test_a_missing_file_is_named(certs: Certificates, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    expected = f"TLS file {missing} cannot be read (No such file or directory)"
    assert refusal(missing, certs.server_key) == expected
    assert refusal(certs.server_cert, missing) == expected
    options = {"ca_certs": missing, "cert_reqs": "required"}
    assert refusal(certs.server_cert, certs.server_key, **options) == expected
    with pytest.raises(ImproperlyConfigured, match="No such file"):
        client_context(missing)


def test_a_directory_is_no_file(certs: Certificates, tmp_path: Path) -> None:
    expected = f"TLS file {tmp_path} cannot be read (Is a directory)"
    assert refusal(certs.server_cert, tmp_path) == expected


def test_an_unreadable_file_is_named(certs: Certificates, tmp_path: Path) -> None:
    secret = tmp_path / "server.pem"
    secret.write_bytes(certs.server_bundle.read_bytes())
    secret.chmod(0)
    with pytest.raises(ImproperlyConfigured) as caught, unprivileged():
        server_context(secret)
    assert str(caught.value) == f"TLS file {secret} cannot be read (Permission denied)"


def test_what_is_not_pem_is_named(certs: Certificates, tmp_path: Path) -> None:
    der = tmp_path / "server.der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(certs.server_cert.read_text()))
    assert refusal(der, certs.server_key) == f"TLS file {der} holds no certificate in PEM form"
    assert refusal(certs.server_cert, der) == f"TLS file {der} holds no private key in PEM form"


def test_a_certificate_without_its_key_is_refused(certs: Certificates) -> None:
    message = refusal(certs.server_cert)
    assert message == f"TLS file {certs.server_cert} holds no private key in PEM form"


def test_a_broken_pem_block_is_refused(certs: Certificates, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n")
    message = refusal(broken, certs.server_key)
    assert message.startswith(f"TLS certificate {broken} with key {certs.server_key} cannot be")
    options = {"ca_certs": broken, "cert_reqs": "required"}
    message = refusal(certs.server_cert, certs.server_key, **options)
    assert message.startswith(f"TLS authorities {broken} cannot be used")


def test_a_key_of_another_certificate_is_refused(certs: Certificates) -> None:
    message = refusal(certs.server_cert, certs.client_key)
    assert message == (
        f"TLS key {certs.client_key} does not belong to certificate {certs.server_cert}"
    )
    message = refusal(certs.client_cert, certs.server_encrypted_key, key_password=KEY_PASSWORD)
    assert "does not belong" in message


def test_an_encrypted_key_never_asks_the_terminal(certs: Certificates) -> None:
    files = (certs.server_cert, certs.server_encrypted_key)
    message = refusal(*files)
    assert message == f"TLS key {files[1]} is encrypted and its password is missing"
    message = refusal(*files, key_password="wrong")
    assert message == f"TLS key {files[1]} is encrypted and its password is wrong"
    message = refusal(*files, key_password="x" * 5000)
    assert message == f"TLS key {files[1]} is encrypted and its password is wrong"


def test_authorities_must_be_in_the_file(certs: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.touch()
    options = {"ca_certs": empty, "cert_reqs": "optional"}
    message = refusal(certs.server_cert, certs.server_key, **options)
    assert message == f"TLS file {empty} holds no certificate in PEM form"


def test_unknown_ciphers_are_refused(certs: Certificates) -> None:
    message = refusal(certs.server_cert, certs.server_key, ciphers="ROT13")
    assert message.startswith("ciphers 'ROT13': OpenSSL knows no cipher in it")


@pytest.mark.parametrize("name", ["", "x" * 256, "\N{SNOWMAN}"])
def test_protocol_names_have_a_form(certs: Certificates, name: str) -> None:
    message = refusal(certs.server_cert, certs.server_key, alpn=["echo", name])
    assert message.startswith(f"ALPN protocol {name!r}: accepted are names of 1 to 255")


# Clients


def test_a_client_trusts_the_system_alone_by_default(certs: Certificates) -> None:
    client = client_context()
    assert client.check_hostname
    assert client.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(certs.server_cert, certs.server_key), client)


def test_a_client_trusts_the_given_authorities_alone(certs: Certificates) -> None:
    server = server_context(certs.server_cert, certs.server_key)
    shake_hands(server, client_context(certs.ca))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client_context(certs.other_ca))


def test_a_client_checks_the_name(certs: Certificates) -> None:
    server = server_context(certs.elsewhere_cert, certs.elsewhere_key)
    shake_hands(server, client_context(certs.ca), "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="ostname mismatch"):
        shake_hands(server, client_context(certs.ca), "localhost")


def test_an_unverified_client_believes_anybody(certs: Certificates) -> None:
    server = server_context(certs.elsewhere_cert, certs.elsewhere_key)
    shake_hands(server, client_context(False), "localhost")
    shake_hands(server, client_context(verify=False), None)


def test_a_client_key_needs_its_certificate(certs: Certificates) -> None:
    with pytest.raises(ImproperlyConfigured, match="comes without a certificate"):
        client_context(key_file=certs.client_key)


def test_a_client_certificate_is_checked_as_a_servers_is(certs: Certificates) -> None:
    with pytest.raises(ImproperlyConfigured, match="does not belong"):
        client_context(cert_file=certs.client_cert, key_file=certs.server_key)
