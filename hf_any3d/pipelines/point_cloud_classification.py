"""`pipeline("point-cloud-classification")`: files in, labels out."""

from __future__ import annotations

from typing import Any

import torch

from hf_any3d.pipelines.base import PointCloudPipeline, check_top_k, refuse_non_finite, refuse_unknown, stem_of

_FUNCTIONS = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


class PointCloudClassificationPipeline(PointCloudPipeline):
    """Names what point clouds show.

    Takes a path, an array or tensor `(points, channels)`, a trimesh object, a dataset row, or a list, generator or
    dataset column of them; a mesh is sampled on its surface. Returns, for each cloud, a list of
    `{"label": …, "score": …}` by falling score.

    Arguments of a call:

    - `top_k`: how many labels to return, 1 by default; None returns all.
    - `function_to_apply`: what makes scores of logits: "softmax", "sigmoid" or "none". By default what the config's
      `problem_type` asks for, as in the classification pipelines of transformers: nothing for regression, the sigmoid
      for several labels at once and for a single label, else the softmax.

    Example:
        ```python
        import hf_any3d
        from transformers import pipeline

        classify = pipeline("point-cloud-classification", model="me/any2point-scanobjectnn")
        classify("chair.ply")
        classify(["chair.ply", "lamp.stl"], top_k=3, batch_size=16)
        ```
    """

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        after = {name: kwargs.pop(name) for name in ("top_k", "function_to_apply") if name in kwargs}
        refuse_unknown(kwargs, "top_k, function_to_apply")
        check_top_k(after.get("top_k"))
        if (function := after.get("function_to_apply")) is not None:
            # transformers has an enumeration of these names.
            after["function_to_apply"] = name = getattr(function, "value", function)
            if name not in _FUNCTIONS:
                raise ValueError(f"function_to_apply={name!r}; expected one of {', '.join(map(repr, _FUNCTIONS))}")
        return {}, {}, after

    def preprocess(self, cloud: Any) -> dict[str, Any]:
        """One cloud to `points (1, num_points, channels)`, and the name of its file."""
        # A list, so that it stays one thing for each cloud in a batch.
        return {**self.feature_extractor(cloud, return_tensors="pt"), "stem": [stem_of(cloud)]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        stem = model_inputs.pop("stem")
        return {"logits": self.model(**model_inputs).logits, "stem": stem}

    def postprocess(
        self, outputs: dict[str, Any], top_k: int | None = 1, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """Logits `(1, labels)` to the `top_k` best labels with their scores."""
        refuse_non_finite(outputs["logits"], outputs["stem"][0])
        scores = _FUNCTIONS[function_to_apply or self._function()](outputs["logits"][0].float())
        scores, classes = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        names = self.model.config.id2label
        return [{"label": names[int(c)], "score": float(s)} for c, s in zip(classes, scores, strict=True)]

    def _function(self) -> str:
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        return (
            "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"
        )
