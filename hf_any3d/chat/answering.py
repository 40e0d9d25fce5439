"""From prompts to generated tokens: clouds are read once, and answers stop where they end."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from hf_any3d.chat.generation import EndMarkReached, NeverSaid
from hf_any3d.chat.processing import MiniGPT3DProcessor
from hf_any3d.chat.prompt import Prompt

# Clouds whose tokens are kept.
KEPT = 64
GENERATION_KEYS = {key for key in vars(GenerationConfig()) if not key.startswith("_")} | {
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "streamer",
}
"""What `generate` takes of its callers."""


class Answerer:
    """Lets a model answer prompts.

    Args:
        model: The model.
        processor: Its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: MiniGPT3DProcessor):
        self.model, self.processor = model, processor
        self._known: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    @torch.no_grad()
    def features(self, clouds: Iterable[np.ndarray]) -> torch.Tensor | None:
        """What stands for clouds before the language model; from memory where the same were read before.

        Args:
            clouds: Each `(points, channels)`, as the processor prepares them.

        Returns:
            `(clouds, num_query_tokens, text hidden)`; None for no clouds.
        """
        clouds = {number: np.ascontiguousarray(cloud) for number, cloud in enumerate(clouds)}
        keys = [hashlib.blake2b(cloud, digest_size=20).digest() for cloud in clouds.values()]
        found = {key: self._known[key] for key in keys if key in self._known}
        new = {key: clouds[number] for number, key in enumerate(keys) if key not in found}
        if new:
            points = [torch.from_numpy(cloud).to(self.model.device) for cloud in new.values()]
            found |= dict(zip(new, self.model.get_point_features(points), strict=True))
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return torch.stack([found[key] for key in keys]) if keys else None

    def forget(self) -> None:
        """Forget the clouds, as must be after a change of the model."""
        self._known.clear()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: dict[str, Any],
        features: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Generate answers.

        Args:
            prompts: What to answer.
            settings: Arguments of `generate`. A repetition penalty counts what the answer says, not the prompt, as in
                the released programs.
            features: Of the prompts' clouds, one after the other; by default those of `Prompt.points`.
            cache: Holds the beginning of a single prompt, and then all but the last token.

        Returns:
            `(answers, tokens)` of prompts and answers.

        Raises:
            ValueError: If a prompt leaves the language model no room for an answer.
        """
        batch = self.processor.pad(prompts).to(self.model.device)
        length = batch["input_ids"].shape[1]
        self._check_room(length)
        if features is None:
            features = self.features(cloud for prompt in prompts for cloud in prompt.points)
        settings, penalty = _without_penalty(settings, self.model.generation_config)
        processors = LogitsProcessorList(settings.pop("logits_processor", None) or [])
        if penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=length))
        place = self.processor.point_token_id
        if place < self.model.config.get_text_config().vocab_size:
            processors.append(NeverSaid(place))
        stops = StoppingCriteriaList(settings.pop("stopping_criteria", None) or [])
        stops.append(EndMarkReached(self.processor.tokenizer, self.processor.end_mark, length))
        return self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            point_features=features,
            past_key_values=cache,
            logits_processor=processors,
            stopping_criteria=stops,
            **settings,
        )

    def _check_room(self, length: int) -> None:
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and length >= room:
            raise ValueError(
                f"the conversation has {length} tokens; the language model takes {room}, the answer's among them"
            )


def _without_penalty(settings: dict[str, Any], default: GenerationConfig) -> tuple[dict[str, Any], float]:
    """Take the repetition penalty out of arguments of `generate`, wherever it stands."""
    settings = dict(settings)
    given = settings.get("generation_config")
    penalties = [getattr(config, "repetition_penalty", None) for config in (given, default) if config is not None]
    penalty = next((value for value in (settings.get("repetition_penalty"), *penalties) if value is not None), 1.0)
    if given is None:
        settings["repetition_penalty"] = 1.0
    else:
        settings.pop("repetition_penalty", None)
        settings["generation_config"] = copy.deepcopy(given)
        settings["generation_config"].repetition_penalty = 1.0
    return settings, penalty
