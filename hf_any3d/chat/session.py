"""ChatSession: a conversation that goes on, of which no token is read twice."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import torch
from transformers import DynamicCache

from hf_any3d.chat.answering import Answerer
from hf_any3d.chat.generation import AnswerStreamer, Cancelled
from hf_any3d.chat.messages import take_clouds


class ChatSession:
    """A conversation about point clouds.

    Each cloud is read and encoded once. What the language model has read stays in its cache as long as the
    conversation goes on where it ended; an answer is the one that the whole conversation gives at once.

    Args:
        pipe: A `pipeline("point-cloud-text-to-text")`.
        cloud: What is talked about: a path, an array, or whatever the pipeline takes. None for a conversation whose
            first cloud comes later, with a question.
        chat_template: Name of the processor's template; its default if left out.
        **generation: Arguments of `generate` for all answers.

    Attributes:
        messages: What was said, in the form that the pipeline takes.

    Example:
        ```python
        session = ChatSession(pipeline("point-cloud-text-to-text", model="me/minigpt3d"), "chair.ply")
        session.ask("What is this?")
        for piece in session.stream("What color is it?"):
            print(piece, end="", flush=True)
        ```
    """

    def __init__(self, pipe: Any, cloud: Any = None, chat_template: str | None = None, **generation: Any):
        self.pipe, self.chat_template, self.generation = pipe, chat_template, generation
        self.answerer: Answerer = pipe.answerer
        self._cloud: tuple[Any, torch.Tensor] | None = None
        self.restart(cloud)

    def restart(self, cloud: Any = None) -> None:
        """Begin anew, with another cloud or the one that was there at first."""
        if cloud is not None:
            self._open(cloud)
        self.messages: list[dict[str, Any]] = []
        self._features: list[torch.Tensor] = []
        # Clouds, with their features, that the next question brings along.
        self._waiting = [] if self._cloud is None else [self._cloud]
        self._forget()

    def make_room(self, text: str, tokens: int) -> int:
        """Forget the oldest questions, with their answers, until a further question fits; clouds are kept.

        Args:
            text: The question.
            tokens: How many the conversation and the question may have together.

        Returns:
            How many questions were forgotten.

        Raises:
            ValueError: If the question does not even fit alone with the clouds. The conversation is then as it was.
        """
        for start in range(0, len(self.messages) + 1, 2):
            messages, waiting = self._since(start)
            further = self._question(text, waiting)
            (prompt,) = self.pipe.processor.prompts([[*messages, further]], self.chat_template, read=False)
            if len(prompt.input_ids) <= tokens:
                self.messages, self._waiting = messages, waiting
                self._features = self._features if messages else []
                return start // 2
        raise ValueError(
            f"the question and what it is about have {len(prompt.input_ids)} tokens; there is room for {tokens}"
        )

    def ask(self, text: str, cloud: Any = None, **generation: Any) -> str:
        """Ask a question and wait for the answer.

        Args:
            text: The question.
            cloud: A further cloud that it is about.
            **generation: Arguments of `generate` for this answer.

        Raises:
            ValueError: If the cloud cannot be read, or the language model has no room left. The conversation is then
                as it was.
        """
        messages, features = self._with_question(text, cloud)
        answer = self._answer(messages, features, generation)
        self._record(messages, features, answer)
        return answer

    def stream(self, text: str, cloud: Any = None, **generation: Any) -> Iterator[str]:
        """Ask a question and get the answer piece by piece; arguments as of `ask`.

        Who stops listening stops the answer, and the conversation is then as it was before the question.
        """
        messages, features = self._with_question(text, cloud)
        processor = self.pipe.processor
        streamer = AnswerStreamer(processor.tokenizer, processor.end_mark)
        cancelled, outcome = Event(), {}
        stops = [*generation.get("stopping_criteria", ()), Cancelled(cancelled)]
        further = {"streamer": streamer, "stopping_criteria": stops}

        def work() -> None:
            try:
                outcome["answer"] = self._answer(messages, features, generation | further)
            except BaseException as error:  # raised where the answer is waited for
                outcome["error"] = error
                streamer.on_finalized_text("", stream_end=True)

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        except BaseException:
            cancelled.set()
            # What was read until then is in the cache, and is known to be there.
            thread.join()
            raise
        thread.join()
        if "error" in outcome:
            raise outcome["error"]
        self._record(messages, features, outcome["answer"])

    def _open(self, cloud: Any) -> None:
        self._cloud = (cloud, self._encode(cloud))

    def _encode(self, cloud: Any) -> torch.Tensor:
        return self.answerer.features(self.pipe.processor.read_points([cloud]))[0]

    def _with_question(self, text: str, cloud: Any) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
        clouds = list(self._waiting)
        if cloud is not None:
            clouds.append((cloud, self._encode(cloud)))
        question = self._question(text, clouds)
        take_clouds([question])  # tells what is wrong with it, and not with a conversation of some number
        return [*self.messages, question], [*self._features, *(features for _, features in clouds)]

    def _question(self, text: str, clouds: list[tuple[Any, torch.Tensor]]) -> dict[str, Any]:
        parts = [{"type": "point_cloud", "point_cloud": thing} for thing, _ in clouds]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}

    def _since(self, start: int) -> tuple[list[dict[str, Any]], list[tuple[Any, torch.Tensor]]]:
        """The messages from one on, with the clouds of those before, and the clouds that no message is left for."""
        clouds = [part for said in self.messages[:start] for part in said["content"] if part["type"] == "point_cloud"]
        messages = self.messages[start:]
        if messages:
            messages[0] = {**messages[0], "content": [*clouds, *messages[0]["content"]]}
            return messages, self._waiting
        known = [part["point_cloud"] for part in clouds]
        return [], [*zip(known, self._features, strict=True), *self._waiting]

    def _record(self, messages: list[dict[str, Any]], features: list[torch.Tensor], answer: str) -> None:
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self._features, self._waiting = features, []

    def _answer(self, messages: list[dict[str, Any]], features: list[torch.Tensor], generation: dict[str, Any]) -> str:
        processor = self.pipe.processor
        (prompt,) = processor.prompts([messages], self.chat_template, read=False)
        settings = self.pipe.generate_settings({**self.generation, **generation})
        cache = self._cache_for(prompt.input_ids, settings)
        told = self.answerer.generate([prompt], settings, torch.stack(features) if features else None, cache)[0]
        if cache is not None:
            self._cache, self._held = cache, told.tolist()[: cache.get_seq_length()]
        return processor.decode_answers(told[None, len(prompt.input_ids) :])[0]

    def _cache_for(self, input_ids: list[int], settings: dict[str, Any]) -> DynamicCache | None:
        """The cache with what it shares with a prompt; it is out of our hands until the answer is there."""
        cache, held = self._cache, self._held
        self._forget()
        config = settings.get("generation_config")
        for name in ("num_beams", "num_return_sequences"):
            if (settings.get(name) or getattr(config, name, None) or 1) > 1:
                return None
        shared = 0
        while shared < min(len(held), len(input_ids) - 1) and held[shared] == input_ids[shared]:
            shared += 1
        # Of a cloud all places are kept or none; clouds themselves never change within a conversation.
        processor = self.pipe.processor
        shared -= input_ids[:shared].count(processor.point_token_id) % processor.num_query_tokens
        if cache is not None and shared:
            try:
                cache.crop(shared - len(held))
                return cache
            except (RuntimeError, NotImplementedError):  # some kinds of layers cannot go back
                pass
        return DynamicCache(config=self.pipe.model.config.get_text_config())

    def _forget(self) -> None:
        self._cache: DynamicCache | None = None
        self._held: list[int] = []
