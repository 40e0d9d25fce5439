"""Opening a model that answers questions about clouds, for the protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.evaluating.answering import Generate
from hf_any3d.modeling.encoders.checksums import weights_checksum

TASK, TEMPLATE = "point-cloud-text-to-text", "evaluation"


def open_model(name: str, revision: str | None = None, device: Any = None) -> tuple[Generate, dict[str, Any]]:
    """Open a model as a function that answers questions with the published prompt, and say which one it is.

    Args:
        name: Directory or hub name.
        revision: Branch, tag or commit.
        device: Where it runs; the fastest place by default.

    Returns:
        The function, and `model` and `revision`: the commit, or the checksum of a directory's weights.

    Raises:
        OSError: It cannot be had.
    """
    from transformers import pipeline

    from hf_any3d.registration import register

    register()
    answer = pipeline(TASK, model=name, revision=revision, device=device)

    def generate(clouds: Sequence[np.ndarray], question: str, settings: Mapping[str, Any]) -> list[str]:
        told = answer(list(clouds), text=question, chat_template=TEMPLATE, batch_size=len(clouds), **settings)
        return [texts[0]["generated_text"] for texts in told]

    commit = getattr(answer.model.config, "_commit_hash", None)
    return generate, {"model": name, "revision": commit or weights_checksum(Path(name))}
