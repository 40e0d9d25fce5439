"""The model that computes the features of scans: built for them, or an earlier one to which they are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import FEATURE_EXTRACTOR_NAME

from hf_any3d.data.inputs import count_channels
from hf_any3d.integration.auto import AutoModelForPointCloudClassification
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.modeling.point_features.configuration_point_features import PART_OF
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.plan import Plan
from hf_any3d.training.few_scans.request import FewScansArguments
from hf_any3d.training.few_scans.scans import Scans
from hf_any3d.training.scan_sizes import record_sizes


def open_model(plan: Plan, scans: Scans, arguments: FewScansArguments) -> PointFeaturesForPointCloudClassification:
    """Build the model that computes the features of scans, or open the earlier one; it has no head for them yet.

    Raises:
        ValueError: Options do not fit.
        EncoderUnavailableError: An encoder that was asked for is neither on the hub nor in the cache.
    """
    if arguments.from_model is None:
        model = _build_model(plan, scans.data, arguments)
    else:
        model = _open_earlier(arguments.from_model, scans.implied_up_axis)
    _check_channels(model.config, scans.processor)
    if plan.learns_views and not scans.can_have_views:
        raise ValueError("--views true works with xyz features only; leave out colors and normals, or --views")
    return model


def start_head(model: PointFeaturesForPointCloudClassification, scans: Scans) -> None:
    """Give a model the classes of scans, a head for them that is not fitted, and the size of the scans."""
    classes = scans.together.classes
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: number for number, name in enumerate(classes)}
    model.classifier = torch.nn.Linear(model.config.hidden_size, len(classes))
    # An earlier model has one for features that are standardized otherwise.
    model.side_head = None
    model.config.one_sided = False
    # By these a later file is known to be of another unit.
    record_sizes(model.config, scans.data, scans.rows)


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
    """Return the up axis that a saved model expects, or None if its directory does not record one."""
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
        raise ValueError(
            f"--from {folder}: its adapter was trained on a few scans and cannot be extended; train again with "
            "--way both on all scans"
        )
    up_axis = model.config.up_axis
    # Stored features are of clouds with this axis up.
    if known_up not in (None, up_axis):
        raise ValueError(
            f"--from {folder}: it has {up_axis} up, but these scans have {known_up} up; rotate them first"
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
        raise ValueError(f"--features: {sets} do not use {unread[0]}; train with --way trained, which does")
