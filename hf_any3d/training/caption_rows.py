"""Rows of clouds with the texts that they are trained on: vectors of captions, embedded once by a frozen tower."""

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

    With a `seed` a row's text is drawn anew in each epoch from those that it may have; without one it is the first.

    Args:
        dataset: Rows with `points` and `label`.
        processor: Makes the clouds.
        texts: For each row the texts that it may be trained on.
        tower: Embeds them, all of them once, here.
        transform: Applied to each cloud behind the processor; needs a seed.
        seed: Draws points, augmentation and texts anew in each epoch.

    Raises:
        ValueError: If there are not texts for each row.
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
        """Rows of a batch, each with the vector of its text."""
        rows = super().__getitems__(indices)
        return [row | {"text_embeds": self._text(index)} for index, row in zip(indices, rows, strict=True)]

    def _text(self, index: int) -> np.ndarray:
        own = self.numbers[index]
        drawn = 0
        if self.seed is not None:
            # Apart from the generator of the points, so that texts change nothing in them.
            drawn = np.random.default_rng([self.seed, self.epoch, index, 1]).integers(len(own))
        return self.vectors[own[drawn]]


def readable(label: str) -> str:
    """A class name as words: `night_stand` is no text."""
    return re.sub(r"[_\s]+", " ", label).strip()


def caption_texts(
    labels: Sequence[str],
    captions: Sequence[str | None] | None = None,
    templates: Sequence[str] = CAPTION_TEMPLATES,
    forbidden: Sequence[str] = (),
) -> list[list[str]]:
    """The texts that each row may be trained on: its caption, or else its class name, in every template.

    Names beside captions would draw all clouds of a class to one place, which leaves less to tell of other classes.

    Args:
        labels: Class name of each row.
        captions: Caption of each row, where it has one.
        templates: Texts with `{}`.
        forbidden: Words that no caption may have, the names of held-out classes; a caption with one is left out.
    """
    banned = re.compile("|".join(rf"\b{re.escape(readable(word))}" for word in forbidden), re.IGNORECASE)
    names = []
    for number, label in enumerate(labels):
        caption = captions[number] if captions is not None else None
        allowed = caption and caption.strip() and not (forbidden and banned.search(caption))
        # Captions are titles: in the middle of a sentence they are written small.
        names.append(caption.strip().lower() if allowed else readable(label))
    return fill_templates(names, templates)
