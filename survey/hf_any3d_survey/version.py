"""Version of the package, that of hf_any3d."""

__version__ = "0.2.0"
