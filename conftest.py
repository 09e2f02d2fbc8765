"""The fixtures of every test, those of the examples included: tests/support/plugin.py."""

pytest_plugins = ["tests.support.plugin"]
