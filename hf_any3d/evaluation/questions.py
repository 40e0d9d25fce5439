"""What is asked about which clouds: the published protocols of generative classification and captioning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from datasets import Dataset

from hf_any3d.chat.generation import PUBLISHED_GENERATION
from hf_any3d.data.catalog.pointllm_annotations import CAPTION_QUESTION, CLASSIFICATION_QUESTIONS

KINDS = ("class", "same", "caption")
_MODELNET = MappingProxyType(PUBLISHED_GENERATION["modelnet40"])
_OBJAVERSE = MappingProxyType(PUBLISHED_GENERATION["objaverse"])


@dataclass(frozen=True)
class Protocol:
    """One question to a model about the clouds of one benchmark, and how answers are judged.

    Args:
        name: How it is called in commands, files and tables.
        question: What the model is asked.
        dataset: Name of the benchmark in the catalogue.
        kind: How answers are judged: "class", which of the benchmark's classes the answer speaks of; "same", whether
            it names the same kind of object as the caption; "caption", how much of the caption it mentions.
        settings: How the answer is generated.
        options: Options of the dataset.
    """

    name: str
    question: str
    dataset: str
    kind: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def items(self, rows: Dataset) -> list[dict[str, Any]]:
        """What is known of each row before a model is asked: `object_id`, `ground_truth`, and with classes their name.

        Raises:
            ValueError: A column is missing, or one object is there twice.
        """
        truth = "label" if self.kind == "class" else "caption"
        if missing := {"object_id", truth} - set(rows.column_names):
            raise ValueError(f"{self.name}: the rows have no {', '.join(sorted(missing))}; see {self.dataset}")
        texts = rows.select_columns(["object_id", truth]).with_format(None)
        items = [{"object_id": row["object_id"], "ground_truth": row[truth]} for row in texts]
        if len({item["object_id"] for item in items}) < len(items):
            raise ValueError(f"{self.name}: an object_id is there twice; expected rows of different objects")
        if self.kind == "class":
            names = self.class_names(rows)
            items = [item | {"label_name": names[item["ground_truth"]]} for item in items]
        return items

    @staticmethod
    def class_names(rows: Dataset) -> list[str]:
        """The classes of rows, in words."""
        return list(rows.features["label"].names)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "modelnet40-instruction", CLASSIFICATION_QUESTIONS[0], "modelnet40_generative", "class", _MODELNET,
            {"question": 0},
        ),
        Protocol(
            "modelnet40-completion", CLASSIFICATION_QUESTIONS[1], "modelnet40_generative", "class", _MODELNET,
            {"question": 1},
        ),
        Protocol(
            "objaverse-instruction", CLASSIFICATION_QUESTIONS[0], "objaverse_captions", "same", _OBJAVERSE,
            {"splits": ["test"]},
        ),
        Protocol(
            "objaverse-completion", CLASSIFICATION_QUESTIONS[1], "objaverse_captions", "same", _OBJAVERSE,
            {"splits": ["test"]},
        ),
        Protocol(
            "objaverse-caption", CAPTION_QUESTION, "objaverse_captions", "caption", _OBJAVERSE, {"splits": ["test"]}
        ),
    )
}  # fmt: skip
"""The protocols of PointLLM and MiniGPT-3D, by name."""


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: There is none; says which there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
