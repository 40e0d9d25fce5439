"""Steps of the segmentation of clouds of any size: cut into blocks, labeled, merged, written."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_any3d.data.blocks import bounds_of, split_into_blocks
from hf_any3d.data.checks.left_out_points import Withheld
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.data.files.source import nothing_is_lost
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.frames.far_points import FarPoints
from hf_any3d.data.frames.units import with_unit
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.options import at_least, one_of
from hf_any3d.modeling.layers.tasks import part_mask
from hf_any3d.processing.point_clouds import UP_AXES, PointCloudProcessor
from hf_any3d.processing.voxels import SURFACE_POINTS, nearest_rows
from hf_any3d.registry import NOISE
from hf_any3d.tasks.segmentation.labeled_copies import LabeledCopies, file_of, labels_of_mesh
from hf_any3d.tasks.steps import (
    PROGRESS_FROM,
    PointCloudSteps,
    check_formats,
    join_clouds,
    refuse_non_finite,
    refuse_unknown,
    return_free_memory,
    stem_of,
    without_none,
)
from hf_any3d.utils.atomic_files import write_text
from hf_any3d.utils.progress import progress_bar
from hf_any3d.visualization.viewer import CloudView, colors_of, viewer_page

# Points sampled on a mesh, in multiples of the points that the model processes at a time.
MESH_DENSITY = 4
FORMATS = ("ply", "html")
KNOWN_FORMATS = (*FORMATS, "obj")
SHARED = ("up_axis", "estimate_normals", "max_points", "output_dir", "formats")
SHARED += ("write", "field", "classes", "write_scores", "write_unknown")
"""Arguments of a call that pipelines of all segmentation models have."""


# Points whose labels are computed at a time.
_PIECE = 1_000_000
# Name of the clouds among the inputs of a vote, which are not prepared yet.
_PART = "part"
# Logarithm in place of that of a zero probability, which a mean over blocks could not have.
_LEAST = -1e4
# Points after which freed memory is given back: blocks differ in their voxels, so that what is left of one in pieces
# fits no tensor of the next. For small blocks it would only take time.
_POINTS_BETWEEN_RETURNS = 100_000


@dataclass
class _Scene:
    """A cloud, the part of it that the model labels, and the blocks of that part, (blocks, num_points) indices.

    `up_axis` is the one that was given for the cloud; blocks are turned for the model, the answer is not. `bounds`
    (2, 3) are the lowest and highest coordinates of the cloud. `mesh` is the mesh on which the cloud was sampled, and
    `copy` how labels are written into a copy of the `file`. Where points were left out of the `data` as they are `far`
    from all others, `whole` is the cloud with them. `withheld` are points that are in neither of them.
    """

    data: PointCloudData
    part: PointCloudData
    category: int | None
    stem: str | None
    blocks: np.ndarray
    up_axis: str | None
    bounds: np.ndarray
    votes: bool = False
    mesh: PointCloudData | None = None
    file: str | None = None
    copy: LabeledCopies | None = None
    far: FarPoints | None = None
    whole: PointCloudData | None = None
    withheld: Withheld | None = None


class _Merge:
    """The sum of the logits of each point over the blocks that it is in."""

    def __init__(self, num_points: int, in_memory: int):
        self.in_memory = in_memory
        self.count = np.zeros(num_points, dtype=np.int32)
        self.sums: np.ndarray | None = None  # (points, labels)
        self.unknown: np.ndarray | None = None  # (points,) of models that say how unlike their training a point is
        self.noise: np.ndarray | None = None  # (points,) of scans with points far below the ground

    def add(self, index: np.ndarray, logits: np.ndarray) -> None:
        """Add logits (blocks, block_points, labels) of the points `index` (blocks, block_points)."""
        if self.sums is None:
            shape = (len(self.count), logits.shape[-1])
            # The system removes the file when the array is freed.
            with nullcontext() if 8 * shape[0] * shape[1] <= self.in_memory else tempfile.TemporaryFile() as file:
                self.sums = np.zeros(shape) if file is None else np.memmap(file, np.float64, "w+", shape=shape)
        for places, values in zip(index, logits, strict=True):
            # A block that repeats points needs np.add.at, which counts each of them but is much slower.
            if len(np.unique(places)) == len(places):
                self.sums[places] += values
                self.count[places] += 1
            else:
                np.add.at(self.sums, places, values)
                np.add.at(self.count, places, 1)

    def labels_and_scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the label of each point, (points,) int64, and its probability, (points,) float32."""
        # Blocks cover all points, so that no count is 0.
        assert self.sums is not None and self.count.all()
        labels = np.empty(len(self.count), np.int64)
        scores = np.empty(len(self.count), np.float32)
        for start in range(0, len(labels), _PIECE):
            rows = slice(start, start + _PIECE)
            mean = torch.from_numpy(self.sums[rows] / self.count[rows, None])
            best, number = mean.softmax(dim=-1).max(dim=-1)
            labels[rows], scores[rows] = number.numpy(), best.float().numpy()
        return labels, scores


