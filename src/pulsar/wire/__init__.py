"""Bytes to messages and back: no socket, no loop, no clock, no logger."""
