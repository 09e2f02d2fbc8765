"""Whom to believe what a proxy says about the client: the headers that proxies add.

Owns: ``Trust``: ``X-Forwarded-For``, ``-Proto`` and ``-Host``, and ``Forwarded`` (RFC 7239).
Leaves: from whom they come to the settings, who that is to ``pulsar.net``.

Every proxy adds its client at the end. So the list is read from there, for as long as
those who have added to it are trusted: what stands before is anybody's invention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from ...net import Networks
from ...wire.http11_start import split_host

__all__ = ["FORWARDED_HEADERS", "Trust"]

#: Which headers count, where the proxy is trusted.
FORWARDED_HEADERS = ("x-forwarded", "forwarded")

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - RFC 9110's word
_pair = re.compile(rf'({_TOKEN})=(?:({_TOKEN})|"([^"\\]*)")').fullmatch


class Trust:
    """Takes what trusted proxies say into an environment.

    :param proxies: addresses and networks; ``unix``: who connects by a Unix socket; ``*``:
        anybody
    :param header: one of ``FORWARDED_HEADERS``
    """

    def __init__(self, proxies: Iterable[str], header: str) -> None:
        self._proxies = Networks(proxies)
        self._hops = _standard if header == "forwarded" else _legacy

    def apply(self, environ: dict[str, Any]) -> None:
        """Replace what the connection says by what the proxy says, if it is trusted."""
        if environ["REMOTE_ADDR"] in self._proxies:
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
            if node[0] not in self._proxies:
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
