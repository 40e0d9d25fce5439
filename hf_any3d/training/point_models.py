"""The models that the programs for classification and segmentation train, by task and system."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.act import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForSemanticSegmentation,
)
from hf_any3d.modeling.any2point import (
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
)
from hf_any3d.training import program
from hf_any3d.training.adapters import build_peft_config
from hf_any3d.training.protocol import PROTOCOLS, set_trainable
from hf_any3d.training.settings import AdapterArguments, ModelArguments

CLASSES, PARTS, SCENES = "classification", "part segmentation", "semantic segmentation"
_AROUND_ENCODER = {
    CLASSES: Any2PointForPointCloudClassification,
    PARTS: Any2PointForPartSegmentation,
    SCENES: Any2PointForSemanticSegmentation,
}
_POINT_TRANSFORMERS: dict[str, type[PreTrainedModel]] = {
    CLASSES: ActForPointCloudClassification,
    PARTS: ActForPartSegmentation,
    SCENES: ActForSemanticSegmentation,
}
SYSTEMS = ("any2point", "act3d")
# Settings of the config that belong to a protocol of fine-tuning.
_OF_PROTOCOL: dict[str, dict[str, Any]] = {"linear": {"head_widths": []}, "side": {"side_network": True}}


@dataclass
class PointModelArguments(ModelArguments):
    """What is trained: a wrapped encoder of another modality, or a point transformer."""

    model_type: str | None = field(
        default=None,
        metadata={
            "help": "any2point puts a frozen encoder into use, act3d is a point transformer from scratch. Left out: "
            "act3d with --model_name_or_path, else any2point."
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a pretrained point transformer to fine-tune."}
    )
    tuning: str = field(
        default="full",
        metadata={"help": f"What of a point transformer is trained: {', '.join(PROTOCOLS)}."},
    )
    drifting_statistics: bool = field(
        default=False, metadata={"help": "Frozen parts drop branches and gather statistics, as in released programs."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.model_type = self.model_type or ("any2point" if self.model_name_or_path is None else "act3d")
        if self.model_type not in SYSTEMS:
            raise ValueError(f"--model_type {self.model_type!r}; expected one of {', '.join(SYSTEMS)}")
        if self.tuning not in PROTOCOLS:
            raise ValueError(f"--tuning {self.tuning!r}; expected one of {', '.join(PROTOCOLS)}")
        if self.model_type == "any2point" and (self.model_name_or_path or self.tuning != "full"):
            raise ValueError("--model_name_or_path and --tuning are for --model_type act3d; any2point has --peft")
        if self.model_type == "act3d" and self.model_name_or_path is None and self.tuning != "full":
            raise ValueError(f"--tuning {self.tuning} freezes untrained weights; expected --model_name_or_path too")

    def start(self) -> dict[str, Any]:
        """What a report tells of the start; empty around a frozen encoder."""
        if self.model_type == "any2point":
            return {}
        drift = {"drifting statistics": True} if self.drifting_statistics else {}
        return {"model": self.model_name_or_path, "tuning": self.tuning, **drift}


def build_model(
    task: str, arguments: PointModelArguments, adapter: AdapterArguments, labels: list[str], **config: Any
) -> nn.Module:
    """The model to train.

    Args:
        task: `CLASSES`, `PARTS` or `SCENES`.
        arguments: Say which system, and what it starts from.
        adapter: Says which adapter goes into a frozen encoder or a pretrained point transformer; with one into the
            latter, `arguments.tuning` becomes "adapter".
        labels: Names of the classes.
        **config: Further settings of the config; those of `arguments` win.

    Raises:
        ValueError: Settings that the config does not have, or an adapter for a point transformer that is not
            pretrained or has another protocol beside it.
    """
    if arguments.model_type == "any2point":
        return program.build_adapted_model(_AROUND_ENCODER[task], arguments, adapter, labels, **config)
    adapted = adapter.peft not in (None, "none", "full")
    if adapted and arguments.model_name_or_path is None:
        raise ValueError(f"--peft {adapter.peft} freezes untrained weights; expected --model_name_or_path too")
    if adapted and arguments.tuning not in ("full", "adapter"):
        raise ValueError(f"--peft {adapter.peft} beside --tuning {arguments.tuning}; expected one of them")
    settings = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
        # What it was pretrained with is over.
        "autoencoder_config": None,
        **config,
        **_OF_PROTOCOL.get(arguments.tuning, {}),
        **arguments.model_config,
    }
    known = {setting.name for setting in fields(ActConfig)}
    if unknown := sorted(set(arguments.model_config) - known):
        raise ValueError(f"--model_config: {unknown[0]!r} is no setting of {ActConfig.__name__}")
    model_class = _POINT_TRANSFORMERS[task]
    if arguments.model_name_or_path is None:
        model = model_class(ActConfig(**settings, attn_implementation=arguments.attn_implementation))
    else:
        model = model_class.from_pretrained(
            arguments.model_name_or_path, attn_implementation=arguments.attn_implementation, **settings
        )
    if adapted:
        arguments.tuning = "adapter"
        return get_peft_model(model, build_peft_config(adapter.peft, model, adapter.peft_config))
    set_trainable(model, arguments.tuning, drifting_statistics=arguments.drifting_statistics)
    return model
