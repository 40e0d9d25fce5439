"""Asking a model one question about many clouds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from hf_any3d.atomic_files import write_json
from hf_any3d.chat.released_texts import released_answer, released_evaluation_answer
from hf_any3d.evaluation.questions import Protocol


def read_results(path: Path) -> dict[str, Any]:
    """Read a file `{"prompt": …, "results": [{"object_id", …}]}`, ours or one of the published programs.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It holds something else, or an object twice.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    results = stored.get("results") if isinstance(stored, dict) else None
    if not isinstance(results, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("object_id"), (str, int)) for entry in results
    ):
        raise ValueError(f'{path}: expected {{"prompt": …, "results": […]}} with an object_id in each result')
    if len({entry["object_id"] for entry in results}) < len(results):
        raise ValueError(f"{path}: an object_id is there twice; expected each object once")
    return stored


def continued(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results that an earlier run of the same kind left in a file; none where there is no file.

    Args:
        path: The file.
        header: What must be the same for results to be of the same kind.

    Raises:
        ValueError: The file is of another kind; says what differs.
    """
    if not path.is_file():
        return []
    stored = read_results(path)
    wanted = json.loads(json.dumps(dict(header)))
    for key, value in wanted.items():
        if stored.get(key) != value:
            raise ValueError(
                f"{path}: was made with {key} {stored.get(key)!r}, now it is {value!r}; expected the same or another "
                "folder"
            )
    return stored["results"]


Generate = Callable[[Sequence[np.ndarray], str, Mapping[str, Any]], Sequence[str]]
"""Clouds (points, 6), x, y, z as stored and colours from 0 to 1, a question and settings in; an answer each out."""

BATCH_SIZE = 15
"""Clouds that the published programs ask about together."""


def answer_question(
    rows: Dataset,
    protocol: Protocol,
    generate: Generate,
    path: Path,
    about: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """Ask a model about each row and keep its answers in a file, which is written after each batch.

    Rows that the file has answers for are not asked about again. Each batch has a seed of its own, so an interrupted
    run ends with the answers of one that was not.

    Args:
        rows: The clouds, with the columns of the protocol's dataset.
        protocol: What is asked.
        generate: The model.
        path: The file.
        about: Whose answers they are, such as `model` and `revision`.
        settings: How answers are generated, where it differs from the protocol.
        batch_size: Clouds that are asked about together.
        seed: Governs what is drawn.

    Returns:
        What the file holds: `prompt`, the question; `results` with `object_id`, `ground_truth`, `model_output` and,
        with classes, `label_name`; `protocol`, `settings` and all of `about`.

    Raises:
        ValueError: The file holds answers of another model or to other rows, or the model leaves a cloud out.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    settings = {**protocol.settings, **(settings or {})}
    drawn = {"settings": settings, "batch_size": batch_size, "seed": seed}
    header = {"prompt": protocol.question, "protocol": protocol.name, **about, **drawn}
    items = protocol.items(rows)
    results = continued(path, header)
    if [entry["object_id"] for entry in results] != [item["object_id"] for item in items[: len(results)]]:
        raise ValueError(f"{path}: has answers about other objects; expected those asked about now, or another folder")
    stored = header | {"results": results}
    starts = range(len(results), len(items), batch_size)
    for start in tqdm(starts, desc=protocol.name, unit="batch", disable=not starts):
        batch = items[start : start + batch_size]
        torch.manual_seed(seed + start)
        texts = generate(
            [colored_cloud(rows[start + place]) for place in range(len(batch))], protocol.question, settings
        )
        if len(texts) != len(batch):
            raise ValueError(f"{protocol.name}: {len(batch)} clouds have {len(texts)} answers; expected one each")
        # As the published programs store them: small letters, up to the end mark.
        texts = [released_evaluation_answer(released_answer(text)) for text in texts]
        results += [item | {"model_output": text} for item, text in zip(batch, texts, strict=True)]
        write_json(path, stored)
    return stored


def colored_cloud(row: Mapping[str, Any]) -> np.ndarray:
    """A row as one array (points, 6), neither centred nor scaled; without colours it is black."""
    points = np.asarray(row["points"], np.float32)
    colors = np.zeros_like(points) if row.get("colors") is None else np.asarray(row["colors"], np.float32)
    return np.concatenate([points[:, :3], colors], axis=1)
