"""Whom to believe what a proxy says about the client: the headers that proxies add.

Owns: ``Trust``: ``X-Forwarded-For``, ``-Proto`` and ``-Host``, and ``Forwarded`` (RFC 7239).
Leaves: from whom they come to the settings.

Every proxy adds its client at the end. So the list is read from there, for as long as
those who have added to it are trusted: what stands before is anybody's invention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from ...wire.http11_start import split_host

__all__ = ["FORWARDED_HEADERS", "Trust", "proxy"]

Network = IPv4Network | IPv6Network

#: Which headers count, where the proxy is trusted.
FORWARDED_HEADERS = ("x-forwarded", "forwarded")

# So many addresses of proxies are kept with what was found out about them.
_CACHED = 1024

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - RFC 9110's word
_pair = re.compile(rf'({_TOKEN})=(?:({_TOKEN})|"([^"\\]*)")').fullmatch


def proxy(value: object) -> str:
    """A setting's value: an address, a network, ``unix`` or ``*``. Raises ``ValueError``."""
    if value in {"*", "unix"}:
        return str(value)
    try:
        return str(ip_network(str(value)))
    except ValueError:
        raise ValueError("give an IP address, a network such as 10.0.0.0/8, unix or *") from None


class Trust:
    """Takes what trusted proxies say into an environment.

    :param proxies: addresses and networks; ``unix``: who connects by a Unix socket; ``*``:
        anybody
    :param header: one of ``FORWARDED_HEADERS``
    """

    def __init__(self, proxies: Iterable[str], header: str) -> None:
        given = set(proxies)
        self._anybody = "*" in given
        self._unix = "unix" in given or self._anybody
        self._networks = [ip_network(one) for one in given - {"*", "unix"}]
        self._hops = _standard if header == "forwarded" else _legacy
        self._known: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Whether ``address``, as text, is one of the proxies; empty: a Unix socket's."""
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

    def apply(self, environ: dict[str, Any]) -> None:
        """Replace what the connection says by what the proxy says, if it is trusted."""
        if self.trusts(environ["REMOTE_ADDR"]):
            self._take(environ, self._hops(environ))

    def _take(self, environ: dict[str, Any], hops: list[dict[str, str]]) -> None:
        client: tuple[str, str] | None = None
        scheme = host = ""
        for hop in reversed(hops):
            scheme, host = hop.get("proto", "") or scheme, hop.get("host", "") or host
            node = _node(hop.get("for", ""))
            if node is None:
                break  # hidden, or not an address: before it nothing is known
            client = node
            if not self.trusts(node[0]):
                break
        if client is not None:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client
        scheme = scheme.lower()
        if scheme in {"http", "https"}:
            if environ["wsgi.url_scheme"] != scheme:
                environ["SERVER_PORT"] = "443" if scheme == "https" else "80"
            environ["wsgi.url_scheme"] = scheme
            if scheme == "https":
                environ["HTTPS"] = "on"
            else:
                environ.pop("HTTPS", None)
        found = split_host(host) if host else None
        if found is not None and found[0]:
            environ["HTTP_HOST"] = host


def _standard(environ: dict[str, Any]) -> list[dict[str, str]]:
    """``Forwarded``: an element that is none says nothing.

    No node, scheme or host has a comma or a semicolon in it, nor what would need a
    backslash: so elements end at every comma, whatever an inventor puts in quotes.
    """
    hops = []
    for element in environ.get("HTTP_FORWARDED", "").split(","):
        pairs = [_pair(text.strip()) for text in element.split(";")]
        hops.append(
            {pair[1].lower(): pair[2] or pair[3] or "" for pair in pairs if pair is not None}
            if all(pairs)
            else {}
        )
    return hops


def _legacy(environ: dict[str, Any]) -> list[dict[str, str]]:
    """X-Forwarded-*: the lists side by side, from the end."""
    lists = {
        name: [one.strip() for one in environ[key].split(",")]
        for name, key in (
            ("for", "HTTP_X_FORWARDED_FOR"),
            ("proto", "HTTP_X_FORWARDED_PROTO"),
            ("host", "HTTP_X_FORWARDED_HOST"),
        )
        if key in environ
    }
    hops: list[dict[str, str]] = [{} for _ in range(max(map(len, lists.values()), default=0))]
    for name, values in lists.items():
        for hop, value in zip(reversed(hops), reversed(values), strict=False):
            hop[name] = value
    return hops


def _node(text: str) -> tuple[str, str] | None:
    """The address and the port, empty when there is none, in a node (RFC 7239 section 6)."""
    address, port = text, ""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:]
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        ip_address(address)
    except ValueError:
        return None
    return address, port if port.isascii() and port.isdigit() and len(port) <= 5 else ""
