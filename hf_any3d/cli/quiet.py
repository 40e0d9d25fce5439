"""Silence for the libraries beneath a command, whose output is for programs to read."""

from __future__ import annotations

import warnings


def quieten_libraries() -> None:
    """Turn off progress bars and remarks of transformers and the hub client; errors are still raised."""
    import huggingface_hub.utils
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
