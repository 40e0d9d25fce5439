"""Rows of clouds with text: conversations, and embeddings of captions, computed once by a frozen text tower."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.data.torch_datasets import ArrowRows
from hf_any3d.data.transforms import Compose
from hf_any3d.modeling.point_encoders.text_templates import CAPTION_TEMPLATES, fill_templates
from hf_any3d.modeling.point_encoders.text_towers import TextTower, embed_texts
from hf_any3d.processing.chat import ChatProcessor
from hf_any3d.processing.chat_messages import training_messages
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.rows import PreparedRows, ProcessedDataset

_TURNS = "conversations"


class MixedBatches(Sampler[list[int]]):
    """Sampler of batches from concatenated datasets, each batch from one of them.

    The dataset of each batch is drawn at random. Its rows are shuffled for each pass, and the incomplete last batch is
    dropped. All random choices depend only on the seed and the batch number, so a resumed run gets the same batches.
    All processes draw the same dataset and split its rows.
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
        # Even the smallest dataset has to fill one batch of all processes.
        for number, (length, size) in enumerate(zip(lengths, batch_sizes, strict=True)):
            if length < size * processes:
                raise ValueError(f"dataset {number} has {length} rows; expected {size * processes} at least, a batch")
        self.lengths = list(lengths)
        self.batch_sizes = list(batch_sizes)
        self.ratios = list(ratios)
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        starts = np.cumsum([0, *self.lengths])
        seen = [0] * len(self.lengths)
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for number in self.draws():
            size = self.batch_sizes[number] * self.processes
            # Each pass through a dataset has its own order, and leaves out the rows that fill no batch.
            turn, place = divmod(seen[number], self.lengths[number] // size)
            seen[number] += 1
            if orders.get(number, (-1,))[0] != turn:
                # 0 is the stream of `draws`.
                generator = np.random.default_rng((self.seed, 1 + number, turn))
                orders[number] = turn, generator.permutation(self.lengths[number])
            batch = orders[number][1][place * size : (place + 1) * size]
            # All processes draw the same batch, and each takes every n-th row of it.
            yield (starts[number] + batch[self.rank :: self.processes]).tolist()

    def draws(self) -> list[int]:
        """Return the dataset number of each batch; the first ones do not depend on the number of batches."""
        # Borders of the shares of datasets between 0 and 1
        borders = np.cumsum(self.ratios) / np.sum(self.ratios)
        drawn = np.random.default_rng((self.seed, 0)).random(self.batches)
        # By rounding the last border may be below 1, and a draw above it.
        return np.minimum(np.searchsorted(borders, drawn, side="right"), len(borders) - 1).tolist()


class ConversationRows(PreparedRows):
    """Rows `{"messages": […], "cloud": {"points": (points, 3), …}}` of datasets such as `objaverse_captions`.

    Args:
        dataset: Rows with `points`, `colors` where the processor needs them, and `conversations`; or rows whose
            transform adds the clouds, as `load_point_dataset("objaverse_captions", copy_clouds=False)` gives them:
            then each process reads only the files of its own batches.
        processor: Processor, which defines the columns that are needed.
    """

    def __init__(self, dataset: Dataset, processor: ChatProcessor):
        clouds = ["points", *(ATTRIBUTES[name] for name in processor.feature_extractor.features[1:])]
        # A custom format reads clouds from their files, row by row; other rows are in Arrow tables, read in one step.
        self._whole = dataset if dataset.format["type"] == "custom" else None
        names = list(dataset[0]) if self._whole is not None else dataset.column_names
        self._columns = [name for name in clouds if name in names]
        if self._whole is None:
            self._clouds = ArrowRows(dataset.select_columns(self._columns))
            self._turns = dataset.select_columns([_TURNS]).with_format(None)
        self._size = len(dataset)

    def __len__(self) -> int:
        return self._size

    def prepare(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows with these numbers, read together."""
        # Clouds in files are read with their conversations, a row at a time.
        if self._whole is not None:
            rows = self._whole.__getitems__(numbers)
            return [
                {"messages": training_messages(row[_TURNS]), "cloud": {name: row[name] for name in self._columns}}
                for row in rows
            ]
        turns = self._turns.__getitems__(numbers)
        return [
            {"messages": training_messages(turn[_TURNS]), "cloud": cloud}
            for turn, cloud in zip(turns, self._clouds.__getitems__(numbers), strict=True)
        ]


class ConversationCollator:
    """Collate rows to a batch of token ids, points, and labels of the answers."""

    def __init__(self, processor: ChatProcessor):
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `(rows, tokens)` and `points` `(rows, points, channels)`."""
        batch: Any = self.processor.apply_chat_template(
            [row["messages"] for row in rows],
            tokenize=True,
            return_labels=True,
            point_clouds=[[row["cloud"]] for row in rows],
        )
        return dict(batch)


class CaptionedDataset(ProcessedDataset):
    """Rows `{"points", "label", "text_embeds": (width,)}` for contrastive training.

    With a `seed` each epoch draws one of a row's `texts`, which the tower embeds once; without one it is the first.
    The other arguments are those of `ProcessedDataset`.
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
        # Many rows share their texts, such as those of a class, and each is embedded once.
        occurring: set[str] = set()
        for of_row in texts:
            occurring.update(of_row)
        distinct = sorted(occurring)
        number = {text: place for place, text in enumerate(distinct)}
        self.numbers = []
        for of_row in texts:
            self.numbers.append(np.array([number[text] for text in of_row]))
        self.vectors = embed_texts(tower, distinct)

    def prepare(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows with these numbers, each with the embedding of its text."""
        rows = super().prepare(numbers)
        for number, row in zip(numbers, rows, strict=True):
            texts = self.numbers[number]
            drawn = 0
            if self.seed is not None:
                # A separate generator, so that texts do not change the points.
                drawn = np.random.default_rng([self.seed, self.epoch, number, 1]).integers(len(texts))
            row["text_embeds"] = self.vectors[texts[drawn]]
        return rows


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

    Class names in addition to captions would pull all clouds of a class together, which generalizes less. Captions
    that contain a forbidden word, the name of a held-out class, are not used.
    """
    # Whole words, so that "car" does not forbid "carpet".
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
