"""Steps of models on local features: any number of points, in parts of a scan."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hf_any3d.data.checks.left_out_points import WITHHELD, Withheld, count_left_out, left_out_words, split_withheld
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.frames.far_points import FarPoints
from hf_any3d.data.frames.units import LENGTHS
from hf_any3d.data.options import one_of
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.layers.unknown_score import is_none_of_these
from hf_any3d.registry import NOISE, NONE_OF_THESE
from hf_any3d.tasks.segmentation.steps import SegmentationSteps, _Merge
from hf_any3d.tasks.steps import refuse_non_finite, return_free_memory, without_none
from hf_any3d.utils.messages import counted, percent, printable, spaced_percents
from hf_any3d.utils.progress import progress_bar
from hf_any3d_survey.local_features.network import LEAST_ADAPTED, PointLabels
from hf_any3d_survey.local_features.sparse_boxes import SparseVoxels
from hf_any3d_survey.processor import DescribedScan, LocalFeaturesProcessor, with_marks
from hf_any3d_survey.worker_threads import in_threads

PART_POINTS = 250_000
"""Points of a part of a scan, without those around it."""
ADAPTED_POINTS = 12_000
"""Points of a scan from which a model learns once more, as many as of a tile at training."""
# Points whose features are computed at a time, few enough that they stay in the cache of a processor.
_PIECE = 1 << 13
# Condition of a scan -> words about its value and what was learned, and the span of usual ones around that
_CONDITIONS = {
    "density": "{:.2g} points per square meter (trained on {:.2g} to {:.2g})",
    "slope": "slopes of {:.0f}° (trained on {:.0f} to {:.0f})",
    "noise": "{:.2%} of its points are noise below the ground or in the air (trained on {:.2%} to {:.2%})",
    "width": "a strip of {:.2g} m (trained on {:.2g} to {:.2g} m wide)",
    "rise": "nothing rises more than {:.2g} m, as on water (trained on {:.2g} to {:.2g} m)",
    "zero": "{:.0%} of its ground is at 0, as if z were height above ground instead of elevation (trained on "
    "{:.0%} to {:.0%})",
}
_BEYOND: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "density": lambda low, high: (low / 2, 4 * high),
    "slope": lambda low, high: (0, high + 5),
    "noise": lambda low, high: (0, max(2 * high, 0.01)),
    "width": lambda low, high: (min(low / 2, 20), np.inf),
    "rise": lambda low, high: (min(low, 0.5), np.inf),
    "zero": lambda low, high: (0, max(high, 0.98)),
}
# Share of ground below which a tile of a model that knows ground has none to measure heights from
_LEAST_GROUND = 0.005
# Times the share of points that was unlike the others on places held out
_MANY_UNKNOWN = 4


@dataclass(frozen=True)
class LabeledScan:
    """Answers about a scan, and what the network computes of some of its points.

    Attributes:
        labels: (points,) number of the label of each point.
        scores: (points,) probability of that label.
        margins: (points,) how far that probability is above the next one; small where the model is not sure.
        drawn: (drawn,) numbers of some points.
        features: (drawn, hidden) output of the last hidden layer for them.
        places: (points, 3) float64 places in meters, z up; of objects in sixteenths of their diagonal.
        heights: (points,) heights above the ground, in the same unit; of objects above their lowest point.
        is_noise: (points,) which points are noise, below the ground or in the air.
        in_meters: True for places, which are in meters, False for objects.
    """

    labels: np.ndarray
    scores: np.ndarray
    margins: np.ndarray
    drawn: np.ndarray
    features: np.ndarray
    places: np.ndarray
    heights: np.ndarray
    is_noise: np.ndarray
    in_meters: bool

    def with_far(self, far: FarPoints) -> LabeledScan:
        """Return the answers with the points that are far from all others: noise, at the place of the first one."""
        return replace(
            self,
            labels=far.spread(self.labels, 0),
            scores=far.spread(self.scores, 0.0),
            margins=far.spread(self.margins, 0.0),
            drawn=far.rows[self.drawn],
            # Where they are, a page would show nothing else.
            places=far.spread(self.places, self.places[0]),
            heights=far.spread(self.heights, 0.0),
            is_noise=far.spread(self.is_noise, True),
        )


class LocalFeaturesSteps(SegmentationSteps):
    """Steps of `LocalFeaturesSegmentationPipeline`, also of a model that is opened without transformers."""

    feature_extractor: LocalFeaturesProcessor
    part_points = PART_POINTS

    @property
    def gives_unknown(self) -> bool:
        """True if answers have `unknown (points,)`."""
        return self.model.config.unknown.rows > 0

    def _sanitize_parameters(
        self,
        none_of_these: bool | None = None,
        noise: bool | None = None,
        adapt: bool | None = None,
        unit: str | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        before, during, after = super()._sanitize_parameters(**kwargs)
        if unit is not None:
            during["unit"] = one_of("unit", unit, LENGTHS)
            if self.feature_extractor.unit != "meters":
                raise ValueError(f"unit={unit!r}: this model scales objects to their size; leave unit out")
        if none_of_these and self.model.config.unknown.share is None:
            raise ValueError(
                "none_of_these=True: the model has no threshold, as too few sites were held out; train it on "
                "more sites"
            )
        if noise and self.feature_extractor.unit != "meters":
            raise ValueError("noise=True: the model labels objects, which have no ground; use a model of tiles")
        rows = self.model.config.learned_rows
        if adapt and rows < LEAST_ADAPTED:
            raise ValueError(
                f"adapt=True: the model stores only {counted(rows, 'training point')}; train it again to store at "
                f"least {LEAST_ADAPTED}"
            )
        during |= without_none(none_of_these=none_of_these, noise=noise, adapt=adapt)
        return before, during, after

    def label_with_features(self, cloud: PointCloudData, drawn: np.ndarray) -> LabeledScan:
        """Label a cloud, and return the last hidden layer's features of the points `drawn` (drawn,)."""
        self.feature_extractor.check_measured(cloud)
        scan = self.feature_extractor.describe(cloud)
        answers = _AnswersWithFeatures(len(cloud), drawn, self.model)
        for _ in self._label_parts(scan, answers, self.model):
            pass
        places = scan.cloud.points.astype(np.float64) * scan.factor + scan.origin
        if scan.ground is None:
            heights = places[:, 2] - places[:, 2].min()
        else:
            heights = scan.ground.heights_above(places)[:, 1]
        return LabeledScan(
            *answers.labels_and_scores(),
            answers.margins,
            drawn,
            answers.features,
            places,
            heights,
            scan.is_noise,
            scan.ground is not None,
        )

    def all_names(self, *, none_of_these: bool = False, noise: bool = False) -> tuple[str, ...]:
        """Return the names of the labels by their numbers in an answer with these arguments."""
        names = self.label_names()
        if none_of_these:
            names = (*names, NONE_OF_THESE)
        # A model may have learned what noise is.
        if noise and NOISE not in names:
            names = (*names, NOISE)
        return names

    def run_single(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any]:
        """Label one cloud."""
        none_of_these, noise, adapt = (forward_params.get(name, False) for name in ("none_of_these", "noise", "adapt"))
        names = self.all_names(none_of_these=none_of_these, noise=noise)
        if "copy" in preprocess_params:
            # What the copy can hold is checked before the model runs, with all labels.
            preprocess_params = {**preprocess_params, "copy": replace(preprocess_params["copy"], names=names)}
        scene = self._cut(inputs, **preprocess_params, unit=forward_params.get("unit"))
        cloud = _at_its_place(scene.part, scene.data)
        marks = 0
        if scene.mesh is not None:
            # Faces and vertices of a mesh stand behind its samples, and get labels where they are.
            cloud, marks = with_marks(cloud, scene.mesh)
        scan, answers = self._labels_of(cloud, len(scene.part), scene.up_axis, marks, adapt=adapt)
        self._tell_of_unlike(scan, answers, scene.stem)
        if none_of_these and answers.all_unknown is not None:
            # How unlike the point is counts as its score.
            unlike = is_none_of_these(answers.all_unknown, self.model.config)
            answers.labels[unlike], answers.scores[unlike] = names.index(NONE_OF_THESE), answers.all_unknown[unlike]
        if noise:
            answers.labels[scan.is_noise], answers.scores[scan.is_noise] = names.index(NOISE), 1.0
        elif scan.is_noise.any():
            answers.noise = scan.is_noise[: len(scene.part)]
        return self._answer(scene, answers, **postprocess_params, names=names)

    def _labels_of(
        self, cloud: PointCloudData, count: int, up_axis: str | None, marks: int = 0, *, adapt: bool = False
    ) -> tuple[DescribedScan, _Answers]:
        """Describe a scan, and label its points.

        Args:
            cloud: The scan.
            count: Number of the first points that are its own; others lie around them, and are not labeled.
            up_axis: As of a call of the processor.
            marks: Number of the last points that are those of a mesh, which are labeled, too.
            adapt: Whether the model learns once more, from the scan.
        """
        self.feature_extractor.check_measured(cloud)
        scan = self.feature_extractor.describe(cloud, up_axis, marks)
        answers = _Answers(count + marks, count, self.gives_unknown)
        hidden = self._bar is False or (self._bar is None and count < 2 * self.part_points)
        model = self.model
        with progress_bar(
            hidden=hidden,
            asked=bool(self._bar),
            total=(count + marks) * (1 + adapt),
            unit="point",
            delay=2,
            leave=False,
        ) as bar:
            if adapt:
                model = self._adapted(scan, bar)
            for labeled in self._label_parts(scan, answers, model):
                bar.update(labeled)
        return scan, answers

    def _label_parts(self, scan: DescribedScan, answers: _Answers, model: PointLabels) -> Iterator[int]:
        """Label a scan part by part, and yield the number of points of each."""

        def label(part: tuple[np.ndarray, np.ndarray]) -> int:
            self._label(scan, *part, answers, model)
            return_free_memory()
            return len(part[0])

        # The margin is as wide as features reach, and answers are averaged.
        count = len(answers.labels)
        parts = scan.parts(self.part_points, scan.reach + self._smoothing_reach(scan), count)
        # A single part has threads for its pieces.
        threads = 1 if count <= self.part_points else self._threads
        # Here, as threads would restore the mode of a model that is being trained while others compute.
        with evaluation_mode(self.model):
            yield from in_threads(label, parts, threads)

    @property
    def _threads(self) -> int:
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def _without_withheld(self, data: PointCloudData, stem: str | None) -> tuple[PointCloudData, Withheld | None]:
        if self.feature_extractor.unit != "meters":
            return data, None
        text = left_out_words(count_left_out(data, (WITHHELD,)), len(data), stem)
        if text:
            warnings.warn(printable(text), stacklevel=2)
        return split_withheld(data)

    def _without_far(self, data: PointCloudData, stem: str | None) -> tuple[PointCloudData, FarPoints | None]:
        return self.feature_extractor.split_far(data, stem)

    def _blocks_of(self, part: PointCloudData, up_axis: str | None) -> np.ndarray:
        """Return no blocks: `run_single` labels parts of its own."""
        return np.zeros((0, 0), np.int64)

    def _answer(self, scene: Any, merged: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        answer = super()._answer(scene, merged, *args, **kwargs)
        if scene.mesh is not None:
            # First the faces, then the vertices, as `with_marks` adds them.
            count = len(scene.mesh.faces)
            marked = merged.of_marks()
            of_mesh = {name: values[count:] for name, values in marked.items()}
            of_mesh |= {"face_labels": marked["labels"][:count]}
            answer |= {"face_labels": of_mesh["face_labels"], "vertex_labels": of_mesh["labels"]}
        return answer

    def _tell_of_unlike(self, scan: DescribedScan, answers: _Answers, stem: str | None) -> None:
        """Warn if a scan is beyond what the model has learned, as its estimate is of places like those."""
        config = self.model.config
        found = []
        # Looked at once, as each look goes through many points.
        conditions = scan.conditions if config.seen else {}
        for name, (low, high) in (config.seen or {}).items():
            value = conditions[name]
            least, most = _BEYOND[name](low, high)
            if not least <= value <= most:
                found.append(spaced_percents(_CONDITIONS[name].format(value, low, high)))
        name_of_ground = next((name for name in self.label_names() if name.casefold() == "ground"), None)
        if scan.ground is not None and name_of_ground is not None:
            share = float((answers.labels == self.label_names().index(name_of_ground)).mean())
            if share < _LEAST_GROUND:
                found.append(f"{percent(share, 1)} % of its points are ground, so heights above ground are unreliable")
        if config.unknown.share is not None and answers.all_unknown is not None:
            share = float(is_none_of_these(answers.all_unknown, config).mean())
            if share > _MANY_UNKNOWN * config.unknown.share:
                usual = f"{percent(config.unknown.share)} % are usual"
                found.append(f"{percent(share)} % of its points are unlike the training data ({usual})")
        if found:
            name = "" if stem is None else f"{stem}: "
            what = "unlike the sites in the training data, so expect lower accuracy than estimated"
            warnings.warn(printable(f"{name}{what}: {'; '.join(found)}"), stacklevel=2)

    def _smoothing_edge(self, scan: DescribedScan) -> float:
        """Return the edge of the voxels over which answers are averaged; 0 where a scan is too sparse for that."""
        config = self.model.config
        return config.smoothing_edge if scan.spacing <= config.smoothed_below else 0.0

    def _smoothing_reach(self, scan: DescribedScan) -> float:
        """Return how far from a point the answers are that are averaged into its own: its voxel and those around."""
        return 2 * self._smoothing_edge(scan)

    def _adapted(self, scan: DescribedScan, bar: Any) -> PointLabels:
        """Return the model as it is after it has learned once more, from points drawn in all parts of a scan."""
        from hf_any3d_survey.local_features.fitting import adapted  # of models of transformers, which take seconds

        generator = np.random.default_rng(0)
        share = min(1.0, ADAPTED_POINTS / len(scan.cloud))
        drawn: list[np.ndarray] = []
        for inside, near in scan.parts(self.part_points, scan.reach):
            some = np.flatnonzero(np.isin(near, inside, assume_unique=True))
            some = some[generator.random(len(some)) < share]
            drawn.append(scan.neighborhoods(near, some).features(some))
            return_free_memory()
            bar.update(len(inside))
        return adapted(self.model, np.concatenate(drawn), self.feature_extractor.may_miss)

    def _label(
        self,
        scan: DescribedScan,
        inside: np.ndarray,
        near: np.ndarray,
        answers: _Answers,
        model: PointLabels,
    ) -> None:
        """Label the points `inside` a part of a scan, by those `near` it."""
        edge = self._smoothing_edge(scan)
        # Answers around the part are averaged into those inside.
        rows = np.arange(len(near))
        if len(near) > len(inside):
            rows = np.flatnonzero(scan.are_within(near, inside, self._smoothing_reach(scan)))
        surroundings = scan.neighborhoods(near, rows)
        # Of points in the margins of several parts, each has the answer of the part that it is inside of.
        is_inside = np.isin(near[rows], inside, assume_unique=True)
        shares = np.empty((len(rows), len(self.label_names())), np.float32)
        unknown = np.empty(len(rows), np.float32) if self.gives_unknown else None

        def label(piece: slice) -> None:
            features = torch.from_numpy(surroundings.features(rows[piece]))
            shares[piece], scores = self._answers_of(features, model)
            if unknown is not None and scores is not None:
                unknown[piece] = scores
            answers.set_features(near[rows[piece]], features, is_inside[piece])

        pieces = (slice(start, start + _PIECE) for start in range(0, len(rows), _PIECE))
        for _ in in_threads(label, pieces, self._threads):
            pass
        if edge:
            shares = self._smoothed(scan, surroundings.points[rows], shares, edge)
        answers.set_shares(inside, shares[is_inside])
        if unknown is not None:
            answers.set_unknown(inside, unknown[is_inside])

    def _answers_of(self, features: torch.Tensor, model: PointLabels) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the probabilities (points, labels) and unknown scores (points,) of features (points, features)."""
        # No layer reads the places.
        points = torch.nn.functional.pad(features, (3, 0))[None].to(self.model.device)
        with torch.inference_mode():
            output = super().forward({"points": points})
            logits = output["logits"][0]
            if model is not self.model:
                # How unlike all learned points they are is of the model that was trained.
                other: Any = model(points)
                logits = other.logits[0].float()
        refuse_non_finite(logits, None)
        unknown = None if output["unknown"] is None else output["unknown"][0].numpy()
        return logits.softmax(dim=1).numpy(), unknown

    def _smoothed(self, scan: DescribedScan, points: np.ndarray, shares: np.ndarray, edge: float) -> np.ndarray:
        """Return the means of shares (points, labels) over voxels with this edge and those around them."""
        del scan
        voxels = SparseVoxels(points, edge)
        summed = voxels.box_sums(np.column_stack([voxels.sums(shares), voxels.counts]))
        return (summed[:, :-1] / summed[:, -1:])[voxels.of_point]

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        output = self.model(**model_inputs)
        return {"logits": output.logits.float(), "unknown": output.unknown}


def _at_its_place(part: PointCloudData, data: PointCloudData) -> PointCloudData:
    """Return a part of a cloud with the unit and the place on the map of the whole."""
    names = ("meters_per_unit", "meters_per_height", "in_degrees", "ground_scale", "no_map", "offset")
    return replace(part, **{name: getattr(data, name) for name in names})


class _Answers(_Merge):
    """Labels, scores and unknown scores of the first `count` points of a scan."""

    def __init__(self, num_points: int, count: int, gives_unknown: bool):
        super().__init__(0, 0)  # there are no blocks whose logits are summed
        self.count = count
        # Half a word is enough for the classes of a model; those who ask get int64.
        self.labels = np.zeros(num_points, np.int16)
        self.scores = np.zeros(num_points, np.float32)
        self.all_unknown: np.ndarray | None = None
        if gives_unknown:
            self.all_unknown = np.zeros(num_points, np.float32)
            # A view: points of the answer stand before the marks.
            self.unknown = self.all_unknown[:count]

    def set_unknown(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Set the unknown scores of points (rows,)."""
        assert self.all_unknown is not None
        self.all_unknown[rows] = scores

    def set_shares(self, rows: np.ndarray, shares: np.ndarray) -> None:
        """Set labels and scores of points (rows,) by the probabilities of all labels (rows, labels)."""
        labels = shares.argmax(axis=1)
        self.labels[rows] = labels
        self.scores[rows] = np.take_along_axis(shares, labels[:, None], axis=1)[:, 0]

    def set_features(self, rows: np.ndarray, features: torch.Tensor, is_inside: np.ndarray) -> None:
        """Take the features (rows, features) of points, of those inside the part; answers alone need none."""

    def labels_and_scores(self) -> tuple[np.ndarray, np.ndarray]:
        return self.labels[: self.count].astype(np.int64), self.scores[: self.count]

    def of_marks(self) -> dict[str, np.ndarray]:
        """Return what was found of the points behind those of the answer."""
        found = {"labels": self.labels.astype(np.int64), "scores": self.scores}
        if self.all_unknown is not None:
            found["unknown"] = self.all_unknown
        return {name: values[self.count :] for name, values in found.items()}


class _AnswersWithFeatures(_Answers):
    """Answers with margins, and with outputs of the hidden layer of the points `drawn`."""

    def __init__(self, num_points: int, drawn: np.ndarray, model: PointLabels):
        super().__init__(num_points, num_points, model.config.unknown.rows > 0)
        self.model = model
        self.margins = np.zeros(num_points, np.float32)
        self.features = np.zeros((len(drawn), model.config.hidden_size), np.float32)
        # Place of each point among those drawn, -1 for all others
        self.place = np.full(num_points, -1)
        self.place[drawn] = np.arange(len(drawn))

    def set_shares(self, rows: np.ndarray, shares: np.ndarray) -> None:
        super().set_shares(rows, shares)
        highest = np.sort(shares, axis=1)[:, -2:]
        self.margins[rows] = highest[:, -1] - highest[:, 0]

    def set_features(self, rows: np.ndarray, features: torch.Tensor, is_inside: np.ndarray) -> None:
        place = self.place[rows]
        is_drawn = (place >= 0) & is_inside
        core = self.model.local_features
        with torch.inference_mode():
            standard = core.standardize(features[torch.from_numpy(is_drawn)].to(self.model.device))
            hidden = core.hidden_layers(standard.to(core.dtype))[-1]
        self.features[place[is_drawn]] = hidden.float().cpu().numpy()
