"""`pipeline("point-cloud-segmentation")`: a label for every point."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

from hf_any3d.data.blocks import merge_blocks, split_into_blocks
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.data.inputs import to_cloud
from hf_any3d.modeling.layers.tasks import part_mask
from hf_any3d.pipelines.base import (
    PointCloudPipeline,
    check_formats,
    refuse_non_finite,
    refuse_unknown,
    stem_of,
    without_none,
)
from hf_any3d.visualization.label_colors import label_colors
from hf_any3d.visualization.web_page import write_point_cloud_page

# Points sampled on a mesh, in multiples of the points that the model processes at a time.
MESH_DENSITY = 4
FORMATS = ("ply", "html")
KNOWN_FORMATS = (*FORMATS, "obj")


class PointCloudSegmentationPipeline(PointCloudPipeline, ChunkPipeline):
    """Label every point with the object or part that it belongs to.

    Takes a path, an array or tensor `(points, channels)`, a trimesh object, a dataset row, or a list, generator or
    dataset column of them; a mesh is sampled on its surface. Clouds may have any number of points: the model
    processes them in blocks of the processor's size, and logits of overlapping blocks are averaged. Returns, for each
    cloud, a dict:

    - `points (points, 3)` of the input, and `labels (points,)`, their class numbers,
    - `scores (points,)`, the probabilities of these classes,
    - `segments`, for each class that occurs `{"label": its name, "score": mean probability, "mask": (points,) bool}`,
      the largest first.

    Arguments of a call:

    - `category`: name or number of the object's category, required by part segmentation models with more than one
      category; a dataset row may contain it as `category` or `label`. It determines the possible parts and is an input
      of the model; a wrong category gives wrong parts with high scores.
    - `output_dir`: also write each cloud to this directory, coloured by label, named after its file or `cloud-0`, ….
    - `formats`: output formats: "ply", "html" (an interactive page that works offline) and "obj"; by default the first
      two.

    Example:
        ```python
        import hf_any3d
        from transformers import pipeline

        segment = pipeline("point-cloud-segmentation", model="me/any2point-parts")
        answer = segment("chair.ply", category="chair", output_dir="segmented")
        [(part["label"], part["mask"].sum()) for part in answer["segments"]]
        ```
    """

    def _sanitize_parameters(
        self,
        category: str | int | None = None,
        output_dir: str | os.PathLike | None = None,
        formats: tuple[str, ...] | list[str] | str | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        refuse_unknown(kwargs, "category, output_dir, formats")
        after = without_none(output_dir=output_dir, formats=check_formats(formats, KNOWN_FORMATS))
        return without_none(category=category), {}, after

    def preprocess(self, cloud: Any, category: str | int | None = None) -> Iterator[dict[str, Any]]:
        """Split one cloud into blocks: `points (1, num_points, channels)` and their indices in the cloud."""
        processor = self.feature_extractor
        number = self._category_number(cloud, category)
        data = to_cloud(cloud, processor.features)
        if data.is_mesh:
            data = data.sample_surface(MESH_DENSITY * processor.num_points, processor.seed or 0)
        blocks = split_into_blocks(
            data.points,
            processor.num_points,
            processor.block_size,
            processor.block_overlap,
            up_axis=processor.up_axis,
            generator=processor.seed or 0,
        )
        for position, index in enumerate(blocks):
            is_last = position == len(blocks) - 1
            inputs = dict(processor(part_of(data, index), return_tensors="pt"))
            if number is not None:
                inputs["category"] = torch.tensor([number])
            # Only the last block carries the complete cloud.
            cloud_data = (data, stem_of(cloud)) if is_last else None
            yield {**inputs, "index": torch.from_numpy(index)[None], "cloud": cloud_data, "is_last": is_last}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        own = {name: model_inputs.pop(name) for name in ("index", "cloud", "is_last")}
        logits = self.model(**model_inputs).logits
        if "category" in model_inputs:
            # Parts of other categories are impossible.
            parts = self.model.config.category_parts
            foreign = ~part_mask(parts, logits.shape[-1], model_inputs["category"])  # (blocks, labels)
            logits = logits.float().masked_fill(foreign.unsqueeze(1), -1e9)
        return {"logits": logits.float(), **own}

    def postprocess(
        self,
        outputs: list[dict[str, Any]],
        output_dir: str | os.PathLike | None = None,
        formats: list[str] | tuple[str, ...] = FORMATS,
    ) -> dict[str, Any]:
        """Merge the logits of all blocks of a cloud to its answer; see the class."""
        data, stem = outputs[-1]["cloud"]
        index = np.concatenate([output["index"].numpy() for output in outputs])
        logits = np.concatenate([output["logits"].numpy() for output in outputs])
        refuse_non_finite(torch.from_numpy(logits), stem)
        merged = torch.from_numpy(merge_blocks(index, logits, len(data)))
        scores, labels = merged.softmax(dim=-1).max(dim=-1)
        points = data.points if data.offset is None else data.points + data.offset
        answer = {"points": points, "labels": labels.numpy(), "scores": scores.float().numpy()}
        answer["segments"] = self._segments(answer["labels"], answer["scores"])
        if output_dir is not None:
            self._write(data, answer["labels"], Path(output_dir) / self.name_of(stem), formats)
        return answer

    def _segments(self, labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        counts = np.bincount(labels)
        present = sorted(np.flatnonzero(counts), key=lambda number: -counts[number])
        masks = [(int(number), labels == number) for number in present]
        names = self.model.config.id2label
        return [{"label": names[n], "score": float(scores[mask].mean()), "mask": mask} for n, mask in masks]

    def _write(self, data: PointCloudData, labels: np.ndarray, path: Path, formats: list[str] | tuple) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [self.model.config.id2label[number] for number in range(self.model.config.num_labels)]
        palette = label_colors(len(names))
        colored = PointCloudData(data.points, palette[labels], labels=labels, offset=data.offset)
        for ending in ("ply", "obj"):
            if ending in formats:
                write_point_cloud(path.with_name(f"{path.name}.{ending}"), colored)
        if "html" in formats:
            page = path.with_name(f"{path.name}.html")
            write_point_cloud_page(
                page, colored.points, labels, names, title=path.name, up_axis=self.feature_extractor.up_axis
            )

    def _category_number(self, cloud: Any, category: str | int | None) -> int | None:
        config = self.model.config
        if not config.num_categories:
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
        if category is None:
            raise ValueError(
                "category is missing, which part segmentation requires; give category= one of "
                f"{', '.join(names)}, or its number, or a dataset row with 'category'"
            )
        if isinstance(category, str) or not 0 <= int(category) < config.num_categories:
            raise ValueError(f"category={category!r}; expected one of {', '.join(names)}, or its number")
        return int(category)


def part_of(data: PointCloudData, index: np.ndarray) -> PointCloudData:
    """Return some points of a cloud with their colours and normals.

    Args:
        data: A cloud.
        index: (points,) indices, which may repeat.
    """
    colors, normals = (None if values is None else values[index] for values in (data.colors, data.normals))
    return PointCloudData(data.points[index], colors, normals)
