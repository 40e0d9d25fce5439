"""Steps of the inventory: ground, heights and classes of a scan, and each tree and building of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_any3d.data.classes.class_codes import class_codes
from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud
from hf_any3d.data.files.source import nothing_is_lost
from hf_any3d.data.frames.units import LENGTHS, with_unit
from hf_any3d.data.inputs import ATTRIBUTES, to_cloud
from hf_any3d.data.options import one_of
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.layers.unknown_score import is_none_of_these
from hf_any3d.tasks.steps import refuse_unknown, return_free_memory, stem_of, without_none
from hf_any3d.utils.messages import printable
from hf_any3d_survey.inventory.doubt import find_doubts, measure_tile, words_of
from hf_any3d_survey.inventory.left_out import split_left_out
from hf_any3d_survey.inventory.place import (
    BUILDING,
    GROUND,
    LEAST_GROUND,
    LOW,
    NOISE,
    VEGETATION,
    Place,
    by_height,
    check_place,
    scores_of,
)
from hf_any3d_survey.inventory.seen import Labeled, Near, Seen
from hf_any3d_survey.inventory.terrain import Terrain
from hf_any3d_survey.local_features.map_index import PlacedPoints, blocks, bounds_of_all
from hf_any3d_survey.local_features.sparse_boxes import SparseVoxels
from hf_any3d_survey.processor import RETURNS, DescribedScan
from hf_any3d_survey.segmentation.steps import LocalFeaturesSteps

NAMES = {2: "ground", 3: "low vegetation", 4: "medium vegetation", 5: "high vegetation", 6: "building", 7: "noise"}
# Edge of the widest voxels over which things agree, the weight of that, and the height from which on a point stands on
# the ground, in meters. Chosen with one place left out: five places have 0.862 on the mean, 0.843 without.
_VOXEL, _WEIGHT, _STANDING = 6.0, 0.8, 0.5
_LEAST_SHARE = 1e-4
# By which logarithms of probabilities fall: of ground that is far above it, and of things that are as low as it.
_FAR, _NEAR, _SURELY = 3.0, 1.0, 20.0
# By which those of buildings rise: up to four times as many points of walls and rims of roofs are taken for vegetation
# as points of vegetation for buildings.
_BUILT = 0.4
_STEEP = 0.4  # rise over run


class InventorySteps(LocalFeaturesSteps):
    """Steps of `PointCloudInventoryPipeline`, also of a model that is opened without transformers."""

    codes: np.ndarray
    """Code of ASPRS of each class of the model, (classes,)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = self.model.config
        if config.model_type != "local_features" or self.feature_extractor.unit != "meters":
            raise ValueError(
                f"{self.model.name_or_path or type(self.model).__name__} is not a model of tiles; use one that "
                "`hf-any3d train` made from labeled tiles"
            )
        codes = class_codes(self.label_names(), config, None, are_asprs=True)
        self.codes = np.array(codes, np.uint8)
        if not {*VEGETATION, BUILDING} & {*self.codes.tolist()}:
            raise ValueError(
                f"{self.model.name_or_path}: knows {', '.join(self.label_names())}; use a model with a class "
                "vegetation or building"
            )

    def _sanitize_parameters(
        self,
        smoothing: float | None = None,
        evenness: float | None = None,
        min_height: float | None = None,
        min_area: float | None = None,
        unit: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        check_numbers(0, smoothing=smoothing, evenness=evenness, min_height=min_height, min_area=min_area)
        if unit is not None:
            one_of("unit", unit, tuple(LENGTHS))
        refuse_unknown(kwargs, "unit, smoothing, evenness, min_height, min_area")
        asked = without_none(smoothing=smoothing, evenness=evenness, min_height=min_height, min_area=min_area)
        return {}, {"unit": unit, "asked": asked}, {}

    def run_single(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any]:
        """Find the trees and buildings of one cloud."""
        stem = stem_of(inputs)
        whole = self.open(inputs, forward_params["unit"])
        cloud, left_out = split_left_out(whole, self.feature_extractor.split_far, stem)
        if cloud is None:
            raise PointCloudError("all points are noise or withheld; an inventory needs others")
        place = Place(**forward_params["asked"])
        seen = self.look(cloud, stem)
        place.add(0, seen)
        things = place.things()
        answer = place.answer_of(0)
        if left_out is not None:
            answer = answer.with_left_out(left_out, left_out.heights_above(seen.terrain, seen.factor))
        found = {
            "points": whole.points if whole.offset is None else whole.points + whole.offset,
            "classes": answer.classes,
            "class_scores": answer.scores,
            "heights": answer.heights,
            "numbers": answer.numbers,
            "scores": scores_of(things)[answer.numbers],
            "things": things,
        }
        if left_out is not None and left_out.far is not None:
            found["far"] = left_out.spread(np.zeros(len(cloud), bool), False, True)
        return found

    def open(self, cloud: Any, unit: str | None = None, columns: Sequence[str] = ()) -> PointCloudData:
        """Read a cloud with what the model reads of it, and further columns by their names."""
        columns = (*self.feature_extractor.columns, *columns)
        # A scan may fill the memory, so that what the model does not read is left behind, and returns are bytes.
        needed = [ATTRIBUTES[name] for name in self.feature_extractor.features if name != "xyz"]
        # A copy has all that a cloud cannot hold.
        with nothing_is_lost():
            if isinstance(cloud, (str, os.PathLike)):
                data = read_point_cloud(cloud, columns=columns, fields=["labels", "faces", *needed])
            else:
                data = to_cloud(cloud, self.feature_extractor.features, columns)
        if data.is_mesh:
            raise PointCloudError(
                "a mesh; inventory needs an airborne point cloud (such as LAS or LAZ). To classify an object, use "
                "hf-any3d predict"
            )
        data = with_unit(data, unit)
        for name in {*ATTRIBUTES.values()} - {*needed}:
            setattr(data, name, None)
        for name in RETURNS:
            values = getattr(data, name)
            if values is not None and values.min() >= 0 and values.max() < 256:
                as_bytes = values.astype(np.uint8)
                if np.array_equal(as_bytes, values):
                    setattr(data, name, as_bytes)
        return data

    def look(self, cloud: PointCloudData, stem: str | None = None, kept: np.ndarray | None = None) -> Seen:
        """Label a scan and measure heights above its ground, as `label` and `see` do, which say what is raised."""
        labeled = self.label(cloud, len(cloud), kept)
        return self.see(labeled, cloud.points, cloud.number_of_returns, stem=stem)

    def label(self, cloud: PointCloudData, count: int, kept: np.ndarray | None = None) -> Labeled:
        """Label the points of a scan by what is around them.

        Args:
            cloud: The scan.
            count: Number of the first points that are its own; others lie around them, and get no labels.
            kept: (count,) codes of classes that the points keep, 0 for none; those of class 2 are ground.

        Raises:
            PointCloudError: Hardly any point is ground, coordinates are degrees, or something that the model reads is
                missing.
        """
        scan, answers = self._labels_of(cloud, count, None)
        assert scan.ground is not None
        unlike = self._unlike_share(answers)
        classes = self.codes[answers.labels]
        classes[scan.is_noise[:count]] = NOISE
        bounds = bounds_of_all(PlacedPoints(cloud.points[:count], scan.factor, scan.origin))
        check_place(bounds, classes)
        is_ground = classes == GROUND
        if kept is not None:
            is_kept_ground = np.where(kept > 0, kept == GROUND, is_ground)
            # A file may have classes of its own, and no ground among them.
            is_ground = is_kept_ground if is_kept_ground.mean() > LEAST_GROUND else is_ground
        return_free_memory()
        return Labeled(
            classes,
            answers.scores,
            is_ground,
            bounds,
            scan.ground,
            scan.spacing,
            scan.factor,
            scan.origin,
            scan.conditions,
            unlike,
        )

    def see(
        self,
        labeled: Labeled,
        given: np.ndarray,
        returns: np.ndarray | None,
        near: Near | None = None,
        stem: str | None = None,
    ) -> Seen:
        """Measure heights of a tile above the ground, with what lies near it.

        Args:
            labeled: The tile's own points, as they are labeled.
            given: (points, 3) coordinates, those of its own points first, then those of `near`.
            returns: (points,) how many returns the pulse of each had; None where the file does not say it.
            near: What lies near; None for nothing.
            stem: Name of the tile in warnings.
        """
        count = len(labeled.classes)
        points = PlacedPoints(given, labeled.factor, labeled.origin)
        classes, scores = labeled.classes.copy(), labeled.scores
        is_ground = labeled.is_ground
        if near is not None:
            classes = np.concatenate([classes, near.classes])
            scores = np.concatenate([scores, near.scores])
            is_ground = np.append(is_ground, np.zeros(len(near.classes), bool))
        terrain = Terrain.of(points, is_ground, labeled.spacing, None if near is None else near.ground)
        heights = np.empty(len(points), np.float32)
        for rows in blocks(len(points)):
            part = points[rows]
            heights[rows] = terrain.heights_above(part)
            tolerance = terrain.tolerance_at(part)
            own = classes[rows]
            own[(own == GROUND) & (heights[rows] < -tolerance)] = NOISE
            own[(own == GROUND) & (heights[rows] > tolerance)] = LOW
            classes[rows] = by_height(own, heights[rows])
        return_free_memory()
        seen = Seen(
            points,
            classes,
            scores,
            heights,
            count,
            labeled.bounds,
            labeled.ground,
            terrain,
            labeled.spacing,
            labeled.factor,
            returns,
        )
        measured = measure_tile(seen, labeled.conditions, labeled.unlike)
        doubts = find_doubts(measured, (self.model.config.seen or {}).get("density"))
        if doubts:
            warnings.warn(printable(words_of(doubts, stem)), stacklevel=2)
        return replace(seen, measured=measured, doubts=doubts)

    def _unlike_share(self, answers: Any) -> float:
        """Return the share of points that are unlike all learned ones; 0 of a model that does not know it."""
        if self.model.config.unknown.share is None or answers.all_unknown is None:
            return 0.0
        return float(is_none_of_these(answers.all_unknown, self.model.config).mean())

    def _smoothing_edge(self, scan: DescribedScan) -> float:
        return _VOXEL

    def _smoothing_reach(self, scan: DescribedScan) -> float:
        # Voxels alone are averaged, and none around them.
        return _VOXEL

    def _smoothed(self, scan: DescribedScan, points: np.ndarray, shares: np.ndarray, edge: float) -> np.ndarray:
        """Return probabilities that agree with what stands beside a point, and with its height above the ground.

        What stands on the ground is one thing within some meters: its points share the mean of their logarithms over
        grids of voxels of two sizes. What is far above the ground is none, whatever it looks like.
        """
        assert scan.ground is not None
        logs = np.log(shares + _LEAST_SHARE)
        heights = scan.ground.heights_above(points)[:, 1]
        standing = np.flatnonzero(heights > _STANDING)
        means = np.zeros((len(standing), shares.shape[1]), np.float32)
        for size in (edge / 2, edge) if len(standing) else ():
            for shift in (0.0, size / 2):
                voxels = SparseVoxels(points[standing] + shift, size)
                means += (voxels.sums(logs[standing]) / voxels.counts[:, None])[voxels.of_point] / 4
        logs[standing] += _WEIGHT * (means - logs[standing])
        # On steep ground, heights are those above a point beside it.
        slope = scan.ground.slope_at(points)
        is_ground = self.codes == GROUND
        logs[np.ix_(heights > np.minimum(1 + 1.25 * slope, 3), is_ground)] -= _FAR
        near = (heights < np.minimum(0.2 + 0.5 * slope, 0.6)) & (heights > -1)
        logs[np.ix_(near, ~is_ground)] -= _NEAR
        # On slopes that no learned place had, the surface alone decides what lies on it.
        lies_on_steep = (slope > _STEEP) & (np.abs(heights) < np.minimum(0.5 + 1.25 * slope, 2.5))
        logs[np.ix_(lies_on_steep, ~is_ground)] -= _SURELY
        logs[:, self.codes == BUILDING] += _BUILT
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def postprocess(self, outputs: Any, **_: Any) -> Mapping[str, Any]:
        """Return outputs as they are, as `run_single` does all."""
        return outputs
