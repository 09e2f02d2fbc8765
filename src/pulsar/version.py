"""The version of this distribution: the one place where it is written."""

__all__ = ["__version__"]

__version__ = "3.0.0.dev0"
