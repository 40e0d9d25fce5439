"""Everything about few scans that can be wrong, looked at before anything is learned or written."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import DatasetDict

from hf_any3d.modeling.point_features import PointFeaturesForPointCloudClassification
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans.feature_model import check_channels, open_model
from hf_any3d.training.few_scans.features import can_have_views
from hf_any3d.training.few_scans.plan import FEATURES, Plan
from hf_any3d.training.few_scans.request import FewScans, implied_up_axis
from hf_any3d.training.few_scans.scans import Examples, Scans, check, joined, look_at
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.splits import divide, load_rows


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
    earlier = request.earlier()
    data = request.prepared(earlier)
    splits, _ = divide(load_rows(data) if rows is None else rows, data)
    # What the user says wins over what the files imply; only an axis that nobody has said is worth a hint.
    known_up = implied_up_axis(data, splits["train"])
    is_axis_assumed = earlier is None and data.up_axis is None and known_up is None
    data.up_axis = data.up_axis or known_up or "y"
    processor = build_processor(data, {}) if earlier is None else earlier.processor
    origin = data.train_file or data.data_dir or data.dataset_name
    scans = look_at(splits["train"], origin, data.group_column)
    together = scans if earlier is None else joined(earlier.scans, scans)[0]
    # Together: a class that is alone among new scans has others in the earlier model, and a label may differ from its.
    check(together, origin, arguments.allow_doubts)
    # The table may want a training for so many scans; frozen features were asked for.
    plan = request.plan(together.counts, FEATURES)
    model = open_model(plan, data, arguments, known_up)
    check_channels(model.config, processor)
    # What is added to a model that has learned views is learned with its view, too.
    learns_views = arguments.views or (earlier is not None and earlier.learns_views)
    if learns_views and not can_have_views(processor, earlier):
        raise ValueError("--views true with colors or normals, or a model without views; expected points alone")
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
        num_things=request.num_things(model.config.features),
        is_axis_assumed=is_axis_assumed,
    )
