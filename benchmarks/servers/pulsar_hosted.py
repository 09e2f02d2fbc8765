"""TCP echo by the bare protocol of ``bare.py``, hosted by pulsar."""

from bare import Echo

from pulsar.apps.socket import SocketServer

if __name__ == "__main__":
    SocketServer(Echo).start()
