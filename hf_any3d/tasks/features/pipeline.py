"""`pipeline("point-cloud-feature-extraction")`: features of point clouds."""

from typing import Any

from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.poses import Poses, told_in_words
from hf_any3d.tasks.steps import refuse_non_finite, refuse_unknown, unwrapped, without_none


class PointCloudFeatureExtractionPipeline(PointCloudPipeline):
    """Extract features of point clouds from a model without its head, for retrieval, clustering or training a head.

    Takes the same inputs as the other pipelines. Returns, for each cloud, a dict of float32 arrays:
    `pooled (features,)`, `class_token (hidden,)` if the model has one, `tokens (tokens, hidden)` and
    `centers (tokens, 3)`, the positions of the tokens in the processed cloud, which is centered and scaled. Tokens of
    a Point Transformer V3 are the voxels of its last stage. Where the direction up is known, `up_axis` and `up_source`
    say it, as those of the classification pipeline.

    Example:
        ```python
        extract = pipeline("point-cloud-feature-extraction", model="me/any2point-scanobjectnn")
        extract("chair.ply")["pooled"].shape
        ```
    """

    uses_head = False
    turns_upright = True

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        before = without_none(**{name: kwargs.pop(name, None) for name in ("up_axis", "estimate_normals")})
        refuse_unknown(kwargs, "up_axis, estimate_normals, progress")
        return before, {}, {}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        stem = model_inputs.pop("stem")
        # Tokens of several poses have no mean.
        poses = Poses.of(model_inputs, unwrapped(self.model).config, self.feature_extractor, likeliest=True)
        model_inputs["points"] = poses.points
        return {**self._features_of(model_inputs), **poses.told(), "stem": stem}

    def _features_of(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        # The pipeline may have been built with a model with a head.
        output = unwrapped(self.model).base_model(**model_inputs)
        if "offsets" in output:  # voxels of all clouds, one after the other
            counts = output.offsets.diff(prepend=output.offsets.new_zeros(1)).tolist()
            return {
                "pooled": output.pooler_output,
                "tokens": list(output.last_hidden_state.split(counts)),
                "centers": list(output.coord.split(counts)),
            }
        if output.last_hidden_state is None:  # features of the whole cloud alone
            return {"pooled": output.pooler_output}
        # Some encoders put a class token before those of the patches, others have none.
        leading = output.last_hidden_state.shape[1] - output.centers.shape[1]
        return {
            "pooled": output.pooler_output,
            **({"class_token": output.last_hidden_state[:, 0]} if leading else {}),
            "tokens": output.last_hidden_state[:, leading:],
            "centers": output.centers,
        }

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Convert tensors `(1, …)` to arrays of one cloud."""
        stem = outputs.pop("stem")[0]
        told = told_in_words(outputs)
        for name in ("up_axis", "up_source"):
            outputs.pop(name, None)
        # Where several clouds were a batch, transformers has taken this one's tensor out of the list.
        tensors = {name: values[0][None] if isinstance(values, list) else values for name, values in outputs.items()}
        for values in tensors.values():
            refuse_non_finite(values, stem)
        return {**{name: values[0].float().numpy() for name, values in tensors.items()}, **told}
