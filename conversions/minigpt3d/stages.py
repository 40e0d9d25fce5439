"""Read the checkpoints of MiniGPT-3D's training stages, check them, and initialize what no stage has trained."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hf_any3d.conversions.checkpoints import account, errors_about, listed, read_checkpoint
from hf_any3d.conversions.minigpt3d.names import convert_minigpt3d_state_dict
from hf_any3d.conversions.minigpt3d.parts import Part
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration, stage_names

_ENCODER = "point_encoder."
STAGES = {0: "what training starts from", 1: "stage I", 3: "stage II or III", 4: "stage IV"}
"""Kinds of files by the number of their stage. Files of stages II and III hold the same parts."""
# Parts that training initializes, with the last stage whose file lacks them. All others must be in a file.
_INITIALIZED = {"bridge.point_mlp.": 0, "bridge.qformer.": 1, "bridge.experts.router.": 3}


@dataclass(frozen=True)
class StageFile:
    """A checkpoint of training.

    Args:
        path: The file.
        stage: Key of `STAGES`.
        entries: Number of tensors in the file.
        trained: Trained tensors, under our names without LoRA's `base_layer`.
        encoder: Tensors of the frozen point encoder, under its own names.
    """

    path: Path
    stage: int
    entries: int
    trained: dict[str, torch.Tensor]
    encoder: dict[str, torch.Tensor]


def read_stage(path: str | os.PathLike) -> StageFile:
    """Read a checkpoint of training."""
    original = read_checkpoint(path, ("model",))
    with errors_about(path):
        state = convert_minigpt3d_state_dict(original)
        trained = {name: tensor for name, tensor in state.items() if not name.startswith(_ENCODER)}

        def has(*parts: str) -> bool:
            return any(all(part in name for part in parts) for name in trained)

        # The last stage first: its files may hold parts of earlier ones.
        if has("bridge.experts.router."):
            stage = 4
        elif has("bridge.qformer.", ".lora_"):
            stage = 3
        elif has("language_model.") or has("bridge.projector."):
            stage = 0
        elif has("bridge.point_mlp."):
            stage = 1
        else:
            raise ValueError(f"holds nothing that MiniGPT-3D trains: {listed(sorted(trained))}")
    encoder = {name.removeprefix(_ENCODER): state[name] for name in state if name not in trained}
    return StageFile(Path(path), stage, len(original), trained, encoder)


def check_stage(file: StageFile, encoder: Part, model: MiniGPT3DForConditionalGeneration) -> None:
    """Check that a file has exactly the tensors that its stage trains, and a copy of the given encoder, if any.

    The file that training starts from comes from another program, and may have more of the model's tensors.
    """
    if file.encoder:
        account(file.path, file.encoder, encoder.state)
    differ = []
    for name, copy in file.encoder.items():
        # Released programs stored it in half precision: rounded to the narrower type, equal numbers are equal again.
        narrow = min(encoder.state[name].dtype, copy.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(encoder.state[name].to(narrow), copy.to(narrow)):
            differ.append(name)
    if differ:
        raise ValueError(
            f"{file.path}: its copy of the point encoder is not {encoder.source}: {len(differ)} of "
            f"{len(file.encoder)} tensors differ: {listed(differ)}; give the one that it was trained with"
        )
    weights = {name.replace(".base_layer.", "."): tensor for name, tensor in model.base_model.state_dict().items()}
    expected = stage_names(model, file.stage or 3)
    if not file.stage:
        parts = ("language_model.", "bridge.projector.")
        expected = [name for name in expected if name.startswith(parts)]
        expected += [name for name in file.trained if name in weights]
    account(file.path, file.trained, {name: weights[name] for name in expected})


def initialize_untrained(
    missing: Mapping[str, torch.Tensor], stage: int, queries: torch.Tensor, std: float
) -> dict[str, torch.Tensor]:
    """Initialize tensors that no file has as training does: query sets with BLIP-2's queries, others with fixed noise.

    Returns:
        The initialized tensors by name; those that a file should have had are left out.
    """
    # A seed of its own, so that converting the same files twice gives equal models.
    generator = torch.Generator().manual_seed(0)
    initialized = {}
    for name, empty in missing.items():
        if name.startswith("bridge.experts.queries.") and stage < 4:
            initialized[name] = queries
        elif any(name.startswith(part) and stage <= last for part, last in _INITIALIZED.items()):
            tensor = initialized[name] = torch.empty(empty.shape)
            if name.endswith(".bias") or ".lora_B." in name:
                tensor.zero_()
            elif ".lora_A." in name:
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)  # as PEFT initializes A
            else:
                tensor.normal_(std=std, generator=generator)
    return initialized
