"""pulsar: serve any protocol on sockets."""
