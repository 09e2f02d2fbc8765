"""TLS contexts: certificate files become ``ssl`` contexts, with safe options.

Owns: which files, versions and options a server or a client context is made of,
and the sentence an operator reads when a file does not fit.
Leaves: sockets to ``pulsar.sockets``, the handshake and its deadline to the
servers and clients. Both functions depend on nothing but their arguments and the
files: certificates are renewed by calling again and serving with the new context.
"""

import os
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pulsar.errors import ImproperlyConfigured

CertReqs: TypeAlias = Literal["none", "optional", "required"]
MinimumVersion: TypeAlias = Literal["1.2", "1.3"]
StrPath: TypeAlias = str | os.PathLike[str]

_CERT_REQS = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


# No record of TLS holds more bytes (RFC 8446 section 5.1).
_RECORD = 16 * 1024


class _Object(ssl.SSLObject):
    """Reads no more at a time than there can be.

    Event loops ask for 256 KiB, which Python allocates before it knows what has come. Where
    the heap has no such hole, that is a mapping made, touched and given back per request.
    """

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        return super().read(min(len, _RECORD), buffer)


class _Context(ssl.SSLContext):
    sslobject_class = _Object


def server_context(
    cert_file: StrPath,
    key_file: StrPath | None = None,
    *,
    key_password: str | None = None,
    ca_certs: StrPath | None = None,
    cert_reqs: CertReqs = "none",
    alpn: Iterable[str] = (),
    minimum_version: MinimumVersion = "1.2",
    ciphers: str | None = None,
) -> ssl.SSLContext:
    """Make the context of a server.

    ``cert_file`` holds the certificate and the chain behind it, ``key_file`` its
    private key (``None``: it is in ``cert_file``, too), both PEM. Client
    certificates are asked for where ``cert_reqs`` says so and must be signed by
    one in ``ca_certs``. ``alpn`` lists protocol names, the preferred one first.
    ``ciphers``, in OpenSSL's syntax, chooses among those of TLS 1.2.

    Raises ``ImproperlyConfigured`` for a file or a value that cannot be used.
    """
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    if minimum_version not in _VERSIONS:
        raise ImproperlyConfigured(
            f"minimum TLS version {minimum_version!r}: accepted are '1.2' and '1.3'"
        )
    context.minimum_version = _VERSIONS[minimum_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # OpenSSL sends two tickets, meant for browsers that open connections in pairs; one
    # is enough to resume, and half the bytes behind each handshake.
    context.num_tickets = 1
    if ciphers is not None:
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError:
            raise ImproperlyConfigured(
                f"ciphers {ciphers!r}: OpenSSL knows no cipher in it; "
                "accepted are names as 'openssl ciphers' lists them, joined by ':'"
            ) from None
    _load_certificate(context, cert_file, key_file, key_password)
    _require_client_certificate(context, ca_certs, cert_reqs)
    _set_alpn(context, alpn)
    return context


# What keep_server_context has read, by its arguments.
_kept: dict[tuple[object, ...], ssl.SSLContext] = {}


def keep_server_context(*files: StrPath | None, **options: Any) -> None:
    """Read the files of a ``server_context`` now, and have its next call use what they say.

    For a process that is about to give up the right to read them. The arguments are
    those of ``server_context``, and it must be called with the same ones.
    """
    _kept[_key(files, options)] = server_context(*files, **options)  # type: ignore[arg-type]


def kept_server_context(*files: StrPath | None, **options: Any) -> ssl.SSLContext:
    """The context that was kept for these arguments, else a new ``server_context``."""
    kept = _kept.get(_key(files, options))
    return server_context(*files, **options) if kept is None else kept  # type: ignore[arg-type]


def _key(files: tuple[StrPath | None, ...], options: dict[str, Any]) -> tuple[object, ...]:
    return (*files, *sorted((name, repr(value)) for name, value in options.items()))


def client_context(
    verify: bool | StrPath = True,
    *,
    cert_file: StrPath | None = None,
    key_file: StrPath | None = None,
    key_password: str | None = None,
    alpn: Iterable[str] = (),
) -> ssl.SSLContext:
    """Make the context of a client, TLS 1.2 or newer.

    ``verify`` is ``True`` (the server's certificate must be signed by an
    authority that the system trusts, and name the host), the path of a PEM file
    with the authorities to trust instead, or ``False``: whoever answers is
    believed. ``cert_file`` and ``key_file`` are shown to a server that asks.

    Raises ``ImproperlyConfigured`` for a file or a value that cannot be used.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if verify is True:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    elif verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        _load_authorities(context, verify)
    if cert_file is not None:
        _load_certificate(context, cert_file, key_file, key_password)
    elif key_file is not None:
        raise ImproperlyConfigured(f"TLS key {os.fspath(key_file)} comes without a certificate")
    _set_alpn(context, alpn)
    return context


def _load_certificate(
    context: ssl.SSLContext,
    cert_file: StrPath,
    key_file: StrPath | None,
    key_password: str | None,
) -> None:
    cert = os.fspath(cert_file)
    key = cert if key_file is None else os.fspath(key_file)
    _check_pem(cert, "certificate")
    _check_pem(key, "private key")
    encrypted = False

    def password() -> str:
        # Always given, because OpenSSL would otherwise stop and ask the terminal.
        nonlocal encrypted
        encrypted = True
        return key_password or ""

    try:
        context.load_cert_chain(cert, key, password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            why = f"TLS key {key} does not belong to certificate {cert}"
        elif encrypted:
            fault = "is wrong" if key_password else "is missing"
            why = f"TLS key {key} is encrypted and its password {fault}"
        else:
            why = f"TLS certificate {cert} with key {key} cannot be used ({reason})"
        raise ImproperlyConfigured(why) from error


def _require_client_certificate(
    context: ssl.SSLContext, ca_certs: StrPath | None, cert_reqs: CertReqs
) -> None:
    if cert_reqs not in _CERT_REQS:
        raise ImproperlyConfigured(
            f"client certificates {cert_reqs!r}: accepted are 'none', 'optional' and 'required'"
        )
    if cert_reqs == "none":
        if ca_certs is not None:
            raise ImproperlyConfigured(
                f"TLS authorities {os.fspath(ca_certs)} check nobody while client certificates "
                "are 'none'; accepted with them are 'optional' and 'required'"
            )
        return
    if ca_certs is None:
        raise ImproperlyConfigured(
            f"client certificates are {cert_reqs!r} and no file names the authorities "
            "that may sign them"
        )
    context.verify_mode = _CERT_REQS[cert_reqs]
    _load_authorities(context, ca_certs)


def _load_authorities(context: ssl.SSLContext, ca_file: StrPath) -> None:
    name = os.fspath(ca_file)
    _check_pem(name, "certificate")
    try:
        context.load_verify_locations(name)
    except ssl.SSLError as error:
        raise ImproperlyConfigured(
            f"TLS authorities {name} cannot be used ({error.reason})"
        ) from error


def _set_alpn(context: ssl.SSLContext, alpn: Iterable[str]) -> None:
    names = [alpn] if isinstance(alpn, str) else list(alpn)
    for name in names:
        if not (name.isascii() and 1 <= len(name) <= 255):
            raise ImproperlyConfigured(
                f"ALPN protocol {name!r}: accepted are names of 1 to 255 ASCII characters"
            )
    if names:
        context.set_alpn_protocols(names)


def _check_pem(path: str, block: str) -> None:
    """Find the faults that OpenSSL reports without the name of the file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImproperlyConfigured(f"TLS file {path} cannot be read ({error.strerror})") from error
    if f"{block.upper()}-----".encode() not in content:
        raise ImproperlyConfigured(f"TLS file {path} holds no {block} in PEM form")
