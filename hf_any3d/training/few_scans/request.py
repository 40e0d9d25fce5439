"""Requests to learn from few scans: by frozen features, by a training with settings for little data, or by both."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from datasets import DatasetDict
from huggingface_hub.errors import RepositoryNotFoundError

from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError, resolve_encoder
from hf_any3d.pipelines import default_model
from hf_any3d.training.arguments import DataArguments, argument
from hf_any3d.training.few_scans.no_class import NUM_THINGS
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.peft_methods import check_peft_method
from hf_any3d.training.recipes import read_recipe
from hf_any3d.training.requests import Request
from hf_any3d.training.splits import load_rows
from hf_any3d.training.tasks import Classification
from hf_any3d.utils.shipped import RECIPES

RECIPE = RECIPES / "base" / "small_data.yaml"
"""Settings of trainings that were searched for little data."""
# The recipe's rate is that of adapters and new weights; a pretrained point encoder would forget what it learned.
_SLOW = {"learning_rate": 1e-3}
# Its new head is trained alone for the first epochs.
_FROM_PACKAGED = {**_SLOW, "head_epochs": 3}
_STARTS = {"model_type", "model_name_or_path", "encoder_name_or_path"}
# What an earlier model, to which scans are added, has decided.
_OF_EARLIER_DATA = ("num_points", "features", "up_axis")
_OF_EARLIER_MODEL = ("feature_sets", "copies", "encoder", "vision", "wrap")
# Options of the data that frozen features take, too.
_DATA = {
    "dataset_name",
    "data_dir",
    "dataset_options",
    "train_file",
    "validation_file",
    "test_file",
    "train_splits",
    "group_column",
    "num_points",
    "features",
    "estimate_normals",
    "up_axis",
    "max_train_samples",
    "max_eval_samples",
}


@dataclass
class FewScansArguments:
    """Settings of learning from few scans; those not given follow from their number."""

    output_dir: str = argument("trainer_output", help="Output directory for the model.")
    feature_sets: list[str] | None = argument(
        None,
        help="Frozen features to use: descriptors, encoder, wrap, views; by default those tuned for this number "
        "of scans, plus those of the models you pass.",
    )
    encoder: str | None = argument(
        None, help="Directory or Hub name of a pretrained point encoder for the features; by default the bundled one."
    )
    vision: str | None = argument(
        None, help="Directory or Hub name of a transformers vision model to run on rendered depth views."
    )
    wrap: str | None = argument(
        None, help="Directory of a trained model around an encoder of another modality, to add its features."
    )
    wrap_weight: float | None = argument(
        None,
        help="Weight, from 0 to 1, of the predictions of the --wrap model in the final average, if it was trained "
        "on these scans and classes; by default the linear head uses its features.",
    )
    copies: int | None = argument(
        None, help="Number of slightly rotated, scaled and jittered copies of each scan to average features over."
    )
    strength: float | None = argument(None, help="Inverse regularization strength, as C in logistic regression.")
    folds: int = argument(10, help="Maximum number of cross-validation folds.")
    heading: str = argument(
        "known",
        help="known if scans share a heading, or if it varies in training as it will later; unknown rotates "
        "copies by any angle about the up axis.",
    )
    allow_doubts: bool = argument(
        False, help="Continue even if class names differ only in case, or a scan has two labels."
    )
    from_model: str | None = argument(
        None, help="Directory of a model of this type to add scans to; the features of its scans are reused."
    )
    unlike: int | None = argument(
        None,
        help="Drawn things of no class (noise, floors, bars, rooms) from which the unknown score tells scans; by "
        f"default {NUM_THINGS}, and none beside a vision model, which would take minutes for them.",
    )
    one_sided: bool = argument(True, help="Train a check that warns about scans seen from one side only.")
    views: bool = argument(
        False,
        help="Also train on a one-sided view of each scan, for complete training scans and partial inputs later.",
    )
    seed: int = argument(42, help="Random seed for the folds.")
    license: str | None = argument(None, help="License identifier for the model card, as on the Hub.")

    def __post_init__(self):
        check_settings(self, {"heading": ("known", "unknown")})
        if self.folds < 2:  # a head of no scans would judge them all
            raise ValueError(f"--folds is {self.folds}; use at least 2")
        if self.wrap_weight is not None and (self.wrap is None or not 0 < self.wrap_weight < 1):
            raise ValueError(
                f"--wrap_weight {self.wrap_weight} with --wrap {self.wrap}; give a weight from 0 to 1 together "
                "with --wrap"
            )


@dataclass
class FewScansDataArguments(DataArguments):
    """Scans to learn; what is None of how clouds are prepared follows from the earlier model, or from the scans."""

    num_points: int | None = argument(None, help="Points per cloud; by default 1,024.")  # pyright: ignore[reportIncompatibleVariableOverride]
    features: list[str] | None = argument(None, help="Channels per point; by default xyz.")  # pyright: ignore[reportIncompatibleVariableOverride]
    up_axis: str | None = argument(None, help="Up axis; by default that of the dataset, otherwise y.")  # pyright: ignore[reportIncompatibleVariableOverride]
    # All scans are learned, and judged by cross-validation.
    validation_fraction: float = field(default=0.0)


OF_SCANS = {setting.name for setting in fields(FewScansArguments)}
"""Names of the options besides those of the data."""
OPTIONS = OF_SCANS | _DATA
"""Names of the options that this way takes; others are for training."""


@dataclass
class FewScans(Request):
    """Scans, and how they are learned."""

    arguments: FewScansArguments
    data: FewScansDataArguments

    def load(self) -> DatasetDict:
        """Load the scans."""
        # Loading reads channels beside the coordinates only if they are asked for.
        return load_rows(replace(self.data, features=self.data.features or ["xyz"]))

    def check_settings_of_earlier(self) -> None:
        """Refuse settings that the earlier model has fixed, as features of old and new scans are compared."""
        requested = [name for name in _OF_EARLIER_DATA if getattr(self.data, name) is not None]
        requested += [name for name in _OF_EARLIER_MODEL if getattr(self.arguments, name) is not None]
        # The default counts as not given, so only the other value is refused.
        if self.arguments.heading != "known":
            requested.append("heading")
        if requested:
            raise ValueError(
                f"--{min(requested)} has no effect with --from_model, which brings its own; leave out one of them"
            )


@dataclass(frozen=True)
class BothWays:
    """Request of one model that answers with the mean of a head on frozen features and of a trained classifier."""

    scans: FewScans
    classification: Classification  # its output folder is not used: the model is saved where that of the scans is


def small_data_classification(**arguments: Any) -> Classification:
    """Build the training of a classifier on few scans; arguments that are not given are those of `RECIPE`.

    Without arguments of a model among them, and without the default encoder on this machine or the hub, training
    starts from the packaged encoder's weights.

    Raises:
        ValueError: An argument is for frozen features.
    """
    kinds = Classification.argument_classes()
    names = {entry.name for kind in kinds for entry in fields(kind)}
    peft = (arguments.get("peft") or "none").lower()
    # Before the encoder is looked for.
    if peft not in ("none", "full"):
        check_peft_method(peft)
    foreign = sorted(arguments.keys() & OF_SCANS - names)
    if foreign:
        raise ValueError(f"--{foreign[0]} has no effect here; use it with --way features")
    recipe = read_recipe(RECIPE, kinds) | _start(arguments.keys(), peft)
    return Classification.from_settings(arguments, recipe)


def _start(named: Collection[str], peft: str) -> dict[str, Any]:
    """Return settings for starting weights and learning rate, unless the `named` arguments choose them."""
    if _STARTS & {*named}:
        return _SLOW if "model_name_or_path" in named else {}
    encoder = PointModelArguments.encoder_name_or_path
    try:
        # Other arguments of the model are for the default encoder, whose absence is then an error of its own.
        if not {entry.name for entry in fields(PointModelArguments)} & {*named}:
            resolve_encoder(encoder)
    except (EncoderUnavailableError, RepositoryNotFoundError):
        warnings.warn(
            f"{encoder} is not in the cache and cannot be downloaded, so training starts from the bundled encoder. To "
            f"start from {encoder.rpartition('/')[2]}, connect to a network, or run: pip install 'hf-any3d[offline]'",
            stacklevel=3,
        )
        is_adapted = peft not in ("none", "full")
        # Adapters are trained with the head.
        return {"model_name_or_path": default_model(), **(_SLOW if is_adapted else _FROM_PACKAGED)}
    return {"num_layers": 1}


def classification_beside_head(**arguments: Any) -> Classification:
    """Build the training of a classifier whose answers are averaged with those of a head on frozen features.

    It starts from the packaged encoder, or around the frozen encoder of another modality that `encoder_name_or_path`
    names, and learns from all scans.
    """
    start: dict[str, Any] = {"model_name_or_path": default_model(), **_FROM_PACKAGED}
    if "encoder_name_or_path" in arguments:
        start = {"peft": "guided_adapter"}
    return small_data_classification(**{**start, **arguments, "validation_fraction": 0.0})
