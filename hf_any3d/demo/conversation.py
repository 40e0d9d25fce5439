"""What one visitor of the page talks about, and how far the talk has come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from hf_any3d.chat import ChatSession
from hf_any3d.chat.generation import Cancelled
from hf_any3d.data.files import PointCloudData, read_point_cloud

from hf_any3d.demo.uploads import read_upload
from hf_any3d.processing import PointCloudProcessor

CONTEXT = 400
"""Tokens of a conversation in the released demo, including the next answer."""
LONGEST_QUESTION = 2_000
"""Characters; counting the tokens of a longer one would keep everybody waiting."""
_SAMPLED = {"random": "drawn at random", "farthest": "spread evenly", "first": "the first"}


@dataclass(frozen=True)
class Shape:
    """A shape as the model gets it.

    Attributes:
        points: `(num_points, 3)`, or `(num_points, 6)` with colours in [0, 1] where the file has them and the model
            looks at them.
        note: How these points came from the file.
    """

    points: np.ndarray
    note: str


class Conversation:
    """A visitor's conversation; each visitor has one.

    Args:
        pipe: A `pipeline("point-cloud-text-to-text")`, which all visitors share.
        chat_template: Name of the processor's template; its default if left out.
        context: Tokens that the conversation may have, with the longest answer's. Where the language model takes
            fewer, it is those.
    """

    def __init__(self, pipe: Any, chat_template: str | None = None, context: int = CONTEXT):
        self.pipe, self.chat_template = pipe, chat_template
        room = getattr(pipe.model.config.get_text_config(), "max_position_embeddings", None)
        self.context = context if room is None else min(context, room)
        self._session: ChatSession | None = None
        self._stopped = Event()
        self._read: tuple[str, PointCloudData | Exception] | None = None

    def read(self, path: str | os.PathLike) -> None:
        """Read a visitor's file, apart from the model.

        `open` then takes what was read, or raises what was wrong: that it cannot be read, is too large, or takes too
        long.
        """
        try:
            self._read = (os.fspath(path), read_upload(path))
        except (ValueError, OSError) as error:
            self._read = (os.fspath(path), error)

    def open(self, source: str | os.PathLike | PointCloudData) -> Shape:
        """Take a shape, or read it from a file, and begin to talk about it.

        Raises:
            ValueError: If it cannot be read, in words that name the file; what was talked about stays.
        """
        try:
            cloud = source if isinstance(source, PointCloudData) else self._take(source)
            points = self.pipe.processor.read_points([cloud])[0]  # (num_points, channels)
            self._session = ChatSession(self.pipe, cloud, self.chat_template)
        except ValueError as error:
            raise ValueError(_named(error, source)) from error
        processor = self.pipe.processor.feature_extractor
        shown = [points[:, :3]]
        if "rgb" in processor.features and _has_colors(cloud):
            start = 3 * processor.features.index("rgb")
            shown.append(points[:, start : start + 3])
        return Shape(np.concatenate(shown, axis=1), _note(cloud, processor))

    def ready(self) -> None:
        """Let the next answer run; a `stop` from now on counts for it."""
        self._stopped.clear()

    def stop(self) -> None:
        """End the present answer, or the one that waits for its turn, after its next word."""
        self._stopped.set()

    @property
    def was_stopped(self) -> bool:
        """Whether the last answer was."""
        return self._stopped.is_set()

    def make_room(self, question: str, max_new_tokens: int) -> int:
        """Forget the oldest questions until another and its answer fit into the context; the shape is kept.

        Returns:
            How many were forgotten.

        Raises:
            ValueError: If there is no shape, or the question is too long.
        """
        session = self._opened()
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"the question has {len(question):,} characters; expected at most {LONGEST_QUESTION:,}")
        return session.make_room(question, self.context - max_new_tokens)

    def ask(self, question: str, **generation: Any) -> Iterator[str]:
        """Ask a question; the answer grows from piece to piece, but comes at once from several beams.

        What was said before a `stop` stays part of the conversation.

        Args:
            question: In words.
            **generation: Arguments of `generate`.

        Raises:
            ValueError: If there is no shape, or the language model has no room left.
        """
        session = self._opened()
        generation["stopping_criteria"] = [Cancelled(self._stopped)]
        if generation.get("num_beams", 1) > 1:
            yield session.ask(question, **generation)
            return
        answer = ""
        for piece in session.stream(question, **generation):
            answer += piece
            yield answer

    def restart(self) -> None:
        """Forget what was said, but not the shape."""
        if self._session is not None:
            self._session.restart()

    def _take(self, path: str | os.PathLike) -> PointCloudData:
        """What `read` has read of a file, or else the file."""
        read, self._read = self._read, None
        if read is None or read[0] != os.fspath(path):
            return read_point_cloud(path)
        if isinstance(read[1], Exception):
            raise read[1]
        return read[1]

    def _opened(self) -> ChatSession:
        if self._session is None:
            raise ValueError("there is nothing to talk about yet; choose a shape")
        return self._session


def _named(error: Exception, source: str | os.PathLike | PointCloudData) -> str:
    """What went wrong, beginning with the name of the file, but without the folder where uploads lie."""
    if isinstance(source, PointCloudData):
        return str(error)
    name = os.path.basename(source)
    told = str(error).replace(os.fspath(source), name)
    return told if name in told else f"{name}: {told}"


def _has_colors(cloud: PointCloudData) -> bool:
    return cloud.colors is not None or cloud.face_colors is not None


def _note(cloud: PointCloudData, processor: PointCloudProcessor) -> str:
    count, wanted = len(cloud), processor.num_points
    if cloud.is_mesh:
        told = f"{wanted:,} points on the surface of a mesh"
    elif count > wanted:
        told = f"{wanted:,} of {count:,} points, {_SAMPLED[processor.sampling]}"
    elif count < wanted:
        told = f"{count:,} points, repeated up to {wanted:,}"
    else:
        told = f"{count:,} points"
    if "rgb" in processor.features and not _has_colors(cloud):
        shade = "black" if not any(processor.default_rgb or ()) else f"in colour {processor.default_rgb}"
        told += f". The file has no colours: the model sees it {shade}, here colours show height"
    return told + "."
