"""The embedded shapes with conversations about them, as a folder laid out like PointLLM's data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from datasets import Dataset
from shape_conversations import (
    TOPICS,
    Conversation,
    annotation,
    brief,
    detailed,
    multi_round,
    reference_captions,
    single_round,
)
from shape_facts import ShapeFacts, facts_of
from training_runs import write_text

from hf_any3d.data.catalog.objaverse_captions import COMPLEX, FILTERED, NUM_POINTS, TEST, cloud_path

BRIEF_OF_A_SHAPE, DETAILED_OF_A_SHAPE, SINGLE_OF_A_SHAPE, MULTI_OF_A_SHAPE = 2, 1, 3, 1
"""How many conversations of each kind a training shape has."""


def object_id(split: str, number: int) -> str:
    """What a shape of the embedded set is called in the tree; none of two splits share a name."""
    return f"shape-{split}-{number:03d}"


def all_facts(rows: Dataset) -> list[ShapeFacts]:
    """What is true of each of the embedded shapes."""
    names, rows = rows.features["label"].names, rows.with_format("numpy")
    return [facts_of(row["points"], row["colors"], names[row["label"]]) for row in rows]


def conversations_about(facts: ShapeFacts, random: Random) -> list[Conversation]:
    """What is said about a training shape: brief captions first."""
    topics = random.sample(list(TOPICS), SINGLE_OF_A_SHAPE)
    return [
        *(brief(facts, random) for _ in range(BRIEF_OF_A_SHAPE)),
        *(detailed(facts, random) for _ in range(DETAILED_OF_A_SHAPE)),
        *(single_round(facts, random, topic) for topic in topics),
        *(multi_round(facts, random) for _ in range(MULTI_OF_A_SHAPE)),
    ]


def write_tree(folder: Path, train: Dataset, test: Dataset, seed: int = 0) -> Path:
    """Write clouds and annotation files; a folder that is there is complete and stays as it is.

    Clouds of that layout have 8,192 points, so those of the shapes are repeated, whole and in their order: the first
    1,024 are the shape.

    Args:
        folder: What becomes the `data_dir` of `load_point_dataset("objaverse_captions", verify=False)`.
        train: Rows of the embedded shapes to learn from.
        test: Those to be judged on; nothing in the training files is about them.
        seed: Governs wording.

    Raises:
        ValueError: A cloud's number of points does not divide 8,192.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    random = Random(seed)
    entries: dict[str, list[dict[str, object]]] = {FILTERED: [], COMPLEX: [], TEST: []}
    for number, facts in enumerate(all_facts(train)):
        for conversation in conversations_about(facts, random):
            name = FILTERED if conversation.kind == "simple_description" else COMPLEX
            entries[name].append(annotation(object_id("train", number), conversation))
    for number, facts in enumerate(all_facts(test)):
        caption = reference_captions(facts)["simple_description"]
        told = Conversation("simple_description", (("What is this?", caption),))
        entries[TEST].append(annotation(object_id("test", number), told))
    for name, some in entries.items():
        write_text(part / "anno_data" / name, json.dumps(some, indent=1))
    for split, rows in (("train", train), ("test", test)):
        _write_clouds(part / f"{NUM_POINTS}_npy", split, rows)
    part.rename(folder)
    return folder


def _write_clouds(folder: Path, split: str, rows: Dataset) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows.with_format("numpy")):
        count = len(row["points"])
        if NUM_POINTS % count:
            raise ValueError(f"shape {number} of {split} has {count} points; expected a divisor of {NUM_POINTS}")
        table = np.concatenate([row["points"], row["colors"] / np.float32(255)], axis=1).astype(np.float32)
        np.save(cloud_path(folder, object_id(split, number)), np.tile(table, (NUM_POINTS // count, 1)))


def shapes_in(annotations: Sequence[dict[str, object]]) -> set[str]:
    """The objects that entries are about."""
    return {str(entry["object_id"]) for entry in annotations}
