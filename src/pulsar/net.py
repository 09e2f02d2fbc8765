"""Addresses: what people write and read when they mean a socket.

Owns: the grammar of a bind (``parse_bind``, ``Bind``), the address of a client
(``connect_address``), the printed form of any socket name (``format_address``), and who
belongs to a list of networks (``network``, ``Networks``).
Leaves: opening sockets, and whether an address exists on this machine, to
``pulsar.sockets``.
"""

import os
import re
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any, Literal, TypeAlias, cast

from pulsar.errors import ImproperlyConfigured

Scheme: TypeAlias = Literal["inet", "tcp", "udp", "unix", "fd", "systemd"]

# What a client connects to: host and port, or the path of a Unix socket.
ConnectAddress: TypeAlias = tuple[str, int] | str

DEFAULT_PORT = 8060

_BIND_FORMS = (
    "HOST, HOST:PORT, :PORT, [IPV6]:PORT, tcp://HOST:PORT, udp://HOST:PORT, "
    "unix:PATH, fd://N and systemd:"
)
_CONNECT_FORMS = "(HOST, PORT), 'HOST:PORT', '[IPV6]:PORT' and 'unix:PATH'"
_SCHEMES = ("tcp", "udp", "unix", "fd", "systemd")
_OPTIONS: dict[Scheme, tuple[str, ...]] = {
    "inet": ("tls", "proxy_protocol"),
    "tcp": ("tls", "proxy_protocol"),
    "udp": (),
    "unix": ("mode", "user", "group", "tls", "proxy_protocol"),
    "fd": ("tls", "proxy_protocol"),
    "systemd": ("tls", "proxy_protocol"),
}
_SWITCH = {"on": True, "off": False}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_PORT = re.compile(r"[0-9]{1,5}")
_DESCRIPTOR = re.compile(r"[0-9]{1,9}")
_MODE = re.compile(r"0?[0-7]{3}")

#: For ``Networks``: this machine alone.
NEARBY = ("127.0.0.1", "::1", "unix")

# So many addresses are kept with what was found out about them.
_CACHED = 1024


@dataclass(frozen=True, slots=True)
class Bind:
    """One place to listen at, as one bind text says it.

    ``scheme`` is ``inet`` for a host and a port without a scheme, which serves
    the transport that the server speaks. An empty ``host`` means all
    interfaces, port 0 any free port. A ``path`` that begins with ``@`` is an
    abstract name (Linux). ``mode``, ``user`` and ``group`` belong to the file of
    a Unix socket; ``None`` and ``""`` leave what the system gives it. ``tls`` is
    ``None`` where the text leaves the choice to the settings. With
    ``proxy_protocol`` each connection begins with a header of the PROXY protocol.
    """

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1
    mode: int | None = None
    user: str = ""
    group: str = ""
    tls: bool | None = None
    proxy_protocol: bool = False

    @property
    def type(self) -> socket.SocketKind | None:
        """The socket type that the text demands, ``None`` if it leaves it open."""
        match self.scheme:
            case "tcp" | "unix":
                return socket.SOCK_STREAM
            case "udp":
                return socket.SOCK_DGRAM
            case _:
                return None

    @property
    def abstract(self) -> bool:
        """True for a Unix socket that has a name but no file."""
        return self.path.startswith("@")

    def absolute(self) -> "Bind":
        """The same, with a path that does not depend on the working directory."""
        if self.scheme != "unix" or self.abstract:
            return self
        return replace(self, path=os.path.abspath(self.path))  # noqa: PTH100 - links stay

    def __str__(self) -> str:
        """The canonical text: ``parse_bind`` makes an equal ``Bind`` of it."""
        match self.scheme:
            case "unix":
                text = f"unix:{self.path}"
            case "fd":
                text = f"fd://{self.fd}"
            case "systemd":
                text = "systemd:"
            case _:
                prefix = "" if self.scheme == "inet" else f"{self.scheme}://"
                text = prefix + _join(self.host, self.port)
        options = []
        if self.mode is not None:
            options.append(f"mode={self.mode:04o}")
        if self.user:
            options.append(f"user={self.user}")
        if self.group:
            options.append(f"group={self.group}")
        if self.tls is not None:
            options.append("tls=on" if self.tls else "tls=off")
        if self.proxy_protocol:
            options.append("proxy_protocol=on")
        return f"{text}?{'&'.join(options)}" if options else text


