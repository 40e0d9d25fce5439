"""Conversations about clouds, as rows of a dataset and as batches with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from hf_any3d.chat.processing import MiniGPT3DProcessor
from hf_any3d.chat.released_texts import training_messages
from hf_any3d.data.arrow_rows import ArrowRows
from hf_any3d.data.inputs import ATTRIBUTES

_TURNS = "conversations"


class ConversationRows(torch.utils.data.Dataset):
    """Rows `{"messages": […], "cloud": {"points": (points, 3), …}}` of datasets such as `objaverse_captions`.

    Args:
        dataset: Rows with `points`, `colors` where the processor needs them, and `conversations`.
        processor: Says what of a cloud is needed.

    Raises:
        ValueError: A column is missing.
    """

    def __init__(self, dataset: Dataset, processor: MiniGPT3DProcessor):
        clouds = ["points", *(ATTRIBUTES[name] for name in processor.feature_extractor.features[1:])]
        there = dataset.column_names
        if missing := [name for name in ("points", _TURNS) if name not in there]:
            raise ValueError(f"the dataset has no column {missing[0]!r}; it has {', '.join(there)}")
        self._clouds = ArrowRows(dataset.select_columns([name for name in clouds if name in there]))
        self._turns = dataset.select_columns([_TURNS]).with_format(None)

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a batch; DataLoader asks for them together."""
        turns = self._turns.__getitems__(list(indices))
        return [
            {"messages": training_messages(turn[_TURNS]), "cloud": cloud}
            for turn, cloud in zip(turns, self._clouds.__getitems__(indices), strict=True)
        ]


class ConversationCollator:
    """Makes a batch of rows: token ids, points, and labels on the answers alone.

    Args:
        processor: The model's.
    """

    def __init__(self, processor: MiniGPT3DProcessor):
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Give `input_ids`, `attention_mask`, `labels` `(rows, tokens)` and `points` `(rows, points, channels)`."""
        batch = self.processor.apply_chat_template(
            [row["messages"] for row in rows],
            tokenize=True,
            return_labels=True,
            point_clouds=[[row["cloud"]] for row in rows],
        )
        return dict(batch)
