"""Generate answers: encoded clouds are cached, and generation stops at the end mark."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor

from hf_any3d.data.fingerprints import active_adapters, weights_state
from hf_any3d.modeling.layers.forward_contract import CACHE
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.processing.chat import MiniGPT3DProcessor
from hf_any3d.processing.chat_templates import Prompt

# The released programs require 10 tokens including an invisible start token, so 9 here. They do not set top_k, whose
# default was 50 in their version of transformers.
_EVALUATION: dict[str, Any] = {
    "min_new_tokens": 9,
    "num_beams": 2,
    "do_sample": True,
    "temperature": 0.2,
    "top_p": 0.7,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
}
PUBLISHED_GENERATION: dict[str, dict[str, Any]] = {
    "objaverse": {"max_new_tokens": 150, **_EVALUATION},
    "modelnet40": {"max_new_tokens": 100, **_EVALUATION},
    "demo": {
        "max_new_tokens": 60,
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
        "top_k": 50,
        "repetition_penalty": 1.05,
    },
}
"""Published settings: classification and captions on Objaverse, classification on ModelNet40, and the demo's chat."""
GENERATION_KEYS = {key for key in vars(GenerationConfig()) if not key.startswith("_")} | {
    "generation_config",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "stopping_criteria",
    "streamer",
    "tokenizer",
}
"""Arguments of `generate` that callers may pass."""
_CACHED_CLOUDS = 64


