"""`pipeline("zero-shot-point-cloud-classification")`: scores of any labels."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hf_any3d.data.fingerprints import weights_state
from hf_any3d.data.options import at_least
from hf_any3d.modeling.point_encoders.text_templates import fill_templates
from hf_any3d.tasks.base import PointCloudPipeline
from hf_any3d.tasks.poses import Poses, told_in_words
from hf_any3d.tasks.steps import refuse_non_finite, refuse_unknown, without_none

# Number of label sets whose embeddings are cached.
CACHE_SIZE = 32


class LabelsOfACall(PointCloudPipeline):
    """Base of the pipelines whose labels come with a call; their embeddings are cached."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._embeddings: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        super().__init__(*args, **kwargs)

    def __call__(self, inputs: Any, candidate_labels: Sequence[str] | str | None = None, **kwargs: Any) -> Any:
        """Run the pipeline on one cloud or many; see the class and `PointCloudPipeline`.

        Raises:
            ValueError: There are no candidate labels, one of them twice, or a template without `{}`.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "labels" not in self._forward_params:
            # Labels may also be given when the pipeline is made.
            raise ValueError("candidate_labels is missing; expected a list of labels to choose from")
        return super().__call__(inputs, **kwargs)

    def _cached(self, texts: tuple, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
        # With the state of the weights, as adapters may be added to the tower between two calls.
        key = (texts, weights_state(self.model.text_tower.model))
        if key not in self._embeddings:
            self._embeddings[key] = encode()
            if len(self._embeddings) > CACHE_SIZE:
                self._embeddings.popitem(last=False)
        # Behind all others, so that the first is the one unused for longest.
        self._embeddings.move_to_end(key)
        return self._embeddings[key]


class ZeroShotPointCloudClassificationPipeline(LabelsOfACall):
    """Classify point clouds among labels that are given as text.

    Takes clouds as all pipelines do, see `PointCloudPipeline`. Returns, for each cloud, a list of
    `{"label": …, "score": …}`, one for each label, the highest score first; scores sum to 1. Embeddings of a set of
    labels and templates are cached.

    Arguments of a call:

    - `candidate_labels`: a list of labels, or one text with labels separated by commas.
    - `hypothesis_template`: text with `{}` for the label, or several whose embeddings are averaged. By default those
      of the model's training, such as "a 3D model of a {}."; use `"{}"` for labels that are complete texts.
    - `text_embeds`: features of the labels that were computed elsewhere, an array or tensor `(labels, text_width)`,
      for models whose text encoder transformers has no class for.
    - `top_k`: number of labels to return; all by default.

    Example:
        ```python
        classify = pipeline("zero-shot-point-cloud-classification", model="me/any2point-minilm-shapes")
        classify("chair.ply", candidate_labels=["chair", "lamp", "car"])
        classify(["chair.ply", "lamp.stl"], candidate_labels="chair, lamp", hypothesis_template="a scan of a {}.")
        ```
    """

    of_objects = True
    turns_upright = True

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[str] | str | None = None,
        hypothesis_template: Sequence[str] | str | None = None,
        text_embeds: torch.Tensor | np.ndarray | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        # None means all labels and overrides the pipeline's number.
        after = {name: kwargs.pop(name) for name in ("top_k", "other_axis") if name in kwargs}
        before = without_none(**{name: kwargs.pop(name, None) for name in ("up_axis", "estimate_normals")})
        refuse_unknown(kwargs, "candidate_labels, hypothesis_template, text_embeds, top_k, up_axis, estimate_normals")
        at_least(1, top_k=after.get("top_k"))
        labels: dict[str, Any] = {} if candidate_labels is None else {"labels": as_labels(candidate_labels)}
        if text_embeds is not None:
            if hypothesis_template is not None:
                raise ValueError("text_embeds and hypothesis_template exclude each other; pass one of them")
            features = torch.as_tensor(text_embeds)
            count = len(labels.get("labels", ()))
            if features.ndim != 2 or len(features) != count or not features.is_floating_point():
                raise ValueError(
                    f"text_embeds is {features.dtype} {tuple(features.shape)}; expected floats ({count}, text_width), "
                    "a row for each of candidate_labels"
                )
            features = features.float()
            # Labels are needed once more behind the model, where scores get their names.
            return before, labels | {"text_embeds": features}, labels | after
        if (templates := hypothesis_template) is None:
            return before, labels, labels | after
        templates = (templates,) if isinstance(templates, str) else tuple(templates)
        fill_templates([], templates)  # raises errors early
        return before, labels | {"templates": templates}, labels | after

    def _forward(
        self,
        model_inputs: dict[str, Any],
        labels: tuple[str, ...] = (),
        templates: tuple[str, ...] | None = None,
        text_embeds: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        stem = model_inputs.pop("stem")
        poses = Poses.of(model_inputs, self.model.config, self.feature_extractor)
        texts = self.label_embeddings(labels, templates) if text_embeds is None else text_embeds.to(self.model.device)
        logits = self.model(points=poses.points, **model_inputs, text_embeds=texts).logits_per_point_cloud
        if poses.are_clouds:
            return {"logits": logits, **poses.told(), "stem": stem}
        scores, other_axis = poses.settle(logits.float().softmax(dim=-1))
        return {"logits": scores.log(), "other_axis": other_axis, **poses.told(), "stem": stem}

    def postprocess(
        self,
        outputs: dict[str, Any],
        labels: tuple[str, ...] = (),
        top_k: int | None = None,
        other_axis: bool = False,
    ) -> list[dict[str, Any]]:
        """Convert logits `(1, labels)` to labels with probabilities, the highest first."""
        refuse_non_finite(outputs["logits"], outputs["stem"][0])
        probabilities = outputs["logits"][0].float().softmax(dim=-1)
        # Stable, so that equal labels keep the order in which they were given.
        scores, order = probabilities.sort(descending=True, stable=True)
        told = told_in_words(outputs, other_axis=other_axis)
        answers = [{"label": labels[int(i)], "score": float(s), **told} for i, s in zip(order, scores, strict=True)]
        return answers[:top_k]

    def label_embeddings(self, labels: tuple[str, ...], templates: tuple[str, ...] | None = None) -> torch.Tensor:
        """Return unit vectors `(labels, text_width)`, cached by labels, templates and the text tower's weights."""
        texts = (labels, tuple(templates or self.model.config.hypothesis_templates))
        return self._cached(texts, lambda: self.model.encode_labels(*texts))


def as_labels(candidates: Sequence[str] | str, clean: Callable[[str], str] = str.strip) -> tuple[str, ...]:
    """Return labels as a tuple, which differ also when they are cleaned; a text is split at commas."""
    if isinstance(candidates, str):
        candidates = [part.strip() for part in candidates.split(",")]
    if isinstance(candidates, (set, frozenset)):
        # A set has another order in each process, and rows of features would belong to other labels.
        raise ValueError(f"candidate_labels is a {type(candidates).__name__}, which has no order; expected a list")
    labels = tuple(candidates)
    texts = {clean(label) for label in labels}
    if not texts or "" in texts or len(texts) < len(labels):
        raise ValueError(f"candidate_labels is {list(labels)}; expected words, each of them once")
    return labels
