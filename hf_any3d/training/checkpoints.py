"""Which checkpoint a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def checkpoint_to_resume(output_dir: str | os.PathLike, asked: str | bool | None = None) -> str | None:
    """Find the checkpoint to go on from.

    Args:
        output_dir: Where the run keeps its checkpoints.
        asked: A checkpoint's folder; true for the last one of `output_dir`, which must be there; false to begin anew;
            None for the last one where there is one. Text such as "true" counts as the word it is.

    Raises:
        FileNotFoundError: A checkpoint was asked for that is not there.
    """
    word = str(asked).lower()
    if word == "false":
        return None
    if asked is not None and word != "true":
        if not Path(asked).is_dir():
            raise FileNotFoundError(f"{asked}: no such checkpoint to resume from")
        return str(asked)
    last = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if last is None and word == "true":
        raise FileNotFoundError(f"{output_dir}: no checkpoint to resume from in this folder")
    return last
