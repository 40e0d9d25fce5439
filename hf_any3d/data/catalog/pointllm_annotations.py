"""Read PointLLM's annotation files: captions and conversations about objects of Objaverse."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hf_any3d.data.files import PointCloudError, PointCloudFileError, file_errors

TYPES = ("simple_description", "detailed_description", "single_round", "multi_round")
SPEAKERS = ("human", "gpt")
POINT = "<point>"
"""Marks the place of the cloud in the first question."""

CLASSIFICATION_QUESTIONS = ("What is this?", "This is an object of ")
"""Questions of generative classification: an instruction, and the start of a sentence with a blank at its end."""

CAPTION_QUESTION = "Caption this 3D model in detail."

_IDENTIFIER = re.compile(r"[A-Za-z0-9@_-][A-Za-z0-9@._-]{0,127}")

CHUNK_BYTES = 4 << 20
LONGEST_ENTRY = 1 << 20
"""Most characters of an entry; a longer one is refused as damage."""

_SPACE = re.compile(r"[ \t\n\r\ufeff]+")


class Annotation(NamedTuple):
    """The position of an entry in an annotation file.

    Attributes:
        number: its index in the array.
        start: its first byte.
        stop: the byte after it.
        object_id: of the object; empty for a malformed entry.
        type: of the conversation, one of `TYPES`; empty for a malformed entry.
    """

    number: int
    start: int
    stop: int
    object_id: str
    type: str


def list_annotations(path: Path) -> list[Annotation]:
    """Find the entries of an annotation file without keeping their texts.

    Raises:
        PointCloudFileError: no such file, or not a JSON array; names the byte.
    """
    # One text for each type, not one for each of 660 thousand entries.
    types = {name: name for name in TYPES}
    found = []
    for number, start, stop, value in scan_entries(path):
        try:
            row = annotation_row(value)
            identifier, type_ = row["object_id"], types[row["conversation_type"]]
        except PointCloudError:
            identifier = type_ = ""  # `read_annotation` raises the error
        found.append(Annotation(number, start, stop, identifier, type_))
    return found


def read_annotation(path: Path, annotation: Annotation) -> dict[str, Any]:
    """Read `object_id`, `conversation_type` and `conversations` of an entry.

    Raises:
        PointCloudFileError: a malformed entry; names file, entry and byte.
    """
    value = read_entry(path, annotation.start, annotation.stop)
    with file_errors(f"{path}: entry {annotation.number} (byte {annotation.start:,})"):
        return annotation_row(value)


def annotation_row(value: object) -> dict[str, Any]:
    """Check an entry: an object with alternating questions and answers.

    Raises:
        PointCloudError: a field is missing or of another type.
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
        raise PointCloudError(f"conversations is {count}; expected alternating questions and answers")
    return {
        "object_id": identifier,
        "conversation_type": kind,
        "conversations": [_turn(turn, number) for number, turn in enumerate(turns)],
    }


def _turn(turn: object, number: int) -> dict[str, str]:
    fields = turn if isinstance(turn, dict) else {}
    speaker = fields.get("from")
    text: Any = fields.get("value")
    if speaker != SPEAKERS[number % 2]:
        raise PointCloudError(f"turn {number} is from {_short(speaker)}; expected {SPEAKERS[number % 2]}")
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise PointCloudError(f"turn {number} has value {_short(text)}; expected text") from None
    return {"from": SPEAKERS[number % 2], "value": text}


def to_messages(conversations: Iterable[Mapping[str, str]]) -> list[dict[str, object]]:
    """Convert a stored conversation to messages for chat templates.

    `POINT` becomes an item of type "point_cloud" before the text; line breaks around it are removed.

    Args:
        conversations: the column of that name in one row.

    Returns:
        Messages with `role`, "user" or "assistant", and `content`, a list of items.
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


class Entry(NamedTuple):
    """An entry of a JSON array.

    Attributes:
        number: its index.
        start: its first byte in the file.
        stop: the byte after it.
        value: the decoded entry.
    """

    number: int
    start: int
    stop: int
    value: object


def scan_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file with one JSON array.

    Raises:
        PointCloudFileError: no such file, not UTF-8, not an array, or damage; names the entry and the byte.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise PointCloudFileError(f"{path}: no such file") from None
    with file:
        window = _Window(file, path)
        window.skip_space()
        if window.next() != "[":
            raise window.error(f"starts with {window.next()!r}; expected [, a JSON array")
        window.advance(1)
        window.skip_space()
        number = 0
        # Only an empty array ends here: after a comma there has to be an entry.
        while number or window.next() != "]":
            start = window.offset
            value = window.decode(number)
            yield Entry(number, start, window.offset, value)
            window.skip_space()
            if window.next() == "]":
                break
            if window.next() != ",":
                raise window.error(f"{window.next()!r} after entry {number}; expected a comma or ]")
            window.advance(1)
            window.skip_space()
            number += 1
        window.advance(1)
        window.skip_space()
        if window.next():
            raise window.error(f"{window.next()!r} after the array; expected the end of the file")


def read_entry(path: Path, start: int, stop: int) -> object:
    """Read one entry again, from its `start` to its `stop`.

    Raises:
        PointCloudFileError: the file has changed.
        FileNotFoundError: the file no longer exists.
    """
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise PointCloudFileError(f"{path}: no entry at byte {start:,}; the file has changed since") from None


class _Window:
    """A decoded section of a file, at least as long as an entry, except at the end of the file."""

    def __init__(self, file: BinaryIO, path: Path):
        self.offset = 0  # bytes of the file before `_place`
        self._file, self._path = file, path
        self._text, self._place = "", 0
        # Chunks may end in the middle of a character.
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._ended = False
        self._json = json.JSONDecoder()

    def next(self) -> str:
        """Return the next character, or an empty string at the end."""
        self._fill()
        return self._text[self._place : self._place + 1]

    def advance(self, count: int) -> None:
        # Offsets count bytes, so that an entry can be read again without the ones before it.
        passed = self._text[self._place : self._place + count]
        self.offset += len(passed.encode())
        self._place += len(passed)

    def skip_space(self) -> None:
        while self.next() and (found := _SPACE.match(self._text, self._place)):
            self.advance(found.end() - self._place)

    def decode(self, number: int) -> object:
        self._fill()
        try:
            value, end = self._json.raw_decode(self._text, self._place)
        except json.JSONDecodeError as error:
            self.advance(error.pos - self._place)
            raise self.error(f"entry {number} is not valid JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise self.error(f"entry {number} is not valid JSON ({str(error)[:60]})") from None
        self.advance(end - self._place)
        return value

    def error(self, text: str) -> PointCloudFileError:
        return PointCloudFileError(f"{self._path}: byte {self.offset:,}: {text}")

    def _fill(self) -> None:
        # The decoder needs a complete entry in the window.
        if self._ended or len(self._text) - self._place >= LONGEST_ENTRY:
            return
        parts = [self._text[self._place :]]
        size = len(parts[0])
        while not self._ended and size < LONGEST_ENTRY:
            data = self._file.read(CHUNK_BYTES)
            self._ended = not data
            try:
                parts.append(self._utf8.decode(data, final=self._ended))
            except UnicodeDecodeError as error:
                # `error.object` begins with bytes left over from the chunk before.
                byte = self._file.tell() - len(error.object) + error.start
                raise PointCloudFileError(f"{self._path}: byte {byte:,} is not UTF-8 text") from None
            size += len(parts[-1])
        self._text, self._place = "".join(parts), 0
