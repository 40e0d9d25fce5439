"""`pipeline("point-cloud-classification")`: files in, labels out."""

from __future__ import annotations

from typing import Any

from hf_any3d.pipelines.base import PointCloudPipeline, refuse_non_finite, refuse_unknown
from hf_any3d.pipelines.inputs import stem_of


class PointCloudClassificationPipeline(PointCloudPipeline):
    """Names what point clouds show.

    Takes a path, an array or tensor `(points, channels)`, a trimesh object, a dataset row, or a list, generator or
    dataset column of them; a mesh is sampled on its surface. Returns, for each cloud, a list of
    `{"label": …, "score": …}` by falling score; `top_k` says how many, 1 by default.

    Example:
        ```python
        import hf_any3d
        from transformers import pipeline

        classify = pipeline("point-cloud-classification", model="me/any2point-scanobjectnn")
        classify("chair.ply")
        classify(["chair.ply", "lamp.stl"], top_k=3, batch_size=16)
        ```
    """

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        refuse_unknown(kwargs, "top_k")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}; expected at least 1")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, cloud: Any) -> dict[str, Any]:
        """One cloud to `points (1, num_points, channels)`, and the name of its file."""
        # A list, so that it stays one thing for each cloud in a batch.
        return {**self.feature_extractor(cloud, return_tensors="pt"), "stem": [stem_of(cloud)]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        stem = model_inputs.pop("stem")
        return {"logits": self.model(**model_inputs).logits, "stem": stem}

    def postprocess(self, outputs: dict[str, Any], top_k: int = 1) -> list[dict[str, Any]]:
        """Logits `(1, labels)` to the `top_k` best labels with their probabilities."""
        refuse_non_finite(outputs["logits"], outputs["stem"][0])
        probabilities = outputs["logits"][0].float().softmax(dim=-1)
        scores, classes = probabilities.topk(min(top_k, len(probabilities)))
        names = self.model.config.id2label
        return [{"label": names[int(c)], "score": float(s)} for c, s in zip(classes, scores, strict=True)]
