"""Steps of classification: labels of point clouds."""

from typing import Any

import torch

from hf_any3d.data.options import at_least, one_of
from hf_any3d.modeling.layers.unknown_score import is_none_of_these
from hf_any3d.tasks.poses import Poses, told_in_words
from hf_any3d.tasks.steps import PointCloudSteps, refuse_non_finite, refuse_unknown, without_none

_FUNCTIONS = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}

# What a model may tell of a cloud besides its label, by the names of outputs and arguments.
_FURTHER_OUTPUTS = ("unknown", "one_sided")
# Smallest and largest factor of an axis, as in the votes of the quickstart's recipe.
_STRETCH = (0.8, 1.25)


class ClassificationSteps(PointCloudSteps):
    """Steps of `PointCloudClassificationPipeline`, also of a model that is opened without transformers."""

    of_objects = True
    turns_upright = True

    def _sanitize_parameters(
        self,
        up_axis: str | None = None,
        votes: int | None = None,
        function_to_apply: Any = None,
        unknown: bool | None = None,
        one_sided: bool | None = None,
        other_axis: bool | None = None,
        keep_labels: bool | None = None,
        estimate_normals: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        if function_to_apply is not None:
            # transformers also has an enum of these names.
            function = getattr(function_to_apply, "value", function_to_apply)
            function_to_apply = one_of("function_to_apply", function, _FUNCTIONS)
        after = without_none(
            function_to_apply=function_to_apply,
            unknown=unknown,
            one_sided=one_sided,
            other_axis=other_axis,
            keep_labels=keep_labels,
        )
        if "top_k" in kwargs:  # None is the number of all labels
            after["top_k"] = kwargs.pop("top_k")
        known = (
            "top_k, function_to_apply, up_axis, votes, unknown, one_sided, other_axis, keep_labels, estimate_normals"
        )
        refuse_unknown(kwargs, known)
        at_least(1, votes=votes, top_k=after.get("top_k"))
        before = without_none(up_axis=up_axis, estimate_normals=estimate_normals)
        return before, without_none(votes=votes), after

    def _forward(self, model_inputs: dict[str, Any], votes: int = 1) -> dict[str, Any]:
        stem = model_inputs.pop("stem")
        poses = Poses.of(model_inputs, self.model.config, self.feature_extractor)
        model_inputs["points"] = poses.points
        if votes > 1:
            if others := sorted(set(model_inputs) - {"points"}):
                raise ValueError(f"votes={votes} for a model that takes {others[0]} too; expected 1")
            # (poses * votes, points, channels)
            model_inputs["points"] = stretched(model_inputs["points"], votes).flatten(0, 1)
        output = self.model(**model_inputs)
        tensors = {"logits": output.logits, **without_none(**{name: output.get(name) for name in _FURTHER_OUTPUTS})}
        if votes > 1:
            tensors = {name: values.float().unflatten(0, (-1, votes)).mean(1) for name, values in tensors.items()}
        if poses.are_clouds:
            return {**tensors, **poses.told(), "stem": stem}
        logits = tensors.pop("logits").float()
        told = {}
        if self._function() == "softmax":
            # Of probabilities: a heading in which the cloud looks like nothing has flat ones, and any logits.
            scores, told["other_axis"] = poses.settle(logits.softmax(dim=-1))
            told["logits"] = scores.log()
        else:
            told["logits"] = poses.mean(logits)
        means = {name: poses.mean(values) for name, values in tensors.items()}
        return {**told, **means, **poses.told(), "stem": stem}

    def _function(self) -> str:
        """Return the name of the function from logits to scores that fits the model's problem."""
        problem = self.model.config.problem_type
        if problem == "regression":
            return "none"
        # The softmax of a single label would be 1 for every cloud.
        is_multiple = problem == "multi_label_classification" or self.model.config.num_labels == 1
        return "sigmoid" if is_multiple else "softmax"

    def postprocess(
        self,
        outputs: dict[str, Any],
        top_k: int | None = 1,
        function_to_apply: str | None = None,
        unknown: bool = True,
        one_sided: bool = False,
        other_axis: bool = False,
        keep_labels: bool = False,
    ) -> list[dict[str, Any]]:
        """Convert logits `(1, labels)` to the `top_k` best labels with their scores."""
        refuse_non_finite(outputs["logits"], outputs["stem"][0])
        if function_to_apply is None:
            function_to_apply = self._function()
        # In float32: in half precision many scores would be equal.
        scores = _FUNCTIONS[function_to_apply](outputs["logits"][0].float())
        if self.model.config.problem_type == "regression":  # none of its numbers is better than another
            classes = torch.arange(len(scores))
        else:
            scores, classes = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        names = self.model.config.id2label
        best = [{"label": names[int(c)], "score": float(s)} for c, s in zip(classes, scores, strict=True)]
        told: dict[str, Any] = {**told_in_words(outputs, other_axis=other_axis)}
        if one_sided and "one_sided" in outputs:
            told["one_sided"] = float(outputs["one_sided"][0])
        best = [entry | told for entry in best]
        if not unknown or "unknown" not in outputs:
            return best
        score = float(outputs["unknown"][0])
        if is_none_of_these(score, self.model.config):
            best = [best[0] | {"label": None}, *(best if keep_labels else ())]
        return [entry | {"unknown": score} for entry in best]


def stretched(points: torch.Tensor, votes: int) -> torch.Tensor:
    """Stretch clouds (batch, points, channels), xyz first, along their axes, always by the same factors.

    Returns (batch, votes, points, channels); the first copy is the cloud itself.
    """
    # Fractions of the multiples of irrational numbers are spread evenly, for any number of copies.
    steps = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64).sqrt()
    shares = (torch.arange(votes, dtype=torch.float64)[:, None] * steps) % 1  # (votes, 3)
    low, high = _STRETCH
    # Evenly in the logarithm, so that clouds are as often squeezed as stretched.
    factors = low * (high / low) ** shares
    factors[0] = 1
    xyz = points[:, None, :, :3] * factors.to(points)[None, :, None, :]
    others = points[:, None, :, 3:].expand(-1, votes, -1, -1)
    return torch.cat([xyz, others], dim=-1)
