"""`pipeline("point-cloud-segmentation")`: files in, a label for every point out."""

from __future__ import annotations

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
from hf_any3d.pipelines.base import PointCloudPipeline, refuse_non_finite, refuse_unknown, stem_of
from hf_any3d.visualization.label_colors import label_colors
from hf_any3d.visualization.web_page import write_point_cloud_page

# Points drawn on a mesh for each one that the model reads at a time.
MESH_DENSITY = 4
FORMATS = ("ply", "html")
KNOWN_FORMATS = (*FORMATS, "obj")


class PointCloudSegmentationPipeline(PointCloudPipeline, ChunkPipeline):
    """Names the object or the part that every point belongs to.

    Takes a path, an array or tensor `(points, channels)`, a trimesh object, a dataset row, or a list, generator or
    dataset column of them; a mesh is sampled on its surface. Clouds may have any number of points: they go through
    the model in blocks, of the size that the processor records, and what overlapping blocks say of a point is
    averaged. Returns, for each cloud, a dict:

    - `points (points, 3)`, as they were given, and `labels (points,)`, the class number of each,
    - `scores (points,)`, the probability of that class,
    - `segments`, for each class that occurs `{"label": its name, "score": mean probability, "mask": (points,) bool}`,
      the largest first.

    Arguments of a call:

    - `category`: the name or number of the object's category, which models of parts have to be told unless they know
      one category only; a dataset row may hold it as `category` or `label`. Which parts an object can have, and what
      the model sees in its points, follows from the category; guessing it would make wrong parts look sure.
    - `output_dir`: also write each cloud there, coloured by label, named after its file, else `cloud-0`, ….
    - `formats`: of what is written, any of "ply", "html" (a page to turn the cloud in, without anything from the
      network) and "obj"; by default the first two.

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
        formats = [formats] if isinstance(formats, str) else formats
        if unknown := [name for name in formats or () if name not in KNOWN_FORMATS]:
            raise ValueError(f"formats names {unknown[0]!r}; expected any of {', '.join(KNOWN_FORMATS)}")
        before = {} if category is None else {"category": category}
        after = {"output_dir": output_dir, "formats": formats}
        return before, {}, {name: value for name, value in after.items() if value is not None}

    def preprocess(self, cloud: Any, category: str | int | None = None) -> Iterator[dict[str, Any]]:
        """One cloud to blocks, each `points (1, num_points, channels)` and which points of the cloud they are."""
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
            # The whole cloud travels with its last block only.
            whole = (data, stem_of(cloud)) if is_last else None
            yield {**inputs, "index": torch.from_numpy(index)[None], "whole": whole, "is_last": is_last}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        own = {name: model_inputs.pop(name) for name in ("index", "whole", "is_last")}
        logits = self.model(**model_inputs).logits
        if "category" in model_inputs:
            # Neither can an object have parts of other categories, nor would their finite share mean anything.
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
        """Logits of all blocks of a cloud to its answer; see the class."""
        data, stem = outputs[-1]["whole"]
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
                raise ValueError(f"category={category!r}; expected none, as this model knows no categories")
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
                "category is missing: a model of parts has to be told what the object is. Give category= one of "
                f"{', '.join(names)}, or its number, in the call, or a dataset row with 'category'"
            )
        if isinstance(category, str) or not 0 <= int(category) < config.num_categories:
            raise ValueError(f"category={category!r}; expected one of {', '.join(names)}, or its number")
        return int(category)


def part_of(data: PointCloudData, index: np.ndarray) -> PointCloudData:
    """Some points of a cloud with their colours and normals.

    Args:
        data: A cloud.
        index: (points,) which ones; may repeat.
    """
    colors, normals = (None if values is None else values[index] for values in (data.colors, data.normals))
    return PointCloudData(data.points[index], colors, normals)
