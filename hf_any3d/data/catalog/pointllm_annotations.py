"""What PointLLM's annotation files say about objects of Objaverse."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from hf_any3d.data.benchmarks.json_entries import read_entry, scan_entries
from hf_any3d.data.files import PointCloudError, PointCloudFileError

TYPES = ("simple_description", "detailed_description", "single_round", "multi_round")
SPEAKERS = ("human", "gpt")
POINT = "<point>"
"""Stands in the first question where the cloud belongs."""

CLASSIFICATION_QUESTIONS = ("What is this?", "This is an object of ")
"""What generative classification asks, an instruction and the start of a sentence with its blank at the end."""

CAPTION_QUESTION = "Caption this 3D model in detail."

_IDENTIFIER = re.compile(r"[A-Za-z0-9@_-][A-Za-z0-9@._-]{0,127}")


class Annotation(NamedTuple):
    """Where an entry of an annotation file lies.

    Attributes:
        number: its place in the array.
        start: its first byte.
        stop: the byte behind it.
        object_id: of the object; empty where the entry is not sound.
        type: of the conversation, one of `TYPES`; empty where the entry is not sound.
    """

    number: int
    start: int
    stop: int
    object_id: str
    type: str


def list_annotations(path: Path) -> list[Annotation]:
    """Find the entries of an annotation file; their texts stay in the file.

    Raises:
        PointCloudFileError: no such file, or no JSON array; says where.
    """
    types = {name: name for name in TYPES}
    found = []
    for number, start, stop, value in scan_entries(path):
        try:
            row = annotation_row(value)
            identifier, type_ = row["object_id"], types[row["conversation_type"]]
        except PointCloudError:
            identifier = type_ = ""  # reading it says what is wrong
        found.append(Annotation(number, start, stop, identifier, type_))
    return found


def read_annotation(path: Path, annotation: Annotation) -> dict[str, object]:
    """Read `object_id`, `conversation_type` and `conversations` of an entry.

    Raises:
        PointCloudFileError: the entry is not sound; names file, entry and byte.
    """
    value = read_entry(path, annotation.start, annotation.stop)
    try:
        return annotation_row(value)
    except PointCloudError as error:
        place = f"entry {annotation.number} (byte {annotation.start:,})"
        raise PointCloudFileError(f"{path}: {place}: {error}") from None


def annotation_row(value: object) -> dict[str, object]:
    """Check an entry: an object, and questions and answers about it in turn.

    Raises:
        PointCloudError: a field is missing or of another kind.
    """
    if not isinstance(value, dict):
        raise PointCloudError(f"{_short(value)}; expected an object with object_id and conversations")
    identifier = value.get("object_id")
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        raise PointCloudError(f"object_id is {_short(identifier)}; expected letters and digits")
    kind = value.get("conversation_type", TYPES[0])
    if kind not in TYPES:
        raise PointCloudError(f"conversation_type is {_short(kind)}; expected one of {', '.join(TYPES)}")
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        count = f"{len(turns)} turns" if isinstance(turns, list) else _short(turns)
        raise PointCloudError(f"conversations is {count}; expected questions and answers in turn")
    return {
        "object_id": identifier,
        "conversation_type": kind,
        "conversations": [_turn(turn, number) for number, turn in enumerate(turns)],
    }


def _turn(turn: object, number: int) -> dict[str, str]:
    speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if speaker != SPEAKERS[number % 2]:
        raise PointCloudError(f"turn {number} is from {_short(speaker)}; expected {SPEAKERS[number % 2]}")
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise PointCloudError(f"turn {number} has value {_short(text)}; expected text") from None
    return {"from": speaker, "value": text}


def to_messages(conversations: Iterable[Mapping[str, str]]) -> list[dict[str, object]]:
    """Turn a stored conversation into the messages that chat templates take.

    The mark of the cloud becomes a part of type "point_cloud" before the text, and the line break beside it goes.

    Args:
        conversations: the column of that name in one row.

    Returns:
        Messages with `role`, "user" or "assistant", and `content`, a list of parts.
    """
    messages = []
    for turn in conversations:
        if turn["from"] == SPEAKERS[1]:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn["value"]}]})
            continue
        question = {"type": "text", "text": turn["value"].replace(POINT, "").strip("\n")}
        content = [{"type": "point_cloud"}, question] if POINT in turn["value"] else [question]
        messages.append({"role": "user", "content": content})
    return messages


def _short(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
