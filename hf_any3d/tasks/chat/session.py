"""ChatSession: a conversation in which every cloud and token is processed once."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache

from hf_any3d.processing.chat_messages import take_clouds
from hf_any3d.tasks.chat.generation import Answerer, AnswerStreamer, streamed


class ChatSession:
    """A conversation about point clouds.

    Each cloud is read and encoded once, and the language model's cache is kept while the conversation continues.
    Answers equal those to the complete conversation.

    Args:
        pipe: A `pipeline("point-cloud-text-to-text")`.
        cloud: The cloud: a path, an array, or anything that the pipeline accepts. None if the first cloud comes with
            a later question.
        chat_template: Name of the processor's template; by default its own.
        **generation: Arguments of `generate` for all answers.

    Attributes:
        messages: The conversation so far, as messages of the pipeline.

    Example:
        ```python
        session = ChatSession(pipeline("point-cloud-text-to-text", model="me/minigpt3d"), "chair.ply")
        session.ask("What is this?")
        for piece in session.stream("What color is it?"):
            print(piece, end="", flush=True)
        ```
    """

    def __init__(self, pipe: Any, cloud: Any = None, chat_template: str | None = None, **generation: Any):
        self.pipe = pipe
        self.chat_template = chat_template
        self.generation = generation
        self.answerer: Answerer = pipe.answerer
        self._cloud: tuple[Any, torch.Tensor] | None = None
        self._state = self.answerer.state()
        self.restart(cloud)

    def restart(self, cloud: Any = None) -> None:
        """Start again, with another cloud or the initial one."""
        if cloud is not None:
            self._cloud = (cloud, self._encode(cloud))
        self.messages: list[dict[str, Any]] = []
        self._features: list[torch.Tensor] = []
        # Clouds, with their features, that the next question includes.
        self._waiting = [] if self._cloud is None else [self._cloud]
        self._clear_cache()

    def make_room(self, text: str, tokens: int) -> int:
        """Remove the oldest questions, with their answers, until another one fits into `tokens`; clouds are kept.

        Returns the number of removed questions. A question that does not fit even alone with the clouds is a
        ValueError, and the conversation is unchanged.
        """
        # A question and its answer are two messages.
        for start in range(0, len(self.messages) + 1, 2):
            # Clouds of the removed questions go with the first one that is left, or wait for the next.
            clouds = [
                part for one in self.messages[:start] for part in one["content"] if part["type"] == "point_cloud"
            ]
            messages = self.messages[start:]
            waiting = self._waiting
            if messages:
                messages[0] = {**messages[0], "content": [*clouds, *messages[0]["content"]]}
            else:
                places = [part["point_cloud"] for part in clouds]
                waiting = [*zip(places, self._features, strict=True), *waiting]
            further = self._question(text, waiting)
            # The clouds are encoded already, so that only their places in the prompt are needed.
            (prompt,) = self.pipe.processor.prompts([[*messages, further]], self.chat_template, read=False)
            if len(prompt.input_ids) <= tokens:
                self.messages = messages
                self._waiting = waiting
                # Without messages, the clouds and their features wait for the next question.
                self._features = self._features if messages else []
                return start // 2
        raise ValueError(f"the question and its clouds have {len(prompt.input_ids)} tokens; expected at most {tokens}")

    def ask(self, text: str, cloud: Any = None, **generation: Any) -> str:
        """Ask a question, perhaps about an additional cloud, and wait for the answer.

        `generation` are arguments of `generate` for this answer. A cloud that cannot be read, or a full context of the
        language model, is a ValueError, and the conversation is unchanged.

        Raises:
            PointCloudFileError: A cloud cannot be read.
            ValueError: The question and its clouds are longer than the context of the language model.
        """
        messages, features = self._with_question(text, cloud)
        answer = self._answer(messages, features, generation)
        self._record(messages, features, answer)
        return answer

    def stream(self, text: str, cloud: Any = None, **generation: Any) -> Iterator[str]:
        """Ask a question and stream the answer; arguments are those of `ask`.

        Closing the iterator stops the answer and leaves the conversation as it was before the question.
        """
        messages, features = self._with_question(text, cloud)
        processor = self.pipe.processor
        streamer = AnswerStreamer(processor.tokenizer, processor.end_mark)

        def generate(**further: Any) -> str:
            return self._answer(messages, features, generation | further)

        # Behind this line only if the answer came to its end; a closed iterator leaves nothing behind.
        answer = yield from streamed(generate, streamer, generation.get("stopping_criteria", ()))
        self._record(messages, features, answer)

    def _encode(self, cloud: Any) -> torch.Tensor:
        features = self.answerer.features(self.pipe.processor.read_points([cloud]))
        assert features is not None
        return features[0]

    def _with_question(self, text: str, cloud: Any) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
        if (state := self.answerer.state()) != self._state:
            # The model has changed: it encodes all clouds, and reads the conversation, again.
            parts = [part for message in self.messages for part in message["content"] if part["type"] == "point_cloud"]
            self._features = [self._encode(part["point_cloud"]) for part in parts]
            self._waiting = [(waiting, self._encode(waiting)) for waiting, _ in self._waiting]
            self._cloud = None if self._cloud is None else (self._cloud[0], self._encode(self._cloud[0]))
            self._clear_cache()
            self._state = state
        clouds = list(self._waiting)
        if cloud is not None:
            clouds.append((cloud, self._encode(cloud)))
        question = self._question(text, clouds)
        take_clouds([question])  # here an error does not name the number of a conversation
        return [*self.messages, question], [*self._features, *(features for _, features in clouds)]

    def _question(self, text: str, clouds: list[tuple[Any, torch.Tensor]]) -> dict[str, Any]:
        parts = [{"type": "point_cloud", "point_cloud": thing} for thing, _ in clouds]
        return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}

    def _record(self, messages: list[dict[str, Any]], features: list[torch.Tensor], answer: str) -> None:
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self._features = features
        self._waiting = []

    def _answer(self, messages: list[dict[str, Any]], features: list[torch.Tensor], generation: dict[str, Any]) -> str:
        processor = self.pipe.processor
        (prompt,) = processor.prompts([messages], self.chat_template, read=False)
        settings = self.pipe.generate_settings({**self.generation, **generation})
        cache = self._cache_for(prompt.input_ids, settings)
        tokens = self.answerer.generate([prompt], settings, torch.stack(features) if features else None, cache)[0]
        if cache is not None:
            # The last generated token was never an input, so it is not in the cache.
            self._cache = cache
            self._cached_tokens = tokens.tolist()[: cache.get_seq_length()]
        return processor.decode_answers(tokens[None, len(prompt.input_ids) :])[0]

    def _cache_for(self, input_ids: list[int], settings: dict[str, Any]) -> DynamicCache | None:
        """Return the cache, cropped to the prefix that it shares with a prompt, and detach it from the session."""
        cache = self._cache
        held = self._cached_tokens
        # `generate` changes the cache in place: after an error nobody knows what is in it, so it comes back with the
        # answer.
        self._clear_cache()
        config = settings.get("generation_config")
        # The cache would then hold several answers, and the conversation goes on from one.
        for name in ("num_beams", "num_return_sequences"):
            if (settings.get(name) or getattr(config, name, None) or 1) > 1:
                return None
        for name in ("assistant_model", "prompt_lookup_num_tokens"):  # drafts are checked from an empty cache on
            if settings.get(name) is not None or getattr(config, name, None) is not None:
                return None
        # At least the last token of the prompt is computed, as generation needs its logits.
        shared = 0
        while shared < min(len(held), len(input_ids) - 1) and held[shared] == input_ids[shared]:
            shared += 1
        # All places of a cloud are kept or none; clouds themselves never change within a conversation.
        processor = self.pipe.processor
        shared -= input_ids[:shared].count(processor.point_token_id) % processor.num_query_tokens
        if cache is not None and shared:
            try:
                cache.crop(shared - len(held))
                return cache
            except (RuntimeError, NotImplementedError):  # some kinds of layers cannot be cropped
                pass
        return DynamicCache(config=self.pipe.model.config.get_text_config())

    def _clear_cache(self) -> None:
        self._cache: DynamicCache | None = None
        self._cached_tokens: list[int] = []
