"""The version of the package, once for all: setup.cfg reads it from here."""

__version__ = "0.2.0"