def parse_bind(text: str, *, default_port: int = DEFAULT_PORT) -> Bind:
    """Parse one bind text; a host without a port gets ``default_port``.

    Accepted are ``HOST``, ``HOST:PORT``, ``:PORT`` (all interfaces, IPv4 and
    IPv6), ``[IPV6]:PORT``, the same behind ``tcp://`` or ``udp://``,
    ``unix:PATH`` and ``unix:///PATH``, ``unix:@NAME`` (Linux), ``fd://N`` (a
    descriptor that was inherited) and ``systemd:`` (all that systemd passes).
    Options follow a ``?``: ``tls=on``, ``tls=off`` and ``proxy_protocol=on``
    wherever streams are served; ``mode=0660``, ``user=NAME`` and ``group=NAME``
    behind ``unix:PATH``.

    Raises ``ImproperlyConfigured`` for everything else.
    """
    try:
        address, mark, query = text.partition("?")
        scheme, rest = _split_scheme(address)
        options = _parse_options(scheme, query) if mark else {}
        match scheme:
            case "unix":
                path = _parse_path(rest)
                if path.startswith("@") and options.keys() & {"mode", "user", "group"}:
                    raise ValueError("an abstract name has no file to set mode or owner on")
                return Bind(scheme, path=path, **options)
            case "fd":
                if not _DESCRIPTOR.fullmatch(rest):
                    raise ValueError(f"{rest!r} is not a descriptor number")
                return Bind(scheme, fd=int(rest), **options)
            case "systemd":
                return Bind(scheme, **options)
            case _:
                host, port = _parse_host_port(rest)
                return Bind(scheme, host, default_port if port is None else port, **options)
    except ValueError as error:
        raise ImproperlyConfigured(f"bind {text!r}: {error}; accepted are {_BIND_FORMS}") from None


def connect_address(address: object) -> ConnectAddress:
    """Make of ``address`` what ``create_connection`` or ``create_unix_connection`` takes.

    Accepted are a ``(host, port)`` sequence (what stands behind the port is left
    out, so the name of an IPv6 socket will do), ``"host:port"``, ``"[ipv6]:port"``,
    ``"unix:PATH"``, ``"unix:@NAME"``, and the name of a Unix socket as
    ``getsockname`` gives it. Out comes a ``(host, port)`` tuple, or a string for
    a Unix socket, whose first character is NUL if the name is abstract (uvloop's
    ``create_unix_connection`` takes such a name only as a connected socket).

    Raises ``ImproperlyConfigured`` for everything else, port 0 included.
    """
    try:
        match address:
            case [str(host), int(port), *_]:
                pass
            case bytes():
                return os.fsdecode(address)
            case str() if address.startswith(("/", "\0")):
                return address
            case str():
                scheme, rest = _split_scheme(address)
                if scheme == "unix":
                    path = _parse_path(rest)
                    return f"\0{path[1:]}" if path.startswith("@") else path
                if scheme != "inet":
                    raise ValueError("it is a server's bind, not what a client connects to")
                host, given = _parse_host_port(rest)
                port = given or 0
            case _:
                raise ValueError("it is neither a text nor a (host, port) tuple")
        if not host:
            raise ValueError("the host is missing")
        if not 0 < port <= 65535:
            raise ValueError("a port from 1 to 65535 is missing")
    except ValueError as error:
        raise ImproperlyConfigured(
            f"address {address!r}: {error}; accepted are {_CONNECT_FORMS}"
        ) from None
    return host, port


def format_address(sockname: object) -> str:
    """Show a socket's name, or a peer's, to people; ``-`` if it is not known.

    Takes what ``getsockname``, ``getpeername`` and ``get_extra_info`` return:
    ``127.0.0.1:8060``, ``[::1]:8060``, ``unix:/run/x.sock``, ``unix:@abstract``,
    and ``unix:`` for the nameless end of a Unix connection.
    """
    match sockname:
        case [str(host), int(port), *_]:
            return _join(host, port)
        case bytes():
            name = sockname.decode(errors="backslashreplace")
        case str():
            name = sockname
        case _:
            return "-"
    return f"unix:@{name[1:]}" if name.startswith("\0") else f"unix:{name}"


