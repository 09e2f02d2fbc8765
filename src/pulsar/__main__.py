"""``python -m pulsar``: the command line."""

from .cli import main

main()
