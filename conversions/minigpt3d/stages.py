"""The files that stages of MiniGPT-3D's training left behind, and what of the model they hold."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hf_any3d.conversions.checkpoints import account, listed, read_checkpoint
from hf_any3d.conversions.minigpt3d.names import convert_minigpt3d_state_dict
from hf_any3d.conversions.minigpt3d.parts import Part, told_of
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration, stage_names

_ENCODER = "point_encoder."
STAGES = {0: "what training starts from", 1: "stage I", 3: "stage II or III", 4: "stage IV"}
"""Kinds of files by the number of their stage. Files of stages II and III hold the same."""
# What a file holds is worth nothing without the file of this stage.
_STANDS_ON = {1: 0, 4: 3}
# Parts that training begins afresh, by the last stage that they are not in. All else has to be in a file.
_FRESH = {
    "bridge.point_mlp.": 0,
    "bridge.qformer.": 1,
    "bridge.experts.router.": 3,
}


@dataclass(frozen=True)
class StageFile:
    """A checkpoint of training.

    Args:
        path: The file.
        stage: Key of `STAGES`.
        entries: How many tensors the file has.
        trained: Those that were trained, under our names without LoRA's `base_layer`.
        encoder: The frozen point encoder's, under its own names.
    """

    path: Path
    stage: int
    entries: int
    trained: dict[str, torch.Tensor]
    encoder: dict[str, torch.Tensor]


def read_stage(path: str | os.PathLike) -> StageFile:
    """Read a checkpoint of training.

    Raises:
        ValueError: The file cannot be read, holds a tensor of no known part, or nothing that is trained.
        FileNotFoundError: No such file.
    """
    original = read_checkpoint(path, ("model",))
    with told_of(path):
        state = convert_minigpt3d_state_dict(original)
        trained = {name: tensor for name, tensor in state.items() if not name.startswith(_ENCODER)}
        stage = _stage_of(trained)
    encoder = {name.removeprefix(_ENCODER): state[name] for name in state if name not in trained}
    return StageFile(Path(path), stage, len(original), trained, encoder)


def check_order(files: Sequence[StageFile]) -> None:
    """Make sure that files come in the order of training, each with the one that it stands on.

    Raises:
        ValueError: If they do not.
    """
    for number, file in enumerate(files):
        before = [other.stage for other in files[:number]]
        if any(stage > file.stage for stage in before):
            raise ValueError(
                f"{file.path}: holds {STAGES[file.stage]}, which comes before {STAGES[before[-1]]}; the file of the "
                "later stage belongs behind --second-checkpoint"
            )
        needed = _STANDS_ON.get(file.stage)
        if needed is not None and needed not in before:
            raise ValueError(
                f"{file.path}: holds {STAGES[file.stage]}, which lacks all of {STAGES[needed]}; give that file "
                "behind --checkpoint and this one behind --second-checkpoint"
            )


def check_encoder(file: StageFile, encoder: Part) -> None:
    """Make sure that the copy of the point encoder in a file is the encoder given.

    Raises:
        ValueError: If the copy is not complete, or numbers differ by more than the rounding of its dtype.
    """
    if not file.encoder:
        return
    account(file.path, file.encoder, encoder.state)
    differ = [name for name, copy in file.encoder.items() if not _alike(encoder.state[name], copy)]
    if differ:
        raise ValueError(
            f"{file.path}: its copy of the point encoder is not {encoder.source}: {len(differ)} of "
            f"{len(file.encoder)} tensors differ: {listed(differ)}; give the one that it was trained with"
        )


def check_trained(file: StageFile, model: MiniGPT3DForConditionalGeneration) -> None:
    """Make sure that a file has all that its stage trains, and nothing else.

    The file that training starts from comes from another program, and may have more of what the model has.

    Raises:
        ValueError: If tensors are missing, left over or of another shape.
    """
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    expected = stage_names(model, file.stage or 3)
    if not file.stage:
        parts = ("language_model.", "bridge.projector.")
        expected = [name for name in expected if name.startswith(parts)]
        expected += [name for name in file.trained if name in own]
    account(file.path, file.trained, {name: own[name] for name in expected})


def start_afresh(
    missing: Mapping[str, torch.Tensor], stage: int, queries: torch.Tensor, std: float
) -> dict[str, torch.Tensor]:
    """What training begins with where no file has it: further sets of queries with BLIP-2's, the rest with noise.

    Args:
        missing: Of the model, without numbers.
        stage: The last one whose file there is.
        queries: BLIP-2's, `(num_query_tokens, hidden)`.
        std: Standard deviation of fresh weights.

    Returns:
        Tensors for those that training would begin afresh; the same ones each time.
    """
    generator = torch.Generator().manual_seed(0)
    fresh = {}
    for name, empty in missing.items():
        if name.startswith("bridge.experts.queries.") and stage < 4:
            fresh[name] = queries
        elif any(name.startswith(part) and stage <= last for part, last in _FRESH.items()):
            fresh[name] = _begun(name, torch.empty(empty.shape), std, generator)
    return fresh


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether tensors are equal up to rounding: released programs kept the frozen encoder in half precision."""
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow), other.to(narrow))


def _begun(name: str, tensor: torch.Tensor, std: float, generator: torch.Generator) -> torch.Tensor:
    if name.endswith(".bias") or ".lora_B." in name:
        return tensor.zero_()
    if ".lora_A." in name:
        return nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
    return tensor.normal_(std=std, generator=generator)


def _stage_of(trained: Mapping[str, torch.Tensor]) -> int:
    def has(*parts: str) -> bool:
        return any(all(part in name for part in parts) for name in trained)

    if has("bridge.experts.router."):
        return 4
    if has("bridge.qformer.", ".lora_"):
        return 3
    if has("language_model.") or has("bridge.projector."):
        return 0
    if has("bridge.point_mlp."):
        return 1
    raise ValueError(f"holds nothing that MiniGPT-3D trains: {listed(sorted(trained))}")
