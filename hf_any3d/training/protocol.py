"""Protocols of training and evaluation: trained parameters, processor, few-shot folds, test selection, and voting."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.data.splits import draw_fold
from hf_any3d.model_card.run_report import TEST_CHOOSES
from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments, argument, json_mapping
from hf_any3d.training.rows import ProcessedDataset, training_rows

FROM_DATA = ("num_points", "features", "up_axis", "estimate_normals")
"""Settings of the processor that `DataArguments` has."""
# Regular expressions of the trained parameters in the base model; the head, and the modules that the model trains with
# it, are always trained.
_NOTHING = r"(?!)"
_TRAINED = {
    "full": r"",
    "head": _NOTHING,
    "linear": _NOTHING,
    "mlp-3": _NOTHING,
    "side": r"^side(\.|_)",
    "bitfit": r"\.bias$",
}
PROTOCOLS = tuple(_TRAINED)


def set_trainable(model: PreTrainedModel, protocol: str, *, drifting_statistics: bool = False) -> list[str]:
    """Freeze all parameters that a fine-tuning protocol does not train.

    - "full" trains all parameters.
    - "head" trains the head, and what a model trains with it: ACT's class token and its position, which pretraining
      does not have. "linear" and "mlp-3" do the same, and require that the head is linear or has two hidden layers.
    - "side" also trains the side network, "bitfit" all biases.

    With `drifting_statistics`, modules without trained parameters follow `train()`, with drop path and changing batch
    norm statistics, as in the released programs; else they stay in eval mode. Returns the names of the trained
    parameters.

    Source: ACT, Sec. 4 (full, MLP-Linear, MLP-3); its released programs (side, bit-fit).
    """
    if getattr(model, model.base_model_prefix, None) is None:
        raise ValueError(f"{type(model).__name__} has no head; expected a model with one")
    widths = tuple(getattr(model.config, "head_widths", ()))
    hidden_layers = {"linear": 0, "mlp-3": 2}.get(protocol, len(widths))
    if len(widths) != hidden_layers:
        raise ValueError(f"protocol={protocol!r}: head_widths={widths}; expected {hidden_layers} hidden layers")
    if protocol == "side" and not getattr(model.config, "side_network", False):
        raise ValueError("protocol='side': the model has no side network; expected side_network=True in its config")
    # Names in the protocol's expressions are those inside of the base model.
    prefix = f"{model.base_model_prefix}."
    with_head = tuple(f"{name}." for name in getattr(model, "_trained_with_head", ()))
    names = []
    for name, parameter in model.named_parameters():
        inner = name.removeprefix(prefix)
        # A name without the base model's prefix belongs to the head.
        trains = inner == name or inner.startswith(with_head) or bool(re.search(_TRAINED[protocol], inner))
        parameter.requires_grad_(trains)
        if trains:
            names.append(name)
    for module in model.modules():
        # Marks of an earlier protocol; in `vars`, as adapters forward unknown attributes to the wrapped layer.
        vars(module).pop(FROZEN, None)
    if not drifting_statistics:
        _freeze_untrained(model)
    # The marked modules switch to eval mode when train() is called.
    model.train(model.training)
    return names


def _freeze_untrained(module: nn.Module) -> None:
    """Mark modules without trained parameters, and all modules inside, as frozen: they stay in eval mode."""
    for child in module.children():
        parameters = list(child.parameters())
        # Whole modules only: one with a trained parameter somewhere inside is looked into.
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for inner in child.modules():
                setattr(inner, FROZEN, True)
        else:
            _freeze_untrained(child)


@dataclass
class ProtocolArguments:
    """Preparation of clouds, few-shot folds, test selection and voting."""

    processor_config: dict | str | None = argument(
        None, help="JSON object with additional processor settings, such as sampling, scale and extent."
    )
    augment_whole: bool = argument(
        False, help="Augment the full stored point clouds; the transforms must then sample num_points."
    )
    few_shot: dict | str | None = argument(None, help="JSON object with way, shot and fold, for few-shot evaluation.")
    select_on_test: bool = argument(
        False,
        help="Select the checkpoint on the test split, as many published results do; the model card states this.",
    )
    voting: int = argument(
        0, help="Also evaluate with test-time augmentation: mean logits over this many augmented copies."
    )
    vote_augment: list[str] | None = argument(None, help="Transforms for these copies; by default those of training.")

    def __post_init__(self):
        self.processor_config = json_mapping(self.processor_config, "processor_config")
        self.few_shot = json_mapping(self.few_shot, "few_shot")


def build_processor(data: DataArguments, settings: Mapping[str, Any]) -> PointCloudProcessor:
    """Build the processor that is saved with the model, with further settings."""
    return PointCloudProcessor(**{name: getattr(data, name) for name in FROM_DATA}, **settings)


def apply_protocol(splits: DatasetDict, origin: str, protocol: ProtocolArguments) -> tuple[DatasetDict, str]:
    """Draw the rows of a few-shot fold, and use the test split for validation, as the protocol requires.

    Returns the new splits and the description of where the validation split comes from; see `splits.divide`.
    """
    if protocol.few_shot:
        if "validation" in splits:
            raise ValueError(
                f"--few_shot needs data without a validation split (here: {origin}); add --validation_fraction 0"
            )
        assert isinstance(protocol.few_shot, dict)
        splits = draw_fold(splits, **protocol.few_shot)
    return select_on_test(splits) if protocol.select_on_test else (splits, origin)


def select_on_test(splits: DatasetDict) -> tuple[DatasetDict, str]:
    """Use the test split as validation split too; see `apply_protocol`."""
    if "validation" in splits or "test" not in splits:
        raise ValueError(
            f"--select_on_test needs a test split and no validation split; there are {', '.join(map(str, splits))}"
        )
    return DatasetDict({**splits, "validation": splits["test"]}), TEST_CHOOSES


def voting_rows(
    dataset: Dataset, processor: PointCloudProcessor, data: DataArguments, protocol: ProtocolArguments, seed: int
) -> ProcessedDataset:
    """Return rows to vote with: other points and another augmentation in each epoch."""
    augment = data.augment if protocol.vote_augment is None else protocol.vote_augment
    return training_rows(dataset, processor, augment, seed=seed, whole=protocol.augment_whole)
