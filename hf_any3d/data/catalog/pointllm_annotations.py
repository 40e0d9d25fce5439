"""Read PointLLM's annotation files: captions and conversations about objects of Objaverse."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_any3d.data.files import PointCloudError, file_errors
from hf_any3d.utils.messages import cut

TYPES = ("simple_description", "detailed_description", "single_round", "multi_round")
SPEAKERS = ("human", "gpt")
POINT = "<point>"
"""Marks the place of the cloud in the first question."""

CLASSIFICATION_QUESTIONS = ("What is this?", "This is an object of ")
"""Questions of generative classification: an instruction, and the start of a sentence with a blank at its end."""

CAPTION_QUESTION = "Caption this 3D model in detail."

# No slashes and no dot in front, since identifiers become names of files
_IDENTIFIER = re.compile(r"[A-Za-z0-9@_-][A-Za-z0-9@._-]{0,127}")

_SEPARATOR = re.compile(r"\s*([\[,\]])\s*")


class Annotation(NamedTuple):
    """An entry of an annotation file: its index, and its JSON, which takes a fraction of the memory of its values.

    `object_id` and `type`, one of `TYPES`, are empty for a malformed entry.
    """

    number: int
    text: str
    object_id: str
    type: str


def annotation_row(value: Any) -> dict[str, Any]:
    """Check an entry: an object with alternating questions and answers."""
    # An entry without a type is a brief description.
    identifier = value["object_id"]
    kind = value.get("conversation_type", TYPES[0])
    turns = [{"from": turn["from"], "value": turn["value"]} for turn in value["conversations"]]
    if not _IDENTIFIER.fullmatch(identifier) or kind not in TYPES:
        raise PointCloudError(
            f"object_id is {cut(identifier, 60)!r}, conversation_type {kind!r:.60}; expected letters and "
            f"digits, and one of {', '.join(TYPES)}"
        )
    speakers = [turn["from"] for turn in turns]
    are_texts = all(isinstance(turn["value"], str) for turn in turns)
    # Of an odd number of turns, the last question has no answer, and the lists differ in length.
    if not turns or speakers != [*SPEAKERS] * (len(turns) // 2) or not are_texts:
        raise PointCloudError(f"conversations of {speakers!r:.60}; expected questions and answers in turn")
    return {"object_id": identifier, "conversation_type": kind, "conversations": turns}


def to_messages(conversations: Iterable[Mapping[str, str]]) -> list[dict[str, object]]:
    """Convert a stored conversation to messages for chat templates.

    `POINT` becomes an item of type "point_cloud" before the text; line breaks around it are removed.
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


def scan_entries(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the entries of a file with one JSON array, each with its text.

    They are decoded one by one, since all values of a file of a gigabyte together would take several.
    """
    with file_errors(path, "JSON array"):
        text = path.read_text(encoding="utf-8-sig")
        decode = json.JSONDecoder().raw_decode
        separator = _SEPARATOR.match(text)
        if separator is None or separator[1] != "[":
            raise PointCloudError(f"not a JSON array: it starts with {text[:20]!r}; expected [")
        while separator is not None and separator[1] != "]":
            start = separator.end()
            # `raw_decode` reads one value and tells where it ends.
            value, stop = decode(text, start)
            yield value, text[start:stop]
            separator = _SEPARATOR.match(text, stop)
        if separator is None or text[separator.end() :]:
            raise PointCloudError("no end of the array after an entry, or text after it; the file may be cut off")
