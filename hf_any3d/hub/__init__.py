"""Published checkpoints: fetched by their names, converted once, and opened."""

from hf_any3d.hub.published import open_published, opened_directory, published_directory

__all__ = ["open_published", "opened_directory", "published_directory"]
