"""The test suite, laid out like ``src/pulsar``.

A package, so that no installed distribution with a stray ``tests`` can stand
in front of ``tests.support``.
"""
