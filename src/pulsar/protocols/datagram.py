"""The protocol of a UDP endpoint.

Owns: ``DatagramProtocol``.
Leaves: sockets and life cycle to ``DatagramServer`` and ``AbstractUdpClient``.

Nothing stands between the transport and a subclass's ``datagram_received``.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from ..net import format_address
from .protocol import PulsarProtocol

__all__ = ["MAX_DATAGRAM", "DatagramProtocol"]

# The largest payload that an IPv4 datagram can carry (RFC 791, RFC 768), in bytes.
MAX_DATAGRAM = 65507


class DatagramProtocol(PulsarProtocol, asyncio.DatagramProtocol):
    """Subclass it and write ``datagram_received(data, addr)``.

    One instance serves one socket and all its peers; answer with
    ``self.sendto(data, addr)`` or ``self.transport.sendto(data, addr)``.
    """

    __slots__ = ()

    def sendto(self, data: bytes, addr: Any = None) -> None:
        """Send one datagram of at most 65,507 bytes.

        :param addr: the peer; None for an endpoint that is connected to one

        Raises ``ValueError`` for a datagram that no socket could send.
        """
        if len(data) > MAX_DATAGRAM:
            raise ValueError(
                f"a datagram of {len(data)} bytes cannot be sent: the largest has {MAX_DATAGRAM}"
            )
        if self._transport is not None and not self._lost:
            self._transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        """Called when an earlier send failed, or a peer was not reachable.

        Logs it; the endpoint goes on with its other peers.
        """
        if isinstance(exc, OSError) and exc.errno == errno.EMSGSIZE:
            self.logger.warning("a datagram was too large for the socket and was not sent")
        else:
            self.logger.debug("datagram endpoint to %s: %s", format_address(self.address), exc)
