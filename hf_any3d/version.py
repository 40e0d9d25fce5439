"""The version of the package, once for all: setup.cfg reads it from here."""

__version__ = "0.1.0"
