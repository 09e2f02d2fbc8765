"""TCP echo by Twisted, on its epoll reactor."""

from typing import Any

import listen
from twisted.internet import epollreactor

epollreactor.install()  # type: ignore[no-untyped-call]

from twisted.internet import reactor as installed  # noqa: E402
from twisted.internet.protocol import Factory, Protocol  # noqa: E402

# Twisted's zope interfaces tell a type checker nothing that is true.
reactor: Any = installed


class Echo(Protocol):
    """Twisted's usual echo."""

    transport: Any

    def connectionMade(self) -> None:  # noqa: N802
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self.transport.write(data)


if __name__ == "__main__":
    factory = Factory.forProtocol(Echo)
    where = reactor.listenTCP(listen.port(), factory, interface=listen.HOST)
    listen.announce(where.getHost().port)
    reactor.run()
