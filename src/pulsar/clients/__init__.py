"""Clients made of the same protocol classes as the servers, with pooled connections."""

from .client import AbstractClient, AbstractUdpClient, task
from .pool import Pool, PoolConnection

__all__ = ["AbstractClient", "AbstractUdpClient", "Pool", "PoolConnection", "task"]
