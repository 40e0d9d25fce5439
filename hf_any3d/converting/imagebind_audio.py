"""The audio encoder of an original ImageBind checkpoint into a directory that `AutoModel` opens."""

from __future__ import annotations

import os
from typing import Any

from hf_any3d.conversions.checkpoints import account, read_checkpoint
from hf_any3d.conversions.imagebind_audio import convert_state_dict
from hf_any3d.converting.directory import new_directory
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel


def convert_imagebind_audio(
    checkpoint: str | os.PathLike, output: str | os.PathLike, *, config: ImageBindAudioConfig | None = None
) -> dict[str, Any]:
    """Convert the audio trunk of `imagebind_huge.pth`; the other senses are left out.

    Args:
        checkpoint: The authors' file.
        output: Directory to make.
        config: Sizes; those of `imagebind_huge` when left out.

    Returns:
        Facts by name: `output`, `parameters`.

    Raises:
        ValueError: The checkpoint cannot be read or does not fit.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint)
        model = ImageBindAudioModel(config or ImageBindAudioConfig())
        try:
            state = convert_state_dict(original, model.config.num_attention_heads)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from error
        account(checkpoint, state, model.state_dict())
        model.load_state_dict(state)
        model.save_pretrained(directory)
    return {"output": os.fspath(output), "parameters": model.num_parameters()}
