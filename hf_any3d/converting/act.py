"""A released ACT checkpoint of any stage into a repository of model, processor and card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.conversions.act import convert_act_state_dict, teacher_of
from hf_any3d.conversions.checkpoints import read_checkpoint
from hf_any3d.converting.act_datasets import UNLABELLED
from hf_any3d.converting.act_models import Choices, build, unread_by
from hf_any3d.converting.directory import new_directory
from hf_any3d.model_card.converted import write_act_card
from hf_any3d.processing import PointCloudProcessor

# Segmentation has a key of its own.
_KEYS = ("base_model", "model_state_dict")


def convert_act(
    checkpoint: str | os.PathLike,
    kind: str,
    output: str | os.PathLike,
    **choices: Any,
) -> dict[str, Any]:
    """Convert a checkpoint of one of ACT's programs.

    Checkpoints of stages I and II hold the layers of the frozen teacher. Where a teacher is named, they are compared
    with its own, and only its name, revision and checksum are stored; else they stay in the repository.

    Args:
        checkpoint: The authors' file.
        kind: "dvae", "pretrain", "cls", "partseg" or "semseg".
        output: Directory to make.
        **choices: What the tensors do not tell; see `Choices`.

    Returns:
        Facts by name: `output`, `model`, `parameters`, `teacher`, `bytes`.

    Raises:
        ValueError: The checkpoint cannot be read, is of another kind or does not fit, or the teacher is another one.
        FileNotFoundError: No such checkpoint.
        FileExistsError: `output` exists and is not empty.
    """
    chosen = Choices(**choices)
    with new_directory(output) as directory:
        original = read_checkpoint(checkpoint, _KEYS)
        teacher = teacher_of(original)
        try:
            state = convert_act_state_dict(kind, original)
            model, trained_on = build(checkpoint, kind, state, teacher, chosen)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(f"{checkpoint}: ") else f"{checkpoint}: {text}") from error
        _fill(model, state, kept=chosen.teacher is None)
        model.save_pretrained(directory)
        processor = dict(trained_on.processor if trained_on else UNLABELLED)
        processor |= {} if chosen.num_points is None else {"num_points": chosen.num_points}
        PointCloudProcessor(**processor).save_pretrained(directory)
        write_act_card(directory, Path(output).name, Path(checkpoint), kind, model, trained_on, chosen.teacher)
    files = [file for file in Path(output).rglob("*") if file.is_file()]
    return {
        "output": os.fspath(output),
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "teacher": None if teacher is None else os.fspath(chosen.teacher or "kept in the directory"),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _fill(model: PreTrainedModel, state: dict[str, torch.Tensor], kept: bool) -> None:
    """Load tensors into a model; `kept` says that its teacher has no other source."""
    own = model.state_dict()
    if kept:
        # The checkpoint has none, so they are made nothing rather than random numbers.
        for name in unread_by(own):
            own[name].zero_()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    model.eval()