def network(value: object) -> str:
    """An address, a network, ``unix`` or ``*``, as text. Raises ``ValueError``."""
    text = str(value)
    try:
        if text not in {"*", "unix"}:
            ip_network(text)
    except ValueError:
        raise ValueError("give an IP address, a network such as 10.0.0.0/8, unix or *") from None
    return text


class Networks:
    """Tells whether an address is one of some: ``address in networks``.

    :param texts: as ``network`` returns them: addresses and networks; ``unix``: who
        connects by a Unix socket, whose address is an empty text; ``*``: anybody
    """

    def __init__(self, texts: Iterable[str]) -> None:
        given = set(texts)
        self._anybody = "*" in given
        self._unix = "unix" in given or self._anybody
        self._networks = [ip_network(one) for one in given - {"*", "unix"}]
        self._known: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = self._look(address)
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[address] = known
        return known

    def _look(self, address: str) -> bool:
        if not address:
            return self._unix
        if self._anybody:
            return True
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in self._networks)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split_scheme(address: str) -> tuple[Scheme, str]:
    name, _, rest = address.partition(":")
    if name == "unix":
        return "unix", rest
    if name == "systemd":
        if rest:
            raise ValueError("nothing follows 'systemd:'")
        return "systemd", ""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return "inet", address
    if scheme not in ("tcp", "udp", "fd"):
        raise ValueError(f"unknown scheme {scheme!r}{_nearest(scheme, _SCHEMES)}")
    return cast("Scheme", scheme), rest


def _parse_host_port(text: str) -> tuple[str, int | None]:
    """Split ``HOST``, ``HOST:PORT``, ``:PORT`` or ``[IPV6]:PORT``; no port is ``None``."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not of the form [IPV6]:PORT")
        if not _is_ipv6(host):
            raise ValueError(f"{host!r} is not an IPv6 address")
        mark, port = rest[:1], rest[1:]
    else:
        host, mark, port = text.partition(":")
        if not text:
            raise ValueError("the address is empty")
        if text.isdecimal():
            raise ValueError(f"a port alone is written ':{text}'")
        if _is_ipv6(text):
            raise ValueError(f"an IPv6 address is written in brackets, '[{text}]'")
        if "/" in text:
            raise ValueError(f"a path is written 'unix:{text}'")
        if host and not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a host name or address")
    if not mark:
        return host, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"port {port!r} is not a number from 0 to 65535")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True


def _parse_path(rest: str) -> str:
    """Take the path out of what follows ``unix:``."""
    path = rest
    if rest.startswith("//"):
        path = rest[2:]
        if not path.startswith("/"):
            raise ValueError(f"an absolute path has three slashes, 'unix:///{path}'")
        # One slash, lest the path be printed as if it had a scheme's two.
        path = "/" + path.lstrip("/")
    if path in ("", "@"):
        raise ValueError("the path is missing")
    if "\0" in path:
        raise ValueError("a path has no NUL character")
    if path.startswith("@") and sys.platform != "linux":
        raise ValueError("abstract names exist on Linux only")
    return path


def _parse_options(scheme: Scheme, query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    accepted = _OPTIONS[scheme]
    for item in query.split("&"):
        name, _, value = item.partition("=")
        if name not in accepted:
            if name in _OPTIONS["unix"]:
                raise ValueError(f"option {name!r} has no meaning here")
            raise ValueError(f"unknown option {name!r}{_nearest(name, accepted)}")
        if name in options:
            raise ValueError(f"option {name!r} is given twice")
        options[name] = _option_value(name, value)
    return options


def _option_value(name: str, value: str) -> Any:
    if not value:
        raise ValueError(f"option {name!r} has no value")
    if name in ("tls", "proxy_protocol"):
        if value not in _SWITCH:
            raise ValueError(f"option {name!r} is 'on' or 'off', not {value!r}")
        if name == "proxy_protocol" and value == "on" and sys.platform == "win32":
            raise ValueError("the PROXY protocol is not spoken on Windows")
        return _SWITCH[value]
    if name == "mode":
        if not _MODE.fullmatch(value):
            raise ValueError(f"option 'mode' is octal like 0660, not {value!r}")
        return int(value, 8)
    return value


def _nearest(word: str, known: Iterable[str]) -> str:
    """Point from a misspelt word to the one that was meant, if one is near."""
    from difflib import get_close_matches  # only for those who mistype

    nearest = get_close_matches(word, known, n=1)
    return f", did you mean {nearest[0]!r}?" if nearest else ""
