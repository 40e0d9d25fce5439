"""Everything about few scans that can be wrong, looked at before anything is learned or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers.utils import FEATURE_EXTRACTOR_NAME

from hf_any3d.data.inputs import count_channels
from hf_any3d.integration.auto import AutoModelForPointCloudClassification
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.modeling.point_features.configuration_point_features import PART_OF
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.no_class import NUM_THINGS
from hf_any3d.training.few_scans.plan import FEATURES, Plan, plan_of
from hf_any3d.training.few_scans.request import FewScans, FewScansArguments
from hf_any3d.training.few_scans.scans import (
    Examples,
    Scans,
    can_have_views,
    check,
    implied_up_axis,
    joined,
    look_at,
)
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.splits import divide, load_rows, with_estimated_normals

# What an earlier model, to which scans are added, has decided.
_OF_EARLIER_DATA = ("num_points", "features", "up_axis")
_OF_EARLIER_MODEL = ("feature_sets", "copies", "encoder", "vision", "wrap")


@dataclass(frozen=True)
class Preparation:
    """Scans that can be learned, and the model that will compute their features."""

    request: FewScans
    data: DataArguments  # with what follows from the scans, or from the earlier model
    origin: str  # of the scans, for messages
    splits: DatasetDict
    scans: Scans  # of the training split
    together: Scans  # the same, and those of the earlier model
    earlier: Examples | None
    plan: Plan
    processor: PointCloudProcessor
    model: PointFeaturesForPointCloudClassification
    learns_views: bool
    num_things: int  # drawn things of no class that are asked for
    is_axis_assumed: bool  # nothing says which axis points up


def prepare(request: FewScans, rows: DatasetDict | None = None) -> Preparation:
    """Load and check scans, and open the model that computes their features.

    `rows` are the scans if they are loaded.

    Raises:
        PointCloudFileError: No file of the folder can be read.
        ValueError: There is one class, two labels for the same scan, or options that do not fit.
        EncoderUnavailableError: An encoder that was asked for is neither on the hub nor in the cache.
    """
    arguments = request.arguments
    # As many points as the packaged encoder has learned from, without colors
    num_points = 1024
    features = ["xyz"]
    earlier = None
    if arguments.from_model is not None:
        # The earlier model has fixed these settings, as features of old and new scans are compared.
        requested = [name for name in _OF_EARLIER_DATA if getattr(request.data, name) is not None]
        requested += [name for name in _OF_EARLIER_MODEL if getattr(request.arguments, name) is not None]
        # The default counts as not given, so only the other value is refused.
        if request.arguments.heading != "known":
            requested.append("heading")
        if requested:
            raise ValueError(f"--{min(requested)} with --from_model, which has its own; expected one of them")
        earlier = Examples.load(Path(arguments.from_model))
        num_points = earlier.processor.num_points
        features = list(earlier.processor.features)
    # What the data's own arguments say counts first.
    data = replace(
        request.data, num_points=request.data.num_points or num_points, features=request.data.features or features
    )
    splits, _ = divide(load_rows(data) if rows is None else rows, data)
    # What the user says wins over what the files imply; only an axis that nobody has said is worth a hint.
    known_up = implied_up_axis(data, splits["train"])
    is_axis_assumed = earlier is None and data.up_axis is None and known_up is None
    data.up_axis = data.up_axis or known_up or "y"
    processor = build_processor(data, {}) if earlier is None else earlier.processor
    splits = with_estimated_normals(splits, processor)
    origin = data.train_file or data.data_dir or data.dataset_name
    scans = look_at(splits["train"], origin, data.group_column)
    together = scans if earlier is None else joined(earlier.scans, scans)[0]
    # Together: a class that is alone among new scans has others in the earlier model, and a label may differ from its.
    check(together, origin, arguments.allow_doubts)
    # The table may want a training for so many scans; frozen features were asked for.
    plan = plan_of(request, together.counts, FEATURES)
    if arguments.from_model is None:
        model = _build_model(plan, data, arguments)
    else:
        model = _open_earlier(arguments.from_model, known_up)
    _check_channels(model.config, processor)
    # What is added to a model that has learned views is learned with its view, too.
    learns_views = arguments.views or (earlier is not None and earlier.learns_views)
    if learns_views and not can_have_views(processor, earlier):
        raise ValueError("--views true with colors or normals, or a model without views; expected points alone")
    num_things = arguments.unlike
    # 0 is a wish, too. A vision model would take minutes for things.
    if num_things is None:
        num_things = 0 if "views" in model.config.features else NUM_THINGS
    return Preparation(
        request=request,
        data=data,
        origin=origin,
        splits=splits,
        scans=scans,
        together=together,
        earlier=earlier,
        plan=plan,
        processor=processor,
        model=model,
        learns_views=learns_views,
        num_things=num_things,
        is_axis_assumed=is_axis_assumed,
    )


def _build_model(
    plan: Plan, data: DataArguments, arguments: FewScansArguments
) -> PointFeaturesForPointCloudClassification:
    """Build the model that computes the features, with a head that is not fitted."""
    # Options have the names of the parts that they open.
    parts: dict[str, Any] = {}
    for part in PART_OF.values():
        if getattr(arguments, part) is not None:
            parts[part] = getattr(arguments, part)
    config_fields: dict[str, Any] = {
        "features": list(_feature_sets(plan, data, arguments, parts)),
        "copies": plan.copies,
        "in_channels": count_channels(data.features),
        "normals": data.features[1:2] == ["normals"],
        "up_axis": data.up_axis,
        "wrap_up_axis": _own_up_axis(arguments.wrap),
    }
    # Copies are turned completely where scans may face any direction.
    if arguments.heading == "unknown":
        config_fields["copy_turn"] = 180.0
    if arguments.encoder is not None:
        config_fields["encoder_up_axis"] = _own_up_axis(arguments.encoder)
    if arguments.wrap is not None and arguments.wrap_weight is not None:
        # With its head, which AutoModel would leave out.
        parts["wrap"] = AutoModelForPointCloudClassification.from_pretrained(arguments.wrap)
        config_fields["wrap_labels"] = parts["wrap"].config.num_labels
    if parts:
        return PointFeaturesForPointCloudClassification.from_parts_pretrained(**parts, **config_fields)
    return PointFeaturesForPointCloudClassification(PointFeaturesConfig(**config_fields)).eval()


def _feature_sets(
    plan: Plan, data: DataArguments, arguments: FewScansArguments, parts: dict[str, Any]
) -> tuple[str, ...]:
    """Return the sets of features: those of the plan and of the parts given by name."""
    sets = plan.features
    if arguments.feature_sets is None and data.features[1:2] == ["normals"]:
        sets = ("descriptors", *sets)  # the packaged encoder reads no normals
    left_out = [name for name, part in PART_OF.items() if part in parts and name not in sets]
    if arguments.feature_sets is None or arguments.wrap_weight is not None:
        return (*sets, *left_out)
    if left_out:
        part = PART_OF[left_out[0]]
        raise ValueError(f"--{part} {parts[part]} with --feature_sets {' '.join(sets)}, which leave it out")
    return sets


def _own_up_axis(folder: str | None) -> str | None:
    """Return the up axis of what a saved model reads, or None if its directory does not say."""
    if folder is None or not (Path(folder) / FEATURE_EXTRACTOR_NAME).is_file():
        return None
    return PointCloudProcessor.from_pretrained(folder).up_axis


def _open_earlier(folder: str, known_up: str | None) -> PointFeaturesForPointCloudClassification:
    """Open a model to which scans are added, whose up axis must be the `known_up` one of the scans, if any.

    It has features as they are computed, without the numbers by which they are standardized.
    """
    model = PointFeaturesForPointCloudClassification.from_pretrained(folder)
    assert isinstance(model, PointFeaturesForPointCloudClassification)  # from_pretrained declares any model
    # A wrap that has learned few scans would have to learn again with the new ones.
    if model.config.wrap_labels is not None:
        raise ValueError(f"--from {folder}: its wrap knows few scans; expected --way both with all scans")
    up_axis = model.config.up_axis
    # Stored features are of clouds with this axis up.
    if known_up not in (None, up_axis):
        raise ValueError(
            f"--from {folder}: it has {up_axis} up, but these scans have {known_up}; expected them turned"
        )
    # Scans are added to stored features, which are those before any of this.
    model.set_metric(None)
    model.point_features.mean.zero_()
    model.point_features.scale.fill_(1.0)
    return model.eval()


def _check_channels(config: PointFeaturesConfig, processor: PointCloudProcessor) -> None:
    """Refuse channels of points that none of the features reads."""
    # The largest number of channels that any of the sets takes; the first three are coordinates.
    channels = [6 if config.normals and "descriptors" in config.features else 3]
    for part in ("encoder", "wrap"):
        channels.append(getattr(getattr(config, f"{part}_config"), "in_channels", 3))
    # (features,) number of the last channel of each
    ends = np.cumsum([count_channels([name]) for name in processor.features])
    unread = [name for name, end in zip(processor.features, ends, strict=True) if end > max(channels)]
    if unread:
        sets = " and ".join(config.features)
        raise ValueError(f"--features: {sets} do not read {unread[0]}; expected --way trained, which does")
