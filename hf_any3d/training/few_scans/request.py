"""Requests to learn from few scans: options, defaults that follow from the scans, and the earlier model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers.utils import FEATURE_EXTRACTOR_NAME

from hf_any3d.data.catalog import up_axis_of
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments, Request, argument
from hf_any3d.training.few_scans.no_class import NUM_THINGS
from hf_any3d.training.few_scans.plan import Plan, plan_for
from hf_any3d.training.few_scans.scans import Examples, file_names
from hf_any3d.training.splits import load_rows

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
    "up_axis",
    "max_train_samples",
    "max_eval_samples",
}


# What an earlier model, to which scans are added, has decided.
_OF_EARLIER_DATA = ("num_points", "features", "up_axis")
_OF_EARLIER_MODEL = ("feature_sets", "copies", "encoder", "vision", "wrap")


@dataclass
class FewScansArguments:
    """Settings of learning from few scans; those not given follow from their number."""

    output_dir: str = argument("trainer_output", help="Directory to write the model to.")
    feature_sets: list[str] | None = argument(
        None,
        help="Sets of frozen features: descriptors, encoder, wrap, views; by default what the table for this many "
        "scans says, and those of the models that are given.",
    )
    encoder: str | None = argument(
        None, help="Pretrained point encoder for the features: directory or hub name; by default the packaged one."
    )
    vision: str | None = argument(
        None, help="Vision model of transformers that sees depth views of the clouds: directory or hub name."
    )
    wrap: str | None = argument(
        None, help="Directory of a trained model around an encoder of another modality, whose features are added."
    )
    wrap_weight: float | None = argument(
        None,
        help="Share of the wrap's own answers in those of the model, from 0 to 1, for a wrap that has learned the "
        "classes from these scans; by default its features are given to the linear head.",
    )
    copies: int | None = argument(
        None, help="Slightly turned, scaled and jittered copies of each cloud, over which features are averaged."
    )
    strength: float | None = argument(
        None, help="Weight of the scans against that of small weights, as C in logistic regression."
    )
    folds: int = argument(10, help="Folds of the cross-validation at most.")
    heading: str = argument(
        "known",
        help="known if scans face one direction, or any of them as they do later; unknown turns copies completely.",
    )
    allow_doubts: bool = argument(
        False, help="Go on if names of classes differ only in case, or a scan has two labels."
    )
    from_model: str | None = argument(
        None, help="Directory of a model of this kind to add scans to; the features of its scans are reused."
    )
    unlike: int | None = argument(
        None,
        help="Drawn things of no class (noise, floors, bars, rooms) from which the unknown score tells scans; by "
        f"default {NUM_THINGS}, and none beside a vision model, which would take minutes for them.",
    )
    one_sided: bool = argument(
        True, help="Learn what the scans would look like from one side, for a remark on clouds that do."
    )
    views: bool = argument(
        False, help="Learn a view of each scan from one side besides, for whole scans where views will come."
    )
    seed: int = argument(42, help="Seed of the folds.")
    license: str | None = argument(None, help="License in the model card, as the hub writes it.")

    def __post_init__(self):
        check_settings(self, {"heading": ("known", "unknown")})
        if self.folds < 2:  # a head of no scans would judge them all
            raise ValueError(f"--folds {self.folds}; expected at least 2")
        if self.wrap_weight is not None and (self.wrap is None or not 0 < self.wrap_weight < 1):
            raise ValueError(f"--wrap_weight {self.wrap_weight} with --wrap {self.wrap}; expected 0 to 1, and a wrap")


@dataclass
class FewScansDataArguments(DataArguments):
    """Scans to learn; what is None of how clouds are prepared follows from the earlier model, or from the scans."""

    num_points: int | None = argument(None, help="Points per cloud; by default 1,024.")  # pyright: ignore[reportIncompatibleVariableOverride]
    features: list[str] | None = argument(None, help="Channels per point; by default xyz.")  # pyright: ignore[reportIncompatibleVariableOverride]
    up_axis: str | None = argument(None, help="Axis that points up; by default that of the data, else y.")  # pyright: ignore[reportIncompatibleVariableOverride]
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

    def plan(self, counts: dict[str, int], way: str | None = None) -> Plan:
        """Return how so many scans of each class are learned; None for the table's way."""
        arguments = self.arguments
        # Given settings win over the table.
        sets = None if arguments.feature_sets is None else tuple(arguments.feature_sets)
        plan = plan_for(counts, way=way, features=sets, copies=arguments.copies, strength=arguments.strength)
        if arguments.from_model is not None:
            return replace(plan, reason="features and copies of the earlier model")
        return plan

    def num_things(self, feature_sets: Sequence[str]) -> int:
        """Return how many things of no class are drawn for these sets of features."""
        # 0 is a wish, too.
        if self.arguments.unlike is not None:
            return self.arguments.unlike
        return 0 if "views" in feature_sets else NUM_THINGS

    def earlier(self) -> Examples | None:
        """Return the examples of the earlier model, if there is one; what it decides may not be set."""
        arguments = self.arguments
        if arguments.from_model is None:
            return None
        # Features of old and new scans are compared, so that both have to be computed alike.
        requested = [name for name in _OF_EARLIER_DATA if getattr(self.data, name) is not None]
        requested += [name for name in _OF_EARLIER_MODEL if getattr(arguments, name) is not None]
        # The default counts as not given, so only the other value is refused.
        if arguments.heading != "known":
            requested.append("heading")
        if requested:
            raise ValueError(f"--{min(requested)} with --from_model, which has its own; expected one of them")
        return Examples.load(Path(arguments.from_model))

    def prepared(self, earlier: Examples | None) -> DataArguments:
        """Return the arguments of the data, with points and channels as the earlier model has them, or by default."""
        # As many points as the packaged encoder has learned from, without colors.
        num_points = 1024
        features = ["xyz"]
        if earlier is not None:
            num_points = earlier.processor.num_points
            features = list(earlier.processor.features)
        # What the data's own arguments say counts first.
        return replace(
            self.data, num_points=self.data.num_points or num_points, features=self.data.features or features
        )


def implied_up_axis(data: DataArguments, rows: Dataset) -> str | None:
    """Return the up axis that the dataset or the format of all its files implies, or None."""
    # In these formats z is the elevation.
    are_aerial = all(Path(name).suffix.lower() in (".las", ".laz") for name in file_names(rows))
    # A dataset of the catalog says its axis itself.
    return up_axis_of(data.dataset_name) or ("z" if are_aerial else None)


def own_up_axis(folder: str | None) -> str | None:
    """Return the up axis of what a saved model reads, or None if its directory does not say."""
    if folder is None or not (Path(folder) / FEATURE_EXTRACTOR_NAME).is_file():
        return None
    return PointCloudProcessor.from_pretrained(folder).up_axis
