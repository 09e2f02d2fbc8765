"""TCP echo by the stream handler of ``bare_streams.py``, hosted by pulsar."""

from bare_streams import echo

from pulsar.apps.socket import SocketServer

if __name__ == "__main__":
    SocketServer(echo).start()
