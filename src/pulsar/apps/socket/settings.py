"""The settings of applications that serve on sockets (``app = "socket"``).

Owns: their declarations. Importing the module declares them.
Leaves: the grammar of addresses to ``pulsar.net``, and what the values do to
the servers that copy them.
"""

from pulsar.config import (
    Setting,
    existing_file,
    non_negative_int,
    positive_int,
    positive_seconds,
    seconds,
    text,
)
from pulsar.net import NEARBY, network, parse_bind


def address(value: object) -> str:
    """An address that ``parse_bind`` understands, as it was written."""
    written = text(value)
    parse_bind(written)
    return written


class Bind(Setting):
    name = "bind"
    app = "socket"
    section = "Sockets"
    flags = ("-b", "--bind")
    metavar = "ADDRESS"
    validator = address
    multiple = True
    default = ("127.0.0.1:8060",)
    change = "new workers"
    desc = """
        Where to listen, at one address or several. HOST:PORT; HOST alone, with port
        8060; :PORT, every IPv4 and IPv6 address of the machine; [::1]:PORT; :0, a free port
        that the system picks; unix:PATH, with ?mode=0660&user=NAME&group=NAME behind it where
        wanted; unix:@NAME, an abstract name (Linux); fd://N, a socket inherited as descriptor
        N; systemd:, the sockets that systemd passes; udp:// before HOST:PORT, datagrams.
        ?tls=off behind one of several keeps TLS from it. ?proxy_protocol=on: each connection has
        to begin with a header of the PROXY protocol, from one of proxy_allow_from.
        """


class Backlog(Setting):
    name = "backlog"
    app = "socket"
    section = "Sockets"
    flags = ("--backlog",)
    metavar = "NUMBER"
    validator = positive_int
    default = 2048
    change = "new workers"
    desc = """
        How many connections the system may queue before they are accepted; it may have a lower
        limit of its own.
        """


class ReusePort(Setting):
    name = "reuse_port"
    app = "socket"
    section = "Sockets"
    flags = ("--reuse-port",)
    is_flag = True
    desc = """
        Open a socket for each worker, among which the system spreads connections and datagrams
        (SO_REUSEPORT), instead of one that all workers share. Unset: for datagrams, so that a peer
        stays with its worker, and not for streams.
        """


class ProxyAllowFrom(Setting):
    name = "proxy_allow_from"
    app = "socket"
    section = "Sockets"
    flags = ("--proxy-allow-from",)
    metavar = "NETWORK"
    validator = network
    multiple = True
    default = NEARBY
    change = "new workers"
    desc = """
        Who may connect to an address with ?proxy_protocol=on, and say in a header of the PROXY
        protocol whose connection it is: addresses, networks such as 10.0.0.0/8, unix for whoever
        connects by a Unix socket, or * for anybody, where only proxies can connect. Anybody else
        is refused.
        """


class Kind(Setting):
    name = "kind"
    app = "socket"
    section = "Sockets"
    flags = ("--kind",)
    choices = ("auto", "consumer", "protocol", "datagram", "stream", "wsgi")
    default = "auto"
    change = "new workers"
    desc = """
        What the application is: consumer, a factory of ProtocolConsumer; protocol, a factory of
        asyncio.Protocol or BufferedProtocol; datagram, a factory of asyncio.DatagramProtocol;
        stream, a coroutine function that takes a reader and a writer; wsgi, an application for
        WSGIServer, as pulsar serve chooses it; auto, told by looking.
        """


class KeepAlive(Setting):
    name = "keep_alive"
    app = "socket"
    section = "Limits"
    flags = ("--keep-alive",)
    metavar = "SECONDS"
    validator = seconds
    default = 75
    change = "new workers"
    desc = """
        Close a connection that has been idle for this long between requests. 0: never. A
        protocol or a stream handler that is not built on ProtocolConsumer has no such limit
        unless this setting is given.
        """


class StallTimeout(Setting):
    name = "stall_timeout"
    app = "socket"
    section = "Limits"
    flags = ("--stall-timeout",)
    metavar = "SECONDS"
    validator = seconds
    default = 60
    change = "new workers"
    desc = """
        Close a connection whose peer has stopped in the middle of a request, or has not read
        its answer, for this long. 0: never.
        """


class MaxConnections(Setting):
    name = "max_connections"
    app = "socket"
    section = "Limits"
    flags = ("--max-connections",)
    metavar = "NUMBER"
    validator = non_negative_int
    default = 1000
    change = "new workers"
    desc = """
        How many connections a worker holds before it stops accepting; others wait in the
        system's queue. 0: as many as its descriptors allow.
        """


class CertFile(Setting):
    name = "cert_file"
    app = "socket"
    section = "TLS"
    flags = ("--cert-file",)
    metavar = "PATH"
    validator = existing_file
    change = "live"
    desc = """
        The certificate and its chain, in PEM. Where it is given, connections are served over
        TLS. The file is read anew at a reload.
        """


class KeyFile(Setting):
    name = "key_file"
    app = "socket"
    section = "TLS"
    flags = ("--key-file",)
    metavar = "PATH"
    validator = existing_file
    change = "live"
    desc = """
        The certificate's private key, in PEM. Unset: it is in cert_file. The password of an
        encrypted key is key_password, which has no flag.
        """


class KeyPassword(Setting):
    name = "key_password"
    app = "socket"
    section = "TLS"
    # No flag: every user of a machine can read the command lines of its processes.
    validator = text
    secret = True
    change = "live"
    desc = "The password of an encrypted private key. It is never shown, and it has no flag."


class CaCerts(Setting):
    name = "ca_certs"
    app = "socket"
    section = "TLS"
    flags = ("--ca-certs",)
    metavar = "PATH"
    validator = existing_file
    change = "new workers"
    desc = "The certificates, in PEM, of the authorities that client certificates must come from."


class CertReqs(Setting):
    name = "cert_reqs"
    app = "socket"
    section = "TLS"
    flags = ("--cert-reqs",)
    choices = ("none", "optional", "required")
    default = "none"
    change = "new workers"
    desc = """
        Whether clients need a certificate: none, they are not asked; optional, it is verified
        where they have one; required, there is no connection without.
        """


class TlsMinVersion(Setting):
    name = "tls_min_version"
    app = "socket"
    section = "TLS"
    flags = ("--tls-min-version",)
    # In a TOML file the value is likely to be written as a number.
    validator = str
    choices = ("1.2", "1.3")
    default = "1.2"
    change = "new workers"
    desc = "The oldest version of TLS that is spoken."


class TlsCiphers(Setting):
    name = "tls_ciphers"
    app = "socket"
    section = "TLS"
    flags = ("--tls-ciphers",)
    metavar = "CIPHERS"
    validator = text
    change = "new workers"
    desc = "The ciphers for TLS 1.2, in OpenSSL's notation. Unset: Python's choice."


class Alpn(Setting):
    name = "alpn"
    app = "socket"
    section = "TLS"
    flags = ("--alpn",)
    metavar = "PROTOCOL"
    validator = text
    multiple = True
    default = ()
    change = "new workers"
    desc = "The application protocols offered to clients in the handshake (ALPN), best first."


class HandshakeTimeout(Setting):
    name = "handshake_timeout"
    app = "socket"
    section = "TLS"
    flags = ("--handshake-timeout",)
    metavar = "SECONDS"
    validator = positive_seconds
    default = 10
    change = "new workers"
    desc = """
        Drop a connection whose TLS handshake takes longer than this; or its header of the PROXY
        protocol.
        """
