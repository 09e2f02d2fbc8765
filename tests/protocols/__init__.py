"""Tests of pulsar.protocols: units on a fake transport, and the conformance set on sockets."""
