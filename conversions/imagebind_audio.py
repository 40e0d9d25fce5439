"""Convert the audio encoder of ImageBind: its tensors under our names, and a directory that opens."""

import os
from typing import Any

import torch

from hf_any3d.conversions.checkpoints import errors_about, read_checkpoint
from hf_any3d.conversions.renaming import Names, as_vector, rename_tensors
from hf_any3d.conversions.tensor_checks import account
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel
from hf_any3d.utils.atomic_files import new_directory

_PREPROCESSOR = r"modality_preprocessors\.audio\."
_BLOCK = r"modality_trunks\.audio\.blocks\.(?P<layer>\d+)\."
_ATTENTION = "layers.{layer}.attention."
NAMES: Names = {
    _PREPROCESSOR + r"cls_token$": "embeddings.cls_token",
    _PREPROCESSOR + r"pos_embedding_helper\.pos_embed$": "embeddings.position_embeddings",
    _PREPROCESSOR + r"rgbt_stem\.proj\.weight$": "embeddings.projection.weight",
    _PREPROCESSOR + r"rgbt_stem\.norm_layer\.": "embeddings.norm.",
    _BLOCK + r"attn\.in_proj_(?P<tensor>\w+)": tuple(_ATTENTION + f"{part}_proj.{{tensor}}" for part in "qkv"),
    _BLOCK + r"attn\.out_proj\.": _ATTENTION + "o_proj.",
    _BLOCK + r"attn\.bias_(?P<part>[kv])$": _ATTENTION + "bias_{part}",
    _BLOCK + r"norm_(?P<norm>[12])\.": "layers.{layer}.norm{norm}.",
    _BLOCK + r"mlp\.fc(?P<linear>[12])\.": "layers.{layer}.mlp.fc{linear}.",
    r"modality_heads\.audio\.0\.": "layernorm.",
    # The projection into the space shared by all modalities is not part of the encoder.
    r"modality_heads\.audio\.2\.": None,
    r"modality_postprocessors\.audio\.": None,
    # The other modalities.
    r"modality_(preprocessors|trunks|heads|postprocessors)\.(?!audio\.)": None,
}


def convert_state_dict(original: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """Rename the tensors of ImageBind to those of an `ImageBindAudioModel` with as many attention heads."""
    state = rename_tensors(original, NAMES)
    for name, tensor in state.items():
        if "bias_" in name:
            state[name] = as_vector(tensor).reshape(heads, 1, -1)  # stored as one row of all heads
    return state


def convert_imagebind_audio(
    checkpoint: str | os.PathLike, output: str | os.PathLike, *, config: ImageBindAudioConfig | None = None
) -> dict[str, Any]:
    """Convert the audio trunk of `imagebind_huge.pth`; the other modalities are left out.

    Args:
        checkpoint: The authors' file.
        output: Directory to create.
        config: Sizes; by default those of `imagebind_huge`.

    Returns:
        Facts by name: `output`, `parameters`.
    """
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint)
        # Small enough to be built; larger models are converted from file to file.
        model = ImageBindAudioModel(config or ImageBindAudioConfig())
        with errors_about(checkpoint):
            state = convert_state_dict(original, model.config.num_attention_heads)
        account(checkpoint, state, model.state_dict())
        model.load_state_dict(state)
        model.save_pretrained(directory)
    return {"output": os.fspath(output), "parameters": model.num_parameters()}
