"""Convert the audio encoder of ImageBind: its tensors under our names, and a directory that opens."""

import os
from typing import Any

import torch

from hf_any3d.conversions.checkpoints import account, errors_about, read_checkpoint
from hf_any3d.conversions.renaming import Names, as_vector, rename_tensors
from hf_any3d.conversions.saving import new_directory
from hf_any3d.modeling.imagebind_audio import ImageBindAudioConfig, ImageBindAudioModel

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
    """Extract the audio encoder of ImageBind.

    Args:
        original: All tensors of an ImageBind checkpoint.
        heads: Attention heads of the audio encoder.

    Returns:
        Tensors of an `ImageBindAudioModel`.

    Raises:
        ValueError: A tensor belongs to no known part, two to the same, a bias cannot be split into heads, or kept
            tensors hold NaN or infinite numbers.
    """
    renamed = rename_tensors(original, NAMES)
    return {name: _by_head(name, tensor, heads) if "bias_" in name else tensor for name, tensor in renamed.items()}


def _by_head(name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    row = as_vector(name, tensor)  # stored as one row of all heads
    if len(row) % heads:
        raise ValueError(f"{name} has {len(row)} channels; expected a multiple of {heads} heads")
    return row.reshape(heads, 1, -1)


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

    Raises:
        ValueError: The checkpoint cannot be read or does not fit.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint)
        model = ImageBindAudioModel(config or ImageBindAudioConfig())
        with errors_about(checkpoint):
            state = convert_state_dict(original, model.config.num_attention_heads)
        account(checkpoint, state, model.state_dict())
        model.load_state_dict(state)
        model.save_pretrained(directory)
    return {"output": os.fspath(output), "parameters": model.num_parameters()}
