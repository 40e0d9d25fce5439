"""A stand-in for the hub, for tests."""

from tests.hub.server import LocalHub

__all__ = ["LocalHub"]
