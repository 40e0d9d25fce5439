"""Conversations about clouds, as rows of a dataset and as batches with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from hf_any3d.chat.processing import MiniGPT3DProcessor
from hf_any3d.chat.released_texts import training_messages
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.torch_datasets import ArrowRows


class MixedBatches(Sampler[list[int]]):
    """Batches of row numbers of concatenated datasets.

    For each batch one dataset is drawn. Its rows come in passes, shuffled anew for each, without the incomplete last
    batch. All that is random follows from the seed and the batch's number alone, so a run that goes on from any
    step sees the batches that it would have seen. Processes share the draw of the dataset and part its rows.

    Args:
        lengths: Rows of each dataset.
        batch_sizes: For each dataset, rows of a batch in each process.
        ratios: How often each is drawn, in relation to the others.
        batches: How many batches there are.
        seed: Governs all that is random.
        rank: Number of this process.
        processes: How many there are.

    Raises:
        ValueError: Another number of sizes or ratios than of datasets, one that is not positive, or a dataset with
            fewer rows than a batch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_sizes: Sequence[int],
        ratios: Sequence[float],
        batches: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ):
        for name, values in (("batch_sizes", batch_sizes), ("ratios", ratios)):
            if len(values) != len(lengths):
                raise ValueError(f"{name} are {list(values)}; expected {len(lengths)}, one for each dataset")
            if any(not value > 0 for value in values):
                raise ValueError(f"{name} are {list(values)}; expected each above 0")
        for number, (length, size) in enumerate(zip(lengths, batch_sizes, strict=True)):
            if length < size * processes:
                raise ValueError(
                    f"dataset {number} has {length} rows; expected a batch of {size * processes} at least"
                )
        self.lengths, self.batch_sizes, self.ratios = list(lengths), list(batch_sizes), list(ratios)
        self.batches, self.seed, self.rank, self.processes = batches, seed, rank, processes

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        starts = np.cumsum([0, *self.lengths])
        seen = [0] * len(self.lengths)
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for number in self.draws():
            size = self.batch_sizes[number] * self.processes
            turn, place = divmod(seen[number], self.lengths[number] // size)
            seen[number] += 1
            if orders.get(number, (-1,))[0] != turn:
                generator = np.random.default_rng((self.seed, 1 + number, turn))
                orders[number] = turn, generator.permutation(self.lengths[number])
            batch = orders[number][1][place * size : (place + 1) * size]
            yield (starts[number] + batch[self.rank :: self.processes]).tolist()

    def draws(self) -> list[int]:
        """The dataset of each batch; fewer batches draw the beginning of what more batches draw."""
        borders = np.cumsum(self.ratios) / np.sum(self.ratios)
        drawn = np.random.default_rng((self.seed, 0)).random(self.batches)
        return np.minimum(np.searchsorted(borders, drawn, side="right"), len(borders) - 1).tolist()


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
