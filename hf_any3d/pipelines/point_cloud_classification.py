"""`pipeline("point-cloud-classification")`: files in, labels out."""

from __future__ import annotations

import os
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Pipeline

from hf_any3d.pipelines.inputs import Clouds, as_clouds

# From this many clouds on a progress bar is shown.
LONG = 100


class PointCloudClassificationPipeline(Pipeline):
    """Names what point clouds show.

    Takes a path, an array or tensor `(points, channels)`, a trimesh object, a dataset row, or a list, generator or
    dataset column of them; a mesh is sampled on its surface. Returns, for each cloud, a list of
    `{"label": …, "score": …}` by falling score.

    Example:
        ```python
        import hf_any3d
        from transformers import pipeline

        classify = pipeline("point-cloud-classification", model="me/any2point-scanobjectnn")
        classify("chair.ply")
        classify(["chair.ply", "lamp.stl"], top_k=3, batch_size=16)
        ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_tokenizer = False
    _load_feature_extractor = True

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise TypeError(f"unknown arguments: {', '.join(kwargs)}; expected top_k, batch_size, num_workers")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}; expected at least 1")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def __call__(self, inputs: Any, *, progress: bool | None = None, **kwargs: Any) -> Any:
        """Classify one cloud or many; see the class.

        Args:
            inputs: One cloud; a list, tuple, `(clouds, points, channels)` array or dataset column of clouds, which
                gives a list; or a generator or torch dataset of clouds, which gives an iterator.
            progress: Show a bar; None shows one for 100 clouds and more.
            **kwargs: `top_k` (labels to return, 1), `batch_size`, `num_workers`.
        """
        clouds = as_clouds(inputs)
        results = super().__call__(clouds, **kwargs)
        if not isinstance(clouds, Clouds):
            return results
        hidden = len(clouds) < LONG if progress is None else not progress
        return list(tqdm(results, total=len(clouds), unit="cloud", disable=hidden))

    def preprocess(self, cloud: Any) -> dict[str, torch.Tensor]:
        """One cloud to `points (1, num_points, channels)`."""
        return self.feature_extractor(cloud, return_tensors="pt")

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: int = 1) -> list[dict[str, Any]]:
        """Logits `(1, labels)` to the `top_k` best labels with their probabilities."""
        probabilities = outputs["logits"][0].float().softmax(dim=-1)
        scores, classes = probabilities.topk(min(top_k, len(probabilities)))
        names = self.model.config.id2label
        return [{"label": names[int(c)], "score": float(s)} for c, s in zip(classes, scores, strict=True)]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor, but no code: what opens them is brought by `import hf_any3d`.

        Args:
            save_directory: Directory to write into.
            **kwargs: Passed on to the `save_pretrained` of model and processor.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.feature_extractor.save_pretrained(save_directory, **kwargs)
