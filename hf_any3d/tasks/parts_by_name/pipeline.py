"""`pipeline("zero-shot-point-cloud-segmentation")`: parts that are named by words."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_any3d.data.classes.text_bank import TextBank
from hf_any3d.modeling.point_encoders.part_texts import clean_label
from hf_any3d.tasks.segmentation.pipeline import PointCloudSegmentationPipeline
from hf_any3d.tasks.segmentation.steps import SHARED
from hf_any3d.tasks.steps import refuse_unknown, without_none
from hf_any3d.tasks.zero_shot_classification.pipeline import LabelsOfACall, as_labels

NONE = "none"
"""Label of points that belong to no text."""


class ZeroShotPointCloudSegmentationPipeline(LabelsOfACall, PointCloudSegmentationPipeline):
    """Label every point with one of the parts that labels, given as text, name.

    Takes the clouds, and returns the answers, of `PointCloudSegmentationPipeline`; the numbers of labels are their
    places in `candidate_labels`. Every point gets one of the labels; of models such as Find3D a point may get "none",
    the label after the last. Embeddings of a set of labels are cached.

    Arguments of a call:

    - `candidate_labels`: a list of names of parts, or one text with names separated by commas.
    - `category`: name of the object's category, such as "chair", which then is part of the texts; "object" if it is
      not known. By default, as in training, texts name parts alone.
    - `templates`: "part_only", "part_plus_cat" or "ensemble", or texts with `{}` for the part and perhaps a second
      `{}` for the category; by default those of the model's config.
    - `text_features`: vectors of labels that were computed elsewhere, instead of the model's text tower: a `TextBank`,
      the path of its file, or a tensor or array `(labels, width)`.
    - `patch_to_point`: "nearest" or "membership", how points get the scores of patches, for models of patches; by
      default the config's.
    - `none_label`: whether a point may get none of the labels, for models that have a score for this; by default the
      config's.
    - `up_axis`, `max_points`, `write` and what belongs to it, `output_dir` and `formats`: as of
      `PointCloudSegmentationPipeline`.

    Example:
        ```python
        segment = pipeline("zero-shot-point-cloud-segmentation", model="me/patchalign3d")
        answer = segment("chair.ply", candidate_labels=["seat", "back", "leg"], output_dir="segmented")
        [(part["label"], part["mask"].sum()) for part in answer["segments"]]
        ```
    """

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[str] | str | None = None,
        category: str | None = None,
        templates: Sequence[str] | str | None = None,
        text_features: Any = None,
        patch_to_point: str | None = None,
        none_label: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        # Only what is shared: here categories are words of texts, and there are no votes.
        before, _, after = super()._sanitize_parameters(
            **{name: kwargs.pop(name) for name in SHARED if name in kwargs}
        )
        refuse_unknown(
            kwargs,
            f"candidate_labels, category, templates, text_features, patch_to_point, none_label, {', '.join(SHARED)}",
        )
        if text_features is not None and (category is not None or templates is not None):
            raise ValueError("category and templates make texts; expected neither, as text_features is given")
        during = without_none(patch_to_point=patch_to_point, none_label=none_label)
        # Only some models have a choice, which their config then has, too.
        for name, value in during.items():
            if not hasattr(self.model.config, name):
                raise ValueError(f"{name}={value!r}; expected None, as this model has no such choice")
        during |= without_none(category=category, templates=templates, text_features=text_features)
        if candidate_labels is not None:
            during["labels"] = as_labels(candidate_labels, clean_label)
        # Either may be given when the pipeline is made, and the other one in a call.
        arguments = {**getattr(self, "_forward_params", {}), **during}
        if "labels" in arguments:
            after["names"] = names = self.label_names(arguments["labels"], arguments.get("none_label"))
            if "copy" in before:
                before["copy"] = replace(before["copy"], names=names)
        return before, during, after

    @property
    def candidate_labels(self) -> tuple[str, ...]:
        """The names that were given when the pipeline was made; empty if a call has to give them."""
        return self._forward_params.get("labels", ())

    def label_names(
        self, candidate_labels: Sequence[str] | str = (), none_label: bool | None = None
    ) -> tuple[str, ...]:
        """Return the names of the labels by their numbers in an answer; arguments of a call."""
        labels = as_labels(candidate_labels, clean_label)
        if not (getattr(self.model.config, "none_label", False) if none_label is None else none_label):
            return labels
        if any(clean_label(label) == NONE for label in labels):
            raise ValueError(f"candidate_labels has {NONE!r}, which points without a label get; leave it out")
        return (*labels, NONE)

    def _forward(self, model_inputs: dict[str, Any], labels: tuple[str, ...] = (), **texts: Any) -> dict[str, Any]:
        place = {name: model_inputs.pop(name) for name in ("index", "cloud", "is_last")}
        # Argument of a call -> that of the model.
        arguments = {"patch_to_point": "patch_to_point", "none_label": "with_none"}
        choices = {arguments[name]: texts.pop(name) for name in arguments if name in texts}
        embeds = self.label_embeddings(labels, **texts)
        output = self.model(**model_inputs, text_embeds=embeds, **choices)
        return {"logits": output.logits.float(), **place}

    def label_embeddings(
        self,
        labels: tuple[str, ...],
        category: str | None = None,
        templates: Sequence[str] | str | None = None,
        text_features: Any = None,
    ) -> torch.Tensor:
        """Return unit vectors `(labels, width)`; those of the text tower are cached."""
        if text_features is not None:
            if isinstance(text_features, (str, os.PathLike)):
                text_features = TextBank.from_file(text_features)
            elif isinstance(text_features, Mapping):
                # A mapping of names to vectors, as a file of them holds it.
                text_features = TextBank(text_features)
            # A bank knows its vectors by name, while an array has the order of the labels.
            if isinstance(text_features, TextBank):
                return text_features.encode(labels).to(self.model.device)
            features = torch.as_tensor(text_features, dtype=torch.float32)
            if features.ndim != 2 or len(features) != len(labels):
                raise ValueError(f"text_features has shape {tuple(features.shape)}; expected ({len(labels)}, width)")
            return features.to(self.model.device)
        config = self.model.config
        texts = (labels, category, templates if isinstance(templates, str) else tuple(templates or ()))
        # Templates of the config are part of the key, as a program may change them.
        texts += (tuple(config.hypothesis_templates), tuple(config.category_templates))
        return self._cached(texts, lambda: self.model.encode_labels(labels, templates, category))

    def _category_number(self, cloud: Any, category: str | int | None) -> int | None:
        return None  # the category is part of the texts