def take_generation(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of `generate` out of those of a call, also as the pipelines of transformers name them.

    Those names are `generate_kwargs`, several in a dict, and `stop_sequence`, one of `stop_strings` or a list of them.
    The other arguments are left, with unknown ones of the dict.
    """
    several = dict(arguments.pop("generate_kwargs", None) or {})
    if (stop := arguments.pop("stop_sequence", None)) is not None:
        arguments.setdefault("stop_strings", [stop] if isinstance(stop, str) else list(stop))
    arguments |= dict(**several, **arguments)  # a TypeError for one that is in both
    return {name: arguments.pop(name) for name in list(arguments) if name in GENERATION_KEYS}


class Answerer:
    """Generates a model's answers to prompts."""

    def __init__(self, model: MiniGPT3DForConditionalGeneration, processor: MiniGPT3DProcessor):
        self.model = model
        self.processor = processor
        self._cached: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._state = self.state()

    def state(self) -> Hashable:
        """Return what changes with the model's weights in memory and with its active adapters."""
        return weights_state(self.model), tuple(active_adapters(self.model))

    @torch.no_grad()
    def features(self, clouds: Iterable[np.ndarray]) -> torch.Tensor | None:
        """Encode clouds, each `(points, channels)` as the processor prepares them, or take them from the cache.

        Returns:
            `(clouds, num_query_tokens, text hidden)`; None for no clouds.
        """
        if (state := self.state()) != self._state:
            self.forget()
            self._state = state
        # The digest is of the memory, which has to be in one piece.
        arrays = [np.ascontiguousarray(cloud) for cloud in clouds]
        keys = [hashlib.blake2b(cloud.data, digest_size=20).digest() for cloud in arrays]
        encoded = {key: self._cached[key] for key in keys if key in self._cached}
        new = {key: cloud for key, cloud in zip(keys, arrays, strict=True) if key not in encoded}
        if new:
            points = [torch.from_numpy(cloud).to(self.model.device) for cloud in new.values()]
            # All new clouds in one pass; a cloud that was given twice is encoded once.
            with evaluation_mode(self.model):
                encoded |= dict(zip(new, self.model.get_point_features(points), strict=True))
        # The cloud used last is the last one. Features come from `encoded`, so a call may have more clouds than are
        # kept.
        for key in keys:
            self._cached[key] = encoded[key]
            self._cached.move_to_end(key)
        while len(self._cached) > _CACHED_CLOUDS:
            self._cached.popitem(last=False)
        return torch.stack([encoded[key] for key in keys]) if keys else None

    def forget(self) -> None:
        """Clear the cache of clouds."""
        self._cached.clear()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        generation_kwargs: dict[str, Any],
        features: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Generate answers, with arguments of `generate`, and return `(answers, tokens)` of prompts and answers.

        A repetition penalty applies to the answer only, not to the prompt, as in the released programs. `features` are
        those of the prompts' clouds, concatenated, by default of `Prompt.points`. The cache holds the beginning of a
        single prompt, and afterwards all but the last token. A prompt that fills the context is a ValueError.
        """
        batch = self.processor.pad(prompts).to(self.model.device)
        length = batch["input_ids"].shape[1]
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and length >= context:
            raise ValueError(
                f"the conversation has {length} tokens; the language model takes {context}, including the answer"
            )
        if features is None:
            features = self.features(cloud for prompt in prompts for cloud in prompt.points)
        generation_kwargs = dict(generation_kwargs)
        config = generation_kwargs.get("generation_config")
        default = self.model.generation_config
        # That of the call first, then of the config that it gives, then of the model's own.
        penalties = (
            generation_kwargs.pop("repetition_penalty", None),
            *(getattr(part, "repetition_penalty", None) for part in (config, default)),
        )
        penalty = next((value for value in penalties if value is not None), 1.0)
        if config is None:
            generation_kwargs["repetition_penalty"] = 1.0  # otherwise the model's own config would apply it
        else:
            generation_kwargs["generation_config"] = copy.deepcopy(config)  # the caller's stays as it is
            generation_kwargs["generation_config"].repetition_penalty = 1.0
        processors = LogitsProcessorList(generation_kwargs.pop("logits_processor", None) or [])
        if penalty != 1:
            # The stock penalty also counts the prompt: words of the question, and the places of clouds, would be
            # avoided.
            processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=length))
        point_token = self.processor.point_token_id
        # The language model has a score for it, like for a word, but no text.
        if point_token < self.model.config.get_text_config().vocab_size:
            processors.append(SuppressTokensLogitsProcessor([point_token], str(self.model.device)))
        stops = StoppingCriteriaList(generation_kwargs.pop("stopping_criteria", None) or [])
        stops.append(EndMarkReached(self.processor.tokenizer, self.processor.end_mark, length))
        with evaluation_mode(self.model):
            return self.model.generate(  # pyright: ignore[reportAttributeAccessIssue] its mixin is a dummy to pyright
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                point_features=features,
                **{CACHE: cache},
                logits_processor=processors,
                stopping_criteria=stops,
                **{"tokenizer": self.processor.tokenizer} | generation_kwargs,  # which finds `stop_strings`
            )


class EndMarkReached(StoppingCriteria):
    """Stops an answer as soon as its text contains the end mark, however it is tokenized."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_mark: str, prompt_length: int):
        self.tokenizer = tokenizer
        self.end_mark = end_mark
        self.prompt_length = prompt_length
        # A token has at least one byte, so a mark has at most as many tokens as bytes.
        self.window = len(end_mark.encode())

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which of `(batch, tokens)` have ended."""
        # Of the answer only: prompts may contain the mark, after earlier answers.
        last = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(last, clean_up_tokenization_spaces=False)
        return torch.tensor([self.end_mark in text for text in texts], device=input_ids.device)


class Canceled(StoppingCriteria):
    """Stops when the answer has been canceled."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return the same for all of `(batch, tokens)`."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class AnswerStreamer(TextIteratorStreamer):
    """Streams an answer in pieces that together equal the answer without streaming.

    Text that may belong to the end mark or to trailing whitespace is held back until it is certain.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_mark: str):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.end_mark = end_mark
        self._held = ""
        self._has_started = False
        self._has_ended = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put the text that certainly belongs to the answer into the queue."""
        if not self._has_ended:
            # Spaces before the first word are left out; all later ones may belong to the answer.
            text = self._held + text if self._has_started else (self._held + text).lstrip()
            self._has_ended = self.end_mark in text
            text = text.split(self.end_mark)[0]
            if self._has_ended or stream_end:
                certain = text.rstrip()
            else:
                # Text that may become the end mark with the next token is held back, and so are spaces, which an
                # answer does not end with.
                sizes = range(len(self.end_mark) - 1, 0, -1)
                partial = next((size for size in sizes if text.endswith(self.end_mark[:size])), 0)
                certain = text[: len(text) - partial].rstrip()
            self._held = text[len(certain) :]
            if certain:
                self._has_started = True
                self.text_queue.put(certain)
        if stream_end:
            self.text_queue.put(self.stop_signal)


def streamed(
    generate: Callable[..., Any], streamer: TextIteratorStreamer, stops: Iterable[StoppingCriteria] = ()
) -> Generator[str, None, Any]:
    """Yield the pieces of an answer while a thread generates it, and return what it returned.

    Closing the generator stops the answer. `generate` is a function of `streamer` and `stopping_criteria`.
    """
    canceled = Event()
    outcome = {}

    def work() -> None:
        try:
            criteria = StoppingCriteriaList([*stops, Canceled(canceled)])
            outcome["answer"] = generate(streamer=streamer, stopping_criteria=criteria)
        except BaseException as error:  # raised in the waiting thread
            outcome["error"] = error
            # The reading thread would wait for the end of the stream for ever.
            streamer.on_finalized_text("", stream_end=True)

    # A program that ends does not wait for an answer.
    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    except BaseException:
        canceled.set()
        thread.join()  # until caches and their records of tokens agree
        raise
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["answer"]
