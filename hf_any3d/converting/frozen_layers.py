"""Proof that the frozen layers in a checkpoint are those of a public encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from hf_any3d.conversions.checkpoints import account, listed

# Copies of the same float32 numbers; anything above is another encoder.
_EQUAL = 1e-6


def check_frozen(
    checkpoint: str | os.PathLike,
    name: str,
    expected: Mapping[str, torch.Tensor],
    frozen: Mapping[str, torch.Tensor],
    option: str,
) -> None:
    """Make sure that frozen tensors are those of a named encoder.

    Args:
        checkpoint: The file that they came from.
        name: The encoder.
        expected: Its tensors.
        frozen: Those in the checkpoint, under the same names.
        option: The command line's word for the encoder.

    Raises:
        ValueError: If tensors are missing, left over, of another shape or others; they are listed.
    """
    account(checkpoint, frozen, expected)
    different = [
        key
        for key, tensor in expected.items()
        if not torch.allclose(frozen[key].float(), tensor, rtol=_EQUAL, atol=_EQUAL)
    ]
    if different:
        raise ValueError(
            f"{checkpoint}: its frozen layers are not those of encoder {name!r}: {len(different)} of {len(expected)} "
            f"tensors differ: {listed(different)}; give the encoder that it was trained with by {option}"
        )
