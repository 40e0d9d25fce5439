"""The cache of models and data, where it cannot be written."""

from __future__ import annotations

from hf_any3d.cli.errors import print_note
from hf_any3d.hub.caches import replace_unwritable_cache


def use_writable_cache() -> None:
    """Prepare data in a temporary folder if the cache cannot be written, and name the variable to set."""
    caches = replace_unwritable_cache()
    if caches is not None:
        print_note(
            f"note: the cache {caches} cannot be written, so data are prepared for this command alone; set HF_HOME to "
            "a folder that can"
        )
