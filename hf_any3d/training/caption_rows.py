"""Rows for contrastive training: clouds with embeddings of captions, computed once by a frozen text tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hf_any3d.data.transforms import Compose
from hf_any3d.modeling.text_towers import TextTower, embed_texts, fill_templates
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.rows import ProcessedDataset

CAPTION_TEMPLATES = (
    "a 3D model of a {}.",
    "a point cloud of a {}.",
    "a 3D scan of a {}.",
    "the shape of a {}.",
    "this is a {}.",
    "{}",
)


class CaptionedDataset(ProcessedDataset):
    """Rows `{"points", "label", "text_embeds": (width,)}` for contrastive training.

    With a `seed` each epoch draws one of a row's texts; without one it is the first.

    Args:
        dataset: Rows with `points` and `label`.
        processor: Processor of the clouds.
        texts: Texts of each row.
        tower: Text tower that embeds all of them once.
        transform: Applied to each processed cloud; requires a seed.
        seed: Seed of points, augmentation and texts, which differ in each epoch.

    Raises:
        ValueError: If a row has no texts.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: PointCloudProcessor,
        texts: Sequence[Sequence[str]],
        tower: TextTower,
        transform: Compose | None = None,
        seed: int | None = None,
    ):
        super().__init__(dataset, processor, transform, seed)
        if len(texts) != len(dataset) or not all(texts):
            raise ValueError(f"there are {sum(map(bool, texts))} rows with texts; expected {len(dataset)}, all rows")
        distinct = sorted({text for own in texts for text in own})
        number = {text: place for place, text in enumerate(distinct)}
        self.numbers = [np.array([number[text] for text in own]) for own in texts]
        self.vectors = embed_texts(tower, distinct)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the rows of a batch, each with the embedding of its text."""
        rows = super().__getitems__(indices)
        return [row | {"text_embeds": self._text(index)} for index, row in zip(indices, rows, strict=True)]

    def _text(self, index: int) -> np.ndarray:
        own = self.numbers[index]
        drawn = 0
        if self.seed is not None:
            # A separate generator, so that texts do not change the points.
            drawn = np.random.default_rng([self.seed, self.epoch, index, 1]).integers(len(own))
        return self.vectors[own[drawn]]


def readable(label: str) -> str:
    """Convert a class name such as `night_stand` to words."""
    return re.sub(r"[_\s]+", " ", label).strip()


def caption_texts(
    labels: Sequence[str],
    captions: Sequence[str | None] | None = None,
    templates: Sequence[str] = CAPTION_TEMPLATES,
    forbidden: Sequence[str] = (),
) -> list[list[str]]:
    """Return the texts of each row: its caption, or else its class name, in every template.

    Class names in addition to captions would pull all clouds of a class together, which generalizes less.

    Args:
        labels: Class name of each row.
        captions: Caption of each row, or None.
        templates: Texts with `{}`.
        forbidden: Names of held-out classes; captions that contain one are not used.
    """
    banned = re.compile("|".join(rf"\b{re.escape(readable(word))}" for word in forbidden), re.IGNORECASE)
    names = []
    for number, label in enumerate(labels):
        caption = captions[number] if captions is not None else None
        if caption and caption.strip() and not (forbidden and banned.search(caption)):
            # Captions are titles, but lower case within a sentence.
            names.append(caption.strip().lower())
        else:
            names.append(readable(label))
    return fill_templates(names, templates)
