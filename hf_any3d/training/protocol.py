"""How a benchmark of classification is read, drawn and judged."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.data.splits import draw_fold
from hf_any3d.model_card.run_report import TEST_CHOOSES
from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments, json_mapping
from hf_any3d.training.rows import ProcessedDataset, training_rows

# What trains within the base model, by regular expression; all around it, the head, trains anyway.
_IN_BASE = {
    "full": r"",
    "head": r"^class_token\.",
    "linear": r"^class_token\.",
    "mlp-3": r"^class_token\.",
    "side": r"^class_token\.|^side(\.|_)",
    "bitfit": r"^class_token\.|\.bias$",
}
PROTOCOLS = tuple(_IN_BASE)


def set_trainable(model: PreTrainedModel, protocol: str, *, drifting_statistics: bool = False) -> list[str]:
    """Let some parameters train and freeze the others, as a protocol of fine-tuning says.

    - "full": all.
    - "head": the head, whatever it is, and class token and position; "linear" and "mlp-3" are the same for models
      whose head is just that, and refuse others.
    - "side": those, and the side network.
    - "bitfit": those, and all biases.

    Args:
        model: A point transformer with a head, such as `ActForPointCloudClassification`.
        protocol: One of `PROTOCOLS`.
        drifting_statistics: Let parts without any trained parameter follow `train()`: their batch norms then go on
            measuring and drop path acts, as in the released programs. By default such parts stay in eval mode.

    Returns:
        Names of the parameters that train.

    Raises:
        ValueError: An unknown protocol, or a model that has not the head or the side network that it is about.

    Source: ACT, Sec. 4 (full, MLP-Linear, MLP-3); its released programs (side, bit-fit).
    """
    if protocol not in _IN_BASE:
        raise ValueError(f"protocol={protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    _check(model, protocol)
    prefix = f"{model.base_model_prefix}."
    names = []
    for name, parameter in model.named_parameters():
        inner = name.removeprefix(prefix)
        trains = inner == name or re.search(_IN_BASE[protocol], inner) is not None
        parameter.requires_grad_(trains)
        if trains:
            names.append(name)
    for module in model.modules():
        vars(module).pop(FROZEN, None)
    if not drifting_statistics:
        _freeze_whole_parts(model)
    model.train(model.training)
    return names


def _check(model: PreTrainedModel, protocol: str) -> None:
    if getattr(model, model.base_model_prefix, None) is None:
        raise ValueError(f"{type(model).__name__} has no head; expected a model with one, to be fine-tuned")
    widths = tuple(getattr(model.config, "head_widths", ()))
    if protocol == "linear" and widths:
        raise ValueError(f"protocol='linear': the head has hidden layers, head_widths={widths}; expected ()")
    if protocol == "mlp-3" and len(widths) != 2:
        raise ValueError(f"protocol='mlp-3': head_widths={widths}; expected two hidden layers")
    if protocol == "side" and not getattr(model.config, "side_network", False):
        raise ValueError("protocol='side': the model has no side network; expected side_network=True in its config")


def _freeze_whole_parts(module: nn.Module) -> None:
    """Mark the largest parts that hold parameters of which none trains; their modules stay in eval mode."""
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for inner in child.modules():
                setattr(inner, FROZEN, True)
        else:
            _freeze_whole_parts(child)


FROM_DATA = ("num_points", "features", "up_axis")


@dataclass
class ProtocolArguments:
    """How clouds are brought to form, which of them are drawn, and how the model is judged."""

    processor_config: dict | str | None = field(
        default=None,
        metadata={"help": "JSON object with further settings of the processor, such as sampling, scale and extent."},
    )
    augment_whole: bool = field(
        default=False,
        metadata={"help": "The transforms take whole clouds, as they are stored, and bring them to num_points."},
    )
    few_shot: dict | str | None = field(
        default=None,
        metadata={"help": "JSON object with way, shot and fold: draw few rows of few classes, by a seed."},
    )
    select_on_test: bool = field(
        default=False,
        metadata={"help": "Choose the weights by the test split, as many published figures were; the card says so."},
    )
    voting: int = field(
        default=0,
        metadata={"help": "Also judge the test split by the mean logits of so many augmented copies of each cloud."},
    )
    vote_augment: list[str] | None = field(
        default=None, metadata={"help": "Transforms of the clouds that vote; those of training when left out."}
    )

    def __post_init__(self):
        self.processor_config = json_mapping(self.processor_config, "processor_config")
        self.few_shot = json_mapping(self.few_shot, "few_shot")
        if own := sorted(set(self.processor_config) & set(FROM_DATA)):
            raise ValueError(f"--processor_config has {own[0]!r}; expected it as --{own[0]}")
        known = set(signature(draw_fold).parameters) - {"splits"}
        if self.few_shot and (
            wrong := sorted({"way", "shot", "fold"} - set(self.few_shot) or set(self.few_shot) - known)
        ):
            raise ValueError(
                f"--few_shot: {wrong[0]!r} is missing or unknown; expected way, shot, fold and perhaps seed"
            )
        if self.voting < 0:
            raise ValueError(f"--voting {self.voting}; expected 0 or more")


def build_processor(data: DataArguments, protocol: ProtocolArguments) -> PointCloudProcessor:
    """The processor that is saved with the model."""
    return PointCloudProcessor(**{name: getattr(data, name) for name in FROM_DATA}, **protocol.processor_config)


def apply_protocol(splits: DatasetDict, origin: str, protocol: ProtocolArguments) -> tuple[DatasetDict, str]:
    """Draw the rows of a few-shot fold, and let the test split choose where that is wanted.

    Args:
        splits: What `load_splits` gave.
        origin: Where the split to choose by comes from, in words.
        protocol: The run's.

    Returns:
        Splits and words anew.

    Raises:
        ValueError: A protocol that the splits do not fit.
    """
    if "validation" in splits and (protocol.few_shot or protocol.select_on_test):
        asked = "few_shot" if protocol.few_shot else "select_on_test"
        raise ValueError(f"--{asked} beside a validation split ({origin}); expected --validation_fraction 0")
    if protocol.few_shot:
        splits = draw_fold(splits, **protocol.few_shot)
    if protocol.select_on_test:
        if "test" not in splits:
            raise ValueError(f"--select_on_test: there is no test split but {', '.join(splits)}")
        splits, origin = DatasetDict(**splits, validation=splits["test"]), TEST_CHOOSES
    return splits, origin


def learning_rows(
    dataset: Dataset, processor: PointCloudProcessor, data: DataArguments, protocol: ProtocolArguments, seed: int
) -> ProcessedDataset:
    """Rows to train on."""
    return training_rows(dataset, processor, data.augment, seed=seed, whole=protocol.augment_whole)


def voting_rows(
    dataset: Dataset, processor: PointCloudProcessor, data: DataArguments, protocol: ProtocolArguments, seed: int
) -> ProcessedDataset:
    """Rows that vote: other points and another augmentation in each of their epochs."""
    augment = data.augment if protocol.vote_augment is None else protocol.vote_augment
    return training_rows(dataset, processor, augment, seed=seed, whole=protocol.augment_whole)


def protocol_facts(protocol: ProtocolArguments) -> dict[str, Any]:
    """What a report tells of the protocol; only what was set."""
    votes = {"votes": protocol.voting, "augmentation_of_votes": protocol.vote_augment} if protocol.voting else {}
    facts = {
        "processor": protocol.processor_config,
        "augmentation_of_whole_clouds": protocol.augment_whole,
        "few_shot": protocol.few_shot,
        **votes,
    }
    return {name: fact for name, fact in facts.items() if fact}
