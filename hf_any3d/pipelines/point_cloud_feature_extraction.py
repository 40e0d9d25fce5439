"""`pipeline("point-cloud-feature-extraction")`: files in, features out."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_any3d.pipelines.base import PointCloudPipeline, refuse_non_finite, refuse_unknown, stem_of


class PointCloudFeatureExtractionPipeline(PointCloudPipeline):
    """Gives what a model makes of point clouds before any head, for retrieval, clustering or a head of one's own.

    Takes what the other pipelines take. Returns, for each cloud, a dict of float32 arrays: `pooled (features,)`,
    `class_token (hidden,)` where the model has one, `tokens (tokens, hidden)` and `centers (tokens, 3)`, the places of
    the tokens in the cloud as the processor gives it to the model, centred and scaled.

    Example:
        ```python
        import hf_any3d
        from transformers import pipeline

        extract = pipeline("point-cloud-feature-extraction", model="me/any2point-scanobjectnn")
        extract("chair.ply")["pooled"].shape
        ```
    """

    uses_head = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        refuse_unknown(kwargs, "progress")
        return {}, {}, {}

    def preprocess(self, cloud: Any) -> dict[str, Any]:
        """One cloud to `points (1, num_points, channels)`, and the name of its file."""
        # A list, so that it stays one thing for each cloud in a batch.
        return {**self.feature_extractor(cloud, return_tensors="pt"), "stem": [stem_of(cloud)]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        stem = model_inputs.pop("stem")
        # A model with a head may be given as an object; its features are wanted.
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        output = model.base_model(**model_inputs)
        leading = output.last_hidden_state.shape[1] - output.centers.shape[1]
        features = {
            "pooled": output.pooler_output,
            "class_token": output.last_hidden_state[:, 0],
            "tokens": output.last_hidden_state[:, leading:],
            "centers": output.centers,
            "stem": stem,
        }
        if not leading:
            del features["class_token"]
        return features

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Tensors `(1, …)` to arrays of one cloud."""
        stem = outputs.pop("stem")[0]
        for values in outputs.values():
            refuse_non_finite(values, stem)
        return {name: values[0].float().numpy() for name, values in outputs.items()}
