"""Ask a model the published questions about clouds, and keep its answers in a file."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_any3d.data.catalog.pointllm_annotations import CAPTION_QUESTION, CLASSIFICATION_QUESTIONS
from hf_any3d.data.files.attributes import unit_colors
from hf_any3d.processing.chat_messages import released_answer, released_evaluation_answer
from hf_any3d.tasks.chat.generation import PUBLISHED_GENERATION
from hf_any3d.utils.atomic_files import write_json
from hf_any3d.utils.progress import progress_bar

KINDS = ("class", "same", "caption")
_CLOUD = "cloud_sha256"
BATCH_SIZE = 15
"""Clouds per batch in the published programs."""

Generate = Callable[[Sequence[np.ndarray], str, Mapping[str, Any]], Sequence[str]]
"""From clouds (points, 6), xyz as stored and colors from 0 to 1, a question and settings to an answer for each."""


@dataclass(frozen=True)
class Protocol:
    """A question to a model about the clouds of one dataset, and how answers are judged.

    Args:
        name: Name in commands, files and tables.
        question: The question.
        dataset: Name of the dataset in the catalog.
        kind: How answers are judged: "class", which of the dataset's classes the answer means; "same", whether it
            names the same kind of object as the caption; "caption", how much of the caption it mentions.
        settings: Settings of generation.
        options: Options of the dataset.
    """

    name: str
    question: str
    dataset: str
    kind: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def items(self, rows: Dataset) -> list[dict[str, Any]]:
        """Return `object_id` and `ground_truth` of each row, and `label_name` for classes."""
        truth = "label" if self.kind == "class" else "caption"
        # Without the clouds, which would be read for nothing
        texts: Any = rows.select_columns(["object_id", truth]).with_format(None)
        items = [{"object_id": row["object_id"], "ground_truth": row[truth]} for row in texts]
        # Verdicts find their answers by the id of the object.
        if len({item["object_id"] for item in items}) < len(items):
            raise ValueError(f"{self.name}: an object_id occurs twice; expected rows of different objects")
        if self.kind == "class":
            names = self.class_names(rows)
            items = [item | {"label_name": names[item["ground_truth"]]} for item in items]
        return items

    @staticmethod
    def class_names(rows: Dataset) -> list[str]:
        """Return the names of the classes of rows."""
        return list(rows.features["label"].names)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        *(
            Protocol(f"modelnet40-{form}", CLASSIFICATION_QUESTIONS[number], "modelnet40_generative", "class",
                     MappingProxyType(PUBLISHED_GENERATION["modelnet40"]), {"question": number})
            for number, form in enumerate(("instruction", "completion"))
        ),
        *(
            Protocol(f"objaverse-{form}", question, "objaverse_captions", kind,
                     MappingProxyType(PUBLISHED_GENERATION["objaverse"]), {"splits": ["test"]})
            for form, question, kind in (
                ("instruction", CLASSIFICATION_QUESTIONS[0], "same"),
                ("completion", CLASSIFICATION_QUESTIONS[1], "same"),
                ("caption", CAPTION_QUESTION, "caption"),
            )
        ),
    )
}  # fmt: skip
"""The protocols of PointLLM and MiniGPT-3D, by name."""


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


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

    Rows with an answer in the file are skipped. Each batch has a seed of its own, so a resumed run ends with the same
    answers as an uninterrupted one.

    Args:
        rows: The clouds, with the columns of the protocol's dataset.
        protocol: The question.
        generate: The model.
        path: The file.
        about: Facts about the model to store, such as `model` and `revision`.
        settings: Settings of generation that differ from the protocol.
        batch_size: Clouds per batch.
        seed: Random seed of sampled answers; each batch has its own.

    Returns:
        The content of the file: `prompt`, the question; `results` with `object_id`, `ground_truth`, `model_output`,
        `cloud_sha256`, the beginning of a digest of the cloud, and, for classes, `label_name`; `protocol`, `settings`
        and all of `about`.
    """
    settings = {**protocol.settings, **(settings or {})}
    sampling = {"settings": settings, "batch_size": batch_size, "seed": seed}
    header = {"prompt": protocol.question, "protocol": protocol.name, **about, **sampling}
    items = protocol.items(rows)
    # Refuses a file of another question, model or setting
    results = read_earlier_results(path, header)
    # Answers are stored batch by batch, so a file has those to the first rows, in their order.
    if [entry["object_id"] for entry in results] != [item["object_id"] for item in items[: len(results)]]:
        raise ValueError(f"{path} has answers about other objects; expected those asked about now, or another folder")
    for place, entry in enumerate(results):
        # Files of the published programs have no digests, and are taken as they are.
        if entry.get(_CLOUD, seen := _digest(colored_cloud(rows[place]))) != seen:
            raise ValueError(f"{path}: the answer about {entry['object_id']!r} is about another cloud of that name")
    # The same list, to which the loop adds
    stored = header | {"results": results}
    starts = range(len(results), len(items), batch_size)
    for start in progress_bar(starts, hidden=not starts, desc=protocol.name, unit="batch"):
        batch = items[start : start + batch_size]
        # Seeded for each batch, so that a resumed run gives the same answers as one in a single piece.
        torch.manual_seed(seed + start)
        clouds = [colored_cloud(rows[start + place]) for place in range(len(batch))]
        texts = generate(clouds, protocol.question, settings)
        # As the published programs store them: in lower case, up to the end mark.
        texts = [released_evaluation_answer(released_answer(text)) for text in texts]
        results += [
            item | {"model_output": text, _CLOUD: _digest(cloud)}
            for item, text, cloud in zip(batch, texts, clouds, strict=True)
        ]
        write_json(path, stored)
    return stored


def read_results(path: Path) -> dict[str, Any]:
    """Read a file `{"prompt": …, "results": [{"object_id", …}]}`, ours or of the published programs."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        # Verdicts and answers are found again by these names.
        names = [entry["object_id"] for entry in stored["results"]]
        if len(set(names)) < len(names):
            raise ValueError("an object_id occurs twice; expected each object once")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path}: expected {{"prompt": …, "results": […]}} with an object_id in each result ({error})'
        ) from error
    return stored


def read_earlier_results(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of an earlier run with the same header; none if there is no file."""
    if not path.is_file():
        return []
    stored = read_results(path)
    # As a file would hold it: tuples become lists, and numbers as keys text.
    for key, value in json.loads(json.dumps(dict(header))).items():
        if stored.get(key) != value:
            raise ValueError(f"{path} was made with {key} {stored.get(key)!r}, now {value!r}; use another folder")
    return stored["results"]


def _digest(cloud: np.ndarray) -> str:
    # 64 bits are enough to tell the clouds of a dataset apart.
    return hashlib.sha256(np.ascontiguousarray(cloud).data).hexdigest()[:16]


def colored_cloud(row: Mapping[str, Any]) -> np.ndarray:
    """Return a row as one array (points, 6), neither centered nor scaled; black if it has no colors."""
    points = np.asarray(row["points"], np.float32)[:, :3]
    colors = np.zeros_like(points) if row.get("colors") is None else unit_colors(np.asarray(row["colors"]))
    return np.concatenate([points, colors], axis=1)
