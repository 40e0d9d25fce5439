"""From labels to texts, and from the texts of a label to one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hf_any3d.modeling.text_towers.tower import TextTower

HYPOTHESIS_TEMPLATES = ("a 3D model of a {}.",)


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """For each label the texts that its templates make.

    Raises:
        ValueError: If there are no templates, or one has no place, or more than one, for the label.
    """
    if isinstance(templates, str) or not len(templates):
        raise ValueError(f"hypothesis_template={templates!r}; expected a list with at least one template")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f"hypothesis_template has {template!r}; expected a text with one {{}} for the label")
    # Not str.format: a label or a template may have other braces.
    return [[template.replace("{}", label) for template in templates] for label in labels]


def embed_labels(
    tower: TextTower, labels: Sequence[str], templates: Sequence[str], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """One unit vector for each label, `(labels, width)`: the mean direction of the texts that its templates make.

    Args:
        tower: Embeds the texts.
        labels: The labels.
        templates: Texts with `{}` where the label goes.
        device: Where to compute.
    """
    texts = fill_templates(labels, templates)
    vectors = tower.embed([text for own in texts for text in own], device)
    return nn.functional.normalize(vectors.unflatten(0, (len(texts), -1)).mean(dim=1), dim=-1)
