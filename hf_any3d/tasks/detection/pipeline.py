"""`pipeline("point-cloud-object-detection")`: boxes around the objects of a scan."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.options import one_of
from hf_any3d.modeling.layers.boxes import DetectionRule, box_corners, select_detections
from hf_any3d.processing.point_clouds import UP_AXES
from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.segmentation.steps import MESH_DENSITY, blocks_of, part_of
from hf_any3d.tasks.steps import refuse_non_finite, refuse_unknown, stem_of, without_none

_RULES = tuple(field.name for field in fields(DetectionRule))


@dataclass
class Scan:
    """A cloud as it was given, the name of its file, and the axis that points up in it."""

    data: PointCloudData
    stem: str | None
    up_axis: str


class PointCloudObjectDetectionPipeline(PointCloudPipeline, ChunkPipeline):
    """Find objects in scans.

    Takes clouds as all pipelines do, see `PointCloudPipeline`. Returns, for each cloud, a list of
    `{"label": …, "score": …, "box": …}`, the highest score first. A box is a dict:

    - `center`, x, y and z in the frame and units of the file,
    - `size`, its length, width and height: along its own x and y, and along the up axis,
    - `heading`, the angle in radians by which it is turned about the up axis, counterclockwise seen from above; 0 if
      its length is along x,
    - `corners`, eight points: four of the bottom, then those above them.

    Clouds are thinned to the processor's number of points. With its `block_size`, large scenes are read in
    overlapping columns, whose boxes are merged.

    Arguments of a call:

    - `threshold`: lowest score, 0.5 by default.
    - `nms`, `nms_iou`, `nms_per_class`: which of two overlapping boxes are left out; see `DetectionRule` of
      `hf_any3d.modeling.layers.boxes`, whose other settings are arguments, too.
    - `top_k`: largest number of boxes; None for all.
    - `up_axis`: the axis that points up in the clouds, "x", "y" or "z"; the model sees them turned so that it is that
      of its training, z. By default nothing is turned.

    Example:
        ```python
        detect = pipeline("point-cloud-object-detection", model="me/3detr-rooms")
        for found in detect("room.ply", threshold=0.3, up_axis="y"):
            found["label"], found["score"], found["box"]["center"]
        ```
    """

    has_scores = True
    """Whether boxes have scores, by which some may be left out."""
    _load_processor = None  # of models that write layouts

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        processor = self.feature_extractor
        moved = {"center": processor.center, "scale": processor.scale, "axes": processor.axes}
        if wrong := {name: value for name, value in moved.items() if value not in (False, None, "xyz")}:
            shown = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
            raise ValueError(
                f"the processor has {shown}; expected center=False, scale=None and axes='xyz', as boxes are in the "
                "frame and units of the file"
            )

    @property
    def labels(self) -> list[str]:
        """Names of the objects that the model knows."""
        config = self.model.config
        return [config.id2label[number] for number in range(config.num_labels)]

    def _sanitize_parameters(
        self, up_axis: str | None = None, estimate_normals: bool | None = None, **kwargs: Any
    ) -> tuple[dict, dict, dict]:
        rule = {name: kwargs.pop(name) for name in _RULES if name in kwargs}
        refuse_unknown(kwargs, ", ".join(("up_axis", "estimate_normals", *_RULES)))
        if up_axis is not None:
            one_of("up_axis", up_axis, UP_AXES)
        DetectionRule(**rule)  # wrong settings are errors before anything is computed
        # One by one, so that a call keeps what it does not change of the pipeline's own.
        return without_none(up_axis=up_axis, estimate_normals=estimate_normals), {}, rule

    def preprocess(
        self, cloud: Any, up_axis: str | None = None, estimate_normals: bool | None = None
    ) -> Iterator[dict[str, Any]]:
        """Prepare a cloud, or the blocks of it: `points (1, points, channels)`."""
        processor = self.feature_extractor
        data = processor.read_whole(cloud, up_axis, estimate_normals)
        if data.is_mesh:
            data = data.sample_surface(MESH_DENSITY * processor.num_points, processor.seed or 0)
        scan = Scan(data, stem_of(cloud), up_axis or processor.up_axis)
        parts = [data]
        if processor.block_size is not None:
            blocks = blocks_of(data, min(processor.num_points, len(data)), processor, scan.up_axis)
            # A block repeats points to have its number, which would count them twice.
            parts = [part_of(data, np.unique(index)) for index in blocks]
        for number, part in enumerate(parts):
            inputs = dict(processor(part, up_axis=up_axis, return_tensors="pt"))
            is_last = number == len(parts) - 1
            # The last block carries the scan, by which the answer is made.
            yield {**inputs, "scan": scan if is_last else None, "is_last": is_last}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        block = {name: model_inputs.pop(name) for name in ("scan", "is_last")}
        output = self.model(**model_inputs)
        points = model_inputs["points"][..., :3]
        if "points_mask" in model_inputs:  # away from every box
            points = points.masked_fill(~model_inputs["points_mask"].bool().unsqueeze(2), torch.inf)
        return {"logits": output.logits.float(), "boxes": output.pred_boxes.float(), "points": points, **block}

    def postprocess(self, outputs: list[dict[str, Any]], **arguments: Any) -> list[dict[str, Any]]:
        """Choose among the boxes of all blocks of a cloud; `arguments` are those of `DetectionRule`."""
        # Each box then stands for every class, mostly with a low score, by which it is ranked and not left out.
        if arguments.get("scores") == "per_class":
            arguments = {"threshold": 0.0} | arguments
        rule = DetectionRule(**arguments)
        scan: Scan = outputs[-1]["scan"]
        for output in outputs:
            refuse_non_finite(output["logits"], scan.stem)
            refuse_non_finite(output["boxes"], scan.stem)
        probabilities, boxes, points = (
            torch.cat([output[name][0] for output in outputs]) for name in ("logits", "boxes", "points")
        )
        probabilities = probabilities.softmax(dim=-1)  # (boxes, labels + 1)
        # The last column is the probability of no object.
        chosen = select_detections(boxes, probabilities[:, :-1], 1 - probabilities[:, -1], rule, points)
        order = chosen[2].argsort(descending=True, stable=True)
        number, labels, scores = (values[order] for values in chosen)
        # From the frame of the model back to that of the file.
        boxes = boxes[number].double()  # (boxes, 7)
        # Maps have coordinates that float32 is too coarse for.
        shift = 0.0 if scan.data.offset is None else np.asarray(scan.data.offset)
        centers, corners = (
            turn_up_axis(places.numpy(), self.up_axis, scan.up_axis) + shift
            # (8 * boxes, 3) corners, turned as the centers are
            for places in (boxes[:, :3], box_corners(boxes).reshape(-1, 3))
        )
        corners = corners.reshape(-1, 8, 3)
        names = self.model.config.id2label
        return [
            {
                "label": names[label],
                "score": score,
                "box": {"center": center, "size": box[3:6], "heading": box[6], "corners": vertices},
            }
            for label, score, box, center, vertices in zip(
                labels.tolist(), scores.tolist(), boxes.tolist(), centers.tolist(), corners.tolist(), strict=True
            )
        ]
