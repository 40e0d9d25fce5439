"""The conversation of one visitor of the page: a shape, questions, answers, and a way to stop them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from hf_any3d.chat import ChatSession
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.inputs import first_channel
from hf_any3d.demo.uploads import Uploads
from hf_any3d.tasks.chat.generation import Canceled

CONTEXT = 400
"""Tokens of a conversation in the released demo, including the next answer."""
LONGEST_QUESTION = 2_000
"""In characters; counting the tokens of longer ones would block other visitors."""
_SAMPLED = {"random": "drawn at random", "farthest": "spread evenly", "first": "the first"}


@dataclass(frozen=True)
class Shape:
    """A shape as input of the model, and a note on how its points were made from the file.

    The points are `(num_points, 3)`, or `(num_points, 6)` with colors in [0, 1] if file and model have them.
    """

    points: np.ndarray
    note: str


class Conversation(Uploads):
    """A visitor's conversation with a pipeline that all visitors share.

    `context` is the maximum number of tokens of the conversation, including the next answer; at most those of the
    language model.
    """

    def __init__(self, pipe: Any, chat_template: str | None = None, context: int = CONTEXT):
        super().__init__()
        self.pipe = pipe
        self.chat_template = chat_template
        longest = getattr(pipe.model.config.get_text_config(), "max_position_embeddings", None)
        self.context = context if longest is None else min(context, longest)
        self._session: ChatSession | None = None
        self._stopped = Event()

    def open(self, source: str | os.PathLike | PointCloudData) -> Shape:
        """Start a conversation about a shape or file."""
        # Read before by another process, if it is a visitor's file
        cloud = self.cloud_of(source)
        points = self.pipe.processor.read_points([cloud])[0]  # (num_points, channels)
        # The questions about the shape before are forgotten.
        self._session = ChatSession(self.pipe, cloud, self.chat_template)
        processor = self.pipe.processor.feature_extractor
        # Points as the model gets them, which may be fewer than those of the file
        shown = [points[:, :3]]
        if "rgb" in processor.features and _has_colors(cloud):
            # Where the colors begin, behind xyz and whatever comes before them
            start = first_channel(processor.features, "rgb")
            shown.append(points[:, start : start + 3])
        count = len(cloud)
        wanted = processor.num_points
        if cloud.is_mesh:
            note = f"{wanted:,} points on the surface of a mesh"
        elif count > wanted:
            note = f"{wanted:,} of {count:,} points, {_SAMPLED[processor.sampling]}"
        elif count < wanted:
            note = f"{count:,} points, repeated up to {wanted:,}"
        else:
            note = f"{count:,} points"
        if "rgb" in processor.features and not _has_colors(cloud):
            color = "black" if not any(processor.default_rgb or ()) else f"in color {processor.default_rgb}"
            note += f". The file has no colors: the model sees it {color}, here colors show height"
        return Shape(np.concatenate(shown, axis=1), note + ".")

    def ready(self) -> None:
        """Allow the next answer; later calls of `stop` apply to it."""
        self._stopped.clear()

    def stop(self) -> None:
        """Stop the current answer, or the queued one, after its next token."""
        self._stopped.set()

    @property
    def was_stopped(self) -> bool:
        """True if the last answer was stopped."""
        return self._stopped.is_set()

    def make_room(self, question: str, max_new_tokens: int) -> int:
        """Remove the oldest questions until another and its answer fit into the context; return their number."""
        session = self._opened()
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"the question has {len(question):,} characters; expected at most {LONGEST_QUESTION:,}")
        return session.make_room(question, self.context - max_new_tokens)

    def ask(self, question: str, **generation: Any) -> Iterator[str]:
        """Ask a question and yield the growing answer; with several beams it comes at once.

        A stopped answer stays in the conversation.
        """
        session = self._opened()
        # The visitor's button sets the event from another thread.
        generation["stopping_criteria"] = [Canceled(self._stopped)]
        # Another beam may win at any step, so there is nothing to stream.
        if generation.get("num_beams", 1) > 1:
            yield session.ask(question, **generation)
            return
        answer = ""
        for piece in session.stream(question, **generation):
            answer += piece
            yield answer

    def restart(self) -> None:
        """Forget the conversation, but not the shape."""
        if self._session is not None:
            self._session.restart()

    def _opened(self) -> ChatSession:
        if self._session is None:
            raise ValueError("choose a shape first")
        return self._session


def _has_colors(cloud: PointCloudData) -> bool:
    return cloud.colors is not None or cloud.face_colors is not None
