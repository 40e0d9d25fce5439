"""Helpers of several families: position tables from embeddings, and descriptions for the table of encoders."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.positions import PositionTable

LEARNED_LINE = {"kind": "learned, on a line"}
LEARNED_PLANE = {"kind": "learned, on a grid"}
SINUSOID_LINE = {"kind": "sinusoids, on a line"}


def line(weight: torch.Tensor) -> PositionTable:
    """Make the table of a line from `(length, hidden)`."""
    return PositionTable("line", weight, 1, weight.shape[0])


def free_line(model: PreTrainedModel) -> PositionTable:
    """Make a line of any length, for encoders that add no positions to tokens."""
    return PositionTable("line", None, 1, None)


def plane(weight: torch.Tensor, special_tokens: int, rows: int) -> PositionTable:
    """Make the table of a grid from `(…, special_tokens + rows * columns, hidden)`, without special tokens."""
    patches = weight.reshape(-1, weight.shape[-1])[special_tokens:]
    return PositionTable("plane", patches, rows, patches.shape[0] // rows)


def image_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the rows and columns of an image's patches."""
    image, patch = (
        size if isinstance(size, (list, tuple)) else (size, size) for size in (config.image_size, config.patch_size)
    )
    return image[0] // patch[0], image[1] // patch[1]


def class_token(model: PreTrainedModel) -> torch.Tensor:
    """Return the class token's embedding of an image encoder, `(hidden,)`."""
    return model.embeddings.cls_token.flatten()


def narrow_embeddings(config: PreTrainedConfig) -> str | None:
    """Refuse encoders whose embeddings, including positions, are narrower than their layers."""
    width = getattr(config, "embedding_size", None) or config.hidden_size
    if width == config.hidden_size:
        return None
    return (
        f"its positions have {width} channels and are normalised before they are projected to the "
        f"{config.hidden_size} of its layers, so they cannot be added to tokens of that width"
    )