class SegmentationSteps(PointCloudSteps):
    """Steps of `PointCloudSegmentationPipeline`."""

    sums_in_memory = 1 << 30
    """Bytes of summed logits in memory; more are in a temporary file."""
    gives_unknown = False
    """Whether answers have `unknown (points,)`, how unlike the training each point is."""
    _batch = 1
    _bar: bool | None = None

    def __call__(
        self, inputs: Any, *, progress: bool | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        """Run the pipeline on one cloud or many; see the class and `PointCloudPipeline`.

        The bar is of clouds, or of the blocks of one cloud once it takes two seconds, and `batch_size` of blocks.
        """
        self._batch = batch_size or self._batch_size or 1
        self._bar = progress
        return super().__call__(inputs, progress=progress, batch_size=batch_size, **kwargs)

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels by their numbers in an answer."""
        return tuple(self.model.config.id2label[number] for number in range(self.model.config.num_labels))

    def _sanitize_parameters(
        self,
        category: str | int | None = None,
        up_axis: str | None = None,
        max_points: int | None = None,
        votes: bool | None = None,
        output_dir: str | os.PathLike | None = None,
        formats: tuple[str, ...] | list[str] | str | None = None,
        write: str | os.PathLike | None = None,
        field: str | None = None,
        classes: Mapping[str, int] | str | None = None,
        write_scores: bool = False,
        write_unknown: bool = False,
        estimate_normals: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        refuse_unknown(kwargs, f"category, votes, {', '.join(SHARED)}")
        if votes and getattr(self.feature_extractor, "views", None) is None:
            raise ValueError("votes=True: the processor has no `views`, so there is no such procedure for this model")
        if up_axis is not None:
            one_of("up_axis", up_axis, UP_AXES)
        at_least(1, max_points=max_points)
        after = without_none(output_dir=output_dir, formats=check_formats(formats, KNOWN_FORMATS))
        copy = None if write is None else LabeledCopies(write, field, classes, write_scores, write_unknown)
        if copy is None and (field or classes or write_scores or write_unknown):
            raise ValueError("field, classes, write_scores and write_unknown are of a labeled copy, but write is None")
        if write_unknown and not self.gives_unknown:
            raise ValueError("write_unknown=True: this model does not say how unlike its training a point is")
        before = without_none(category=category, up_axis=up_axis, max_points=max_points, votes=votes, copy=copy)
        return before | without_none(estimate_normals=estimate_normals), {}, after

    def preprocess(
        self,
        cloud: Any,
        category: str | int | None = None,
        up_axis: str | None = None,
        max_points: int | None = None,
        votes: bool = False,
        copy: LabeledCopies | None = None,
        estimate_normals: bool | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Split one cloud into blocks: `points (1, num_points, channels)` and their indices in the cloud."""
        scene = self._cut(cloud, category, up_axis, max_points, votes, copy, estimate_normals)
        for position, index in enumerate(scene.blocks):
            is_last = position == len(scene.blocks) - 1
            # Only the last block carries the complete cloud.
            place = {"index": torch.from_numpy(index)[None], "cloud": scene if is_last else None, "is_last": is_last}
            yield {**self._block(scene, index), **place}

    def run_single(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any]:
        """Label one cloud, with the logits of one batch of blocks in memory at a time."""
        # The stock iterator keeps inputs and outputs of all blocks until the end: gigabytes for a large scene.
        scene = self._cut(inputs, **preprocess_params)
        blocks = scene.blocks
        merged = _Merge(len(scene.part), self.sums_in_memory)
        since = 0
        hidden = len(blocks) < PROGRESS_FROM if self._bar is None else not self._bar
        with progress_bar(
            hidden=hidden, asked=bool(self._bar), total=len(blocks), unit="block", delay=2, leave=False
        ) as bar:
            for start in range(0, len(blocks), self._batch):
                batch = blocks[start : start + self._batch]
                prepared = [self._block(scene, index) for index in batch]
                entries: dict[str, Any] = {
                    # -1 marks points that do not exist in the index of points to voxels.
                    name: join_clouds([block[name] for block in prepared], -1 if name == "inverse" else 0)
                    for name in prepared[0]
                    if name not in ("stem", _PART)
                }
                if scene.votes:
                    entries[_PART] = [block[_PART][0] for block in prepared]
                del prepared  # only the sums stay in memory
                place = {"index": torch.from_numpy(batch), "cloud": None, "is_last": False}
                outputs: Any = self.forward({**entries, **place}, **forward_params)
                self._add(merged, outputs, scene.stem)
                del entries, outputs
                since += batch.size
                if since >= _POINTS_BETWEEN_RETURNS:
                    return_free_memory()
                    since = 0
                bar.update(len(batch))
        return self._answer(scene, merged, **postprocess_params)

    def _cut(
        self,
        cloud: Any,
        category: str | int | None = None,
        up_axis: str | None = None,
        max_points: int | None = None,
        votes: bool = False,
        copy: LabeledCopies | None = None,
        estimate_normals: bool | None = None,
        unit: str | None = None,
    ) -> _Scene:
        processor = self.feature_extractor
        number = self._category_number(cloud, category)
        if copy is not None:
            copy.check(file_of(cloud), copy.names or self.label_names(), self.model.config)
        # A copy has all that a cloud cannot hold.
        with nullcontext() if copy is None else nothing_is_lost():
            data = processor.read_whole(cloud, up_axis, estimate_normals)
        mesh = None
        if data.is_mesh:
            mesh = data
            # Where the model takes voxels, num_points is only a limit, and not the size of a block.
            dense = MESH_DENSITY * processor.num_points
            data = data.sample_surface(
                dense if processor.returns_num_points else min(dense, SURFACE_POINTS), processor.seed or 0
            )
        stem = stem_of(cloud)
        whole, withheld = self._without_withheld(with_unit(data, unit), stem)
        data, far = (whole, None) if mesh is not None else self._without_far(whole, stem)
        part = self._drawn_part(data, max_points)
        blocks = self._blocks_of(part, up_axis)  # (blocks, num_points) indices
        bounds = bounds_of(data.points)
        file = file_of(cloud)
        return _Scene(data, part, number, stem, blocks, up_axis, bounds, votes, mesh, file, copy, far, whole, withheld)

    def _without_withheld(self, data: PointCloudData, stem: str | None) -> tuple[PointCloudData, Withheld | None]:
        """Return a cloud without withheld points, and these; models of places leave them out."""
        del stem
        return data, None

    def _without_far(self, data: PointCloudData, stem: str | None) -> tuple[PointCloudData, FarPoints | None]:
        """Return a cloud without points far from all others, and what was left out; models of places leave some."""
        del stem
        return data, None

    def _drawn_part(self, data: PointCloudData, max_points: int | None) -> PointCloudData:
        """Return the part of a cloud that the model labels."""
        processor = self.feature_extractor
        if getattr(processor, "drawn_points", None) is not None and len(data) > processor.num_points:
            # An object is scaled as a whole, so it is not cut into blocks.
            max_points = min(max_points or processor.num_points, processor.num_points)
        if max_points is None or len(data) <= max_points:
            return data
        kept = np.random.default_rng(processor.seed or 0).choice(len(data), max_points, replace=False)
        # Points keep their order, and neighbors in the file stay near in memory.
        return part_of(data, np.sort(kept))

    def _blocks_of(self, part: PointCloudData, up_axis: str | None) -> np.ndarray:
        processor = self.feature_extractor
        # Voxels need no fixed number of points, so that nothing has to be repeated.
        count = processor.num_points if processor.returns_num_points else min(processor.num_points, len(part))
        return blocks_of(part, count, processor, up_axis)

    def _block(self, scene: _Scene, index: np.ndarray) -> dict[str, Any]:
        block = part_of(scene.part, index)
        if scene.votes:
            # The whole part, of which the processor makes views and fragments later.
            return {_PART: [self.feature_extractor._turned(block, scene.up_axis)]}
        # A block alone does not know its place in the cloud.
        settings = {"up_axis": scene.up_axis, "bounds": scene.bounds}
        inputs = dict(self.feature_extractor(block, **settings, return_tensors="pt"))
        if scene.category is not None:
            inputs["category"] = torch.tensor([scene.category])
        return inputs

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        place = {name: model_inputs.pop(name) for name in ("index", "cloud", "is_last")}
        if _PART in model_inputs:
            # Batches of transformers hold one list for each block.
            parts = [part[0] if isinstance(part, list) else part for part in model_inputs[_PART]]
            voted = [vote(self.model, self.feature_extractor, part) for part in parts]
            return {"logits": torch.stack(voted), **place}
        logits = self.model(**model_inputs).logits
        if "category" in model_inputs:
            # Parts of other categories are impossible.
            parts = self.model.config.category_parts
            foreign = ~part_mask(parts, logits.shape[-1], model_inputs["category"])  # (blocks, labels)
            # Not -inf: a mean over blocks must stay finite.
            logits = logits.float().masked_fill(foreign.unsqueeze(1), -1e9)
        return {"logits": logits.float(), **place}

    def postprocess(
        self,
        outputs: list[dict[str, Any]],
        output_dir: str | os.PathLike | None = None,
        formats: list[str] | tuple[str, ...] = FORMATS,
        names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Merge the logits of all blocks of a cloud to its answer; `names` are those of labels, else the config's."""
        # The last block alone carries it.
        scene = outputs[-1]["cloud"]
        merged = _Merge(len(scene.part), self.sums_in_memory)
        for output in outputs:
            self._add(merged, output, scene.stem)
        return self._answer(scene, merged, output_dir, formats, names)

    def _add(self, merged: _Merge, outputs: dict[str, Any], stem: str | None) -> None:
        refuse_non_finite(outputs["logits"], stem)
        merged.add(outputs["index"].numpy(), outputs["logits"].numpy())

    def _answer(
        self,
        scene: _Scene,
        merged: _Merge,
        output_dir: str | os.PathLike | None = None,
        formats: list[str] | tuple[str, ...] = FORMATS,
        names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        names = self.label_names() if names is None else names
        data = scene.data
        labels, scores = merged.labels_and_scores()
        # Points that were thinned out get the answer of the nearest one that was labeled.
        if scene.part is not data:
            nearest = nearest_rows(data.points, scene.part.points)
            labels = labels[nearest]
            scores = scores[nearest]
        # Coordinates of the file; in the model they are relative to the offset, since float32 is too coarse for maps.
        points = data.points if data.offset is None else data.points + data.offset
        counts = np.bincount(labels)
        # The largest segment first.
        present = sorted(np.flatnonzero(counts), key=lambda number: -counts[number])
        masks = [(int(number), labels == number) for number in present]
        segments = [{"label": names[n], "score": float(scores[mask].mean()), "mask": mask} for n, mask in masks]
        answer = {"points": points, "labels": labels, "scores": scores, "segments": segments}
        for name, values in (("unknown", merged.unknown), ("noise", merged.noise)):
            if values is not None:
                answer[name] = values if scene.part is data else values[nearest]
        if output_dir is not None:
            self._write(scene, labels, Path(output_dir) / self.name_of(scene.stem), formats, names)
        if scene.far is not None and scene.whole is not None:
            answer = _with_far_points(answer, scene.far, scene.whole, names)
        if scene.withheld is not None:
            answer = _with_withheld(answer, scene.withheld)
        if scene.copy is not None and scene.file is not None:
            of_file = answer if scene.mesh is None else labels_of_mesh(scene.mesh, scene.data.points, answer)
            scene.copy.save(scene.file, of_file, names, self.model.config)
        return answer

    def _write(
        self, scene: _Scene, labels: np.ndarray, path: Path, formats: list[str] | tuple, names: Sequence[str]
    ) -> None:
        data = scene.data
        path.parent.mkdir(parents=True, exist_ok=True)
        palette = colors_of(self.model.config, len(names))
        colored = PointCloudData(data.points, palette[labels], labels=labels, offset=data.offset)
        for ending in ("ply", "obj"):
            if ending in formats:
                write_point_cloud(path.with_name(f"{path.name}.{ending}"), colored)
        if "html" in formats:
            page = path.with_name(f"{path.name}.html")
            up_axis = scene.up_axis or self.feature_extractor.up_axis
            view = CloudView(colored.points, labels=labels)
            settings = {"label_name": "class", "palette": palette}
            write_text(page, viewer_page([view], names=names, title=path.name, up_axis=up_axis, **settings))

    def _category_number(self, cloud: Any, category: str | int | None) -> int | None:
        config = self.model.config
        if not getattr(config, "num_categories", 0):
            if category is not None:
                raise ValueError(f"category={category!r}; expected none, as this model has no categories")
            return None
        if category is None and isinstance(cloud, Mapping):
            category = cloud.get("category", cloud.get("label"))
        names = list(config.category_names or map(str, range(config.num_categories)))
        if category is None and config.num_categories == 1:
            return 0
        if isinstance(category, str) and category in names:
            return names.index(category)
        if category is None or isinstance(category, str) or not 0 <= int(category) < config.num_categories:
            shown = "missing" if category is None else repr(category)
            raise ValueError(
                f"category is {shown} (--category); expected one of {', '.join(names)}, its number, or a row "
                "with 'category'"
            )
        return int(category)


def _with_far_points(
    answer: dict[str, Any], far: FarPoints, whole: PointCloudData, names: Sequence[str]
) -> dict[str, Any]:
    """Answer for all points of a cloud; points far from all others are noise."""
    segments = [{**part, "mask": far.spread(part["mask"], False)} for part in answer["segments"]]
    found = {"points": whole.points if whole.offset is None else whole.points + whole.offset, "far": far.is_far}
    if NOISE in names:
        found["labels"] = far.spread(answer["labels"], names.index(NOISE))
        found["scores"] = far.spread(answer["scores"], 1.0)
        if all(part["label"] != NOISE for part in segments):
            segments.append({"label": NOISE, "score": 1.0, "mask": np.zeros(len(far.is_far), bool)})
        for part in segments:
            if part["label"] == NOISE:
                part["mask"] |= far.is_far
    else:
        # Each point has the number of a label. The score says that it means nothing, and no segment has it.
        found["labels"] = far.spread(answer["labels"], 0)
        found["scores"] = far.spread(answer["scores"], 0.0)
        found["noise"] = far.spread(answer.get("noise", np.zeros(len(far.rows), bool)), True)
    if "unknown" in answer:
        found["unknown"] = far.spread(answer["unknown"], answer["unknown"].max())
    return {**answer, **found, "segments": segments}


def _with_withheld(answer: dict[str, Any], withheld: Withheld) -> dict[str, Any]:
    """Answer for all points of a cloud; withheld ones are in no segment, and keep their class in copies."""
    whole = withheld.whole
    is_left_out = withheld.is_withheld
    found = {
        "points": whole.points if whole.offset is None else whole.points + whole.offset,
        "withheld": is_left_out,
        # Each point has the number of a label. The score says that it means nothing.
        "labels": withheld.spread(answer["labels"], 0),
        "scores": withheld.spread(answer["scores"], 0.0),
        "noise": withheld.spread(answer.get("noise", np.zeros(len(answer["labels"]), bool)), True),
        "segments": [{**part, "mask": withheld.spread(part["mask"], False)} for part in answer["segments"]],
    }
    if "far" in answer:
        found["far"] = withheld.spread(answer["far"], False)
    if "unknown" in answer:
        found["unknown"] = withheld.spread(answer["unknown"], answer["unknown"].max())
    return {**answer, **found}


def vote(model: Any, processor: Any, cloud: PointCloudData) -> torch.Tensor:
    """Segment a cloud, no mesh, in all views and fragments of its processor.

    Returns:
        Logarithms of the mean probabilities of each point's classes, `(points, labels)`, on the CPU.
    """
    rows, inverse = processor.first_sample(cloud)
    votes: torch.Tensor | None = None
    for index, inputs in processor.fragments(cloud):
        moved = {name: values.to(model.device) for name, values in inputs.items()}
        probabilities = model(**moved).logits[0].float().softmax(dim=-1).cpu()
        # In double precision, as there are many fragments.
        votes = votes if votes is not None else torch.zeros(len(cloud), probabilities.shape[1], dtype=torch.double)
        votes.index_add_(0, torch.from_numpy(index), probabilities.double())
    assert votes is not None, "a cloud has at least one fragment"
    # Those of the points that were kept, and from them of all points.
    kept = votes[rows][inverse]
    return (kept / kept.sum(dim=1, keepdim=True)).log().clamp(min=_LEAST)


def blocks_of(data: PointCloudData, count: int, processor: PointCloudProcessor, up_axis: str | None) -> np.ndarray:
    """Return the blocks of a cloud as the processor's settings cut it, `(blocks, count)` indices of points."""
    # Turned first, then cut: turned the other way round, the grid of blocks would be a mirrored one.
    turned = turn_up_axis(data.points, up_axis or processor.up_axis, processor.up_axis)
    return split_into_blocks(
        turned,
        count,
        processor.block_size,
        processor.block_overlap,
        up_axis=processor.up_axis,
        generator=processor.seed or 0,
    )


def part_of(data: PointCloudData, index: np.ndarray) -> PointCloudData:
    """Return points `index` of a cloud, which may repeat, with what is measured of each."""
    names = ("points", *ATTRIBUTES.values())
    arrays = {name: getattr(data, name) for name in names}
    part = PointCloudData(**{name: values[index] for name, values in arrays.items() if values is not None})
    if data.further is not None:
        part.further = {name: values[index] for name, values in data.further.items()}
    return part
