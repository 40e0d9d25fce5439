"""Clouds in the prompt of a language model: tokens at their placeholders, and what `generate` does with clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation import utils as generation
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import ModelOutput

from hf_any3d.modeling.deferred_errors import refuse_later
from hf_any3d.modeling.layers.forward_contract import CACHE, check_keywords, forward_keywords, requested_outputs

Features = torch.Tensor | Sequence[torch.Tensor]
"""`(clouds, tokens, hidden)`, or one `(tokens, hidden)` for each cloud."""


@dataclass
class EncodedClouds(ModelOutput):
    """Clouds that `generate` has encoded before the first step, `mm_encoder_outputs["point"]`.

    `pooler_output` are features of the clouds that are not in the cache, with `prefill_chunk_size` those of a chunk;
    `inputs` the clouds, by the names of `cloud_inputs`, which an assistant model encodes by itself. Behind the first
    `prompt_length` tokens, no placeholder stands for a cloud.
    """

    pooler_output: Features | None = None
    inputs: dict[str, Any] | None = None
    prompt_length: int | None = None


def fill_placeholders(
    input_ids: torch.Tensor, point_features: Features | None, embed: nn.Module, point_token_id: int
) -> torch.Tensor:
    """Embed tokens `(batch, tokens)`, with point features in place of the placeholders, in their order."""
    placeholders = input_ids == point_token_id
    # The table may have no row for the placeholder; what row 0 gives is replaced below.
    embedded = embed(input_ids.masked_fill(placeholders, 0))
    if point_features is None and input_ids.shape[1] == 1:  # a generation step: avoids synchronizing with the device
        return embedded
    rows = None if point_features is None else _rows(point_features)
    given = 0 if rows is None else len(rows)
    expected = placeholders.sum()
    if torch.compiler.is_compiling():
        # An `if` on a tensor's value would break the graph.
        torch._assert_async(expected == given, "input_ids has other than the clouds' number of placeholders")
    # Comparing here would wait for the device in every step.
    elif expected.device.type != "cpu":
        refuse_later(
            expected != given, "input_ids of an earlier batch has other than the clouds' number of placeholders"
        )
    elif expected != given:
        raise ValueError(
            f"input_ids has {expected} placeholders for point tokens (id {point_token_id}); expected {given}, "
            "as many as the clouds have (a processor of another model counts otherwise; build one by its "
            "from_config(model.config, …))"
        )
    if rows is None or not given:
        return embedded
    # `masked_scatter` would do the same, but its gradient waits for the number of placeholders.
    rows = rows.to(embedded.device, embedded.dtype)
    # The n-th placeholder reads the n-th row. Other tokens read any row, which `where` leaves out.
    numbers = placeholders.flatten().cumsum(0).sub(1).clamp(0, given - 1)
    filled = rows.index_select(0, numbers).view_as(embedded)
    return torch.where(placeholders.unsqueeze(-1), filled, embedded)


def _rows(point_features: Features) -> torch.Tensor:
    """Return the features of all clouds one after the other, `(tokens of all clouds, hidden)`."""
    return point_features.flatten(0, 1) if isinstance(point_features, torch.Tensor) else torch.cat([*point_features])


def _places(input_ids: torch.Tensor, point_token_id: int) -> list[int]:
    """Count the placeholders in each sample of `(batch, tokens)`."""
    return (input_ids == point_token_id).sum(dim=1).tolist()


def unread_clouds(
    input_ids: torch.Tensor, new_ids: torch.Tensor, point_features: Features, point_token_id: int
) -> Features | None:
    """Return the features, of all clouds or of the new ones, that belong to the tokens `new_ids`, if any."""
    rows = _rows(point_features)
    new_counts = _places(new_ids, point_token_id)
    if sum(new_counts) == len(rows):
        return point_features
    if sum(new_counts) == 0:
        return None
    # The last clouds of a sample are those of its newest turn.
    samples = rows.split(_places(input_ids, point_token_id))
    return [sample[len(sample) - new :] for sample, new in zip(samples, new_counts, strict=True)]


# Computed here, as compiled code cannot ask for the fields of a class.
_FIELDS = {
    kind: tuple(field.name for field in fields(kind)) for kind in (BaseModelOutputWithPast, CausalLMOutputWithPast)
}


def fields_of(output: ModelOutput, kind: type[ModelOutput]) -> dict[str, Any]:
    """Return the fields of a language model's output that are those of transformers' usual one, or None."""
    return {name: getattr(output, name, None) for name in _FIELDS[kind]}


class Embedded(NamedTuple):
    """Embedded tokens `(batch, tokens, text hidden)`, features of clouds among them, and how these were encoded."""

    inputs_embeds: torch.Tensor
    point_features: Features | None = None
    routing: Any = None


class CloudLanguageModelMixin:
    """For `PreTrainedModel` classes whose base model reads clouds and has a `language_model`, which keeps its head."""

    input_modalities = ("point_cloud", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = [CACHE]

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's input embeddings."""
        return self.base_model.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's input embeddings."""
        self.base_model.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's output embeddings."""
        return self.base_model.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's output embeddings."""
        self.base_model.language_model.set_output_embeddings(value)

    def encode_clouds(self, **clouds: Any) -> tuple[Features, Any]:
        """Return the language model's tokens for clouds, and how they were encoded."""
        return self.get_point_features(**clouds), None

    def embed(
        self,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        point_features: Features | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
        **clouds: Any,
    ) -> Embedded:
        """Embed tokens, with those of clouds, arguments of `get_point_features`, at their placeholders."""
        encoded = (mm_encoder_outputs or {}).get("point")
        points = clouds.get("points")
        # Clouds come as points, as features, or encoded by `generate`; two of them could contradict each other.
        sources = {"points": points, "point_features": point_features, "mm_encoder_outputs['point']": encoded}
        used = [name for name, value in sources.items() if value is not None]
        if inputs_embeds is not None:
            used.append("inputs_embeds")  # which already have the clouds' tokens
        if len(used) > 1:
            raise ValueError(f"{used[0]} and {used[1]} are both given; pass one of them")
        if inputs_embeds is not None:
            return Embedded(inputs_embeds)
        routing = None
        if points is not None:
            point_features, routing = self.encode_clouds(**clouds)
        elif encoded is not None:
            point_features = encoded.pooler_output
        embed = self.get_input_embeddings()
        place = self.config.point_token_id
        return Embedded(fill_placeholders(input_ids, point_features, embed, place), point_features, routing)

    def text_keywords(self, text: PreTrainedModel, keywords: dict[str, Any]) -> dict[str, Any]:
        """Check keywords for the language model or its body, and resolve what to return from the config."""
        keywords = check_keywords(type(self).__name__, keywords, forward_keywords(type(text).forward))
        asked = [keywords.get(name) for name in ("output_hidden_states", "output_attentions")]
        hidden_states, attentions = requested_outputs(self.config, *asked, text.config._attn_implementation)
        return keywords | {"output_hidden_states": hidden_states, "output_attentions": attentions, "return_dict": True}


class CloudGenerationMixin:
    """For models with `GenerationMixin`, before it: clouds are encoded once, and follow beams, chunks and drafts."""

    # Arguments of `get_point_features`, the clouds first.
    cloud_inputs: ClassVar[tuple[str, ...]] = ("points",)

    @property
    def point_encoder(self) -> PreTrainedModel:
        """The model that reads clouds."""
        return self.base_model.point_encoder

    @property
    def language_model(self) -> PreTrainedModel:
        """The language model, with its head."""
        return self.base_model.language_model

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> tuple[GenerationConfig, dict[str, Any]]:
        """Read the whole text in every step where the language model keeps no cache."""
        generation_config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        if CACHE not in forward_keywords(type(self.language_model).forward):
            generation_config.use_cache = False
        return generation_config, model_kwargs

    def _supports_default_dynamic_cache(self) -> bool:
        """Return whether the language model takes transformers' usual cache: some have one of their own."""
        return self.language_model._supports_default_dynamic_cache()

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, EncodedClouds] | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare the inputs of one step: clouds are passed with the prompt, and then are in the cache."""
        kwargs.pop("tokenizer", None)  # that of `stop_strings`, which some modes of `generate` leave among the inputs
        clouds = (mm_encoder_outputs or {}).get("point")
        cache = past_key_values if cache is None else cache
        inputs = super().prepare_inputs_for_generation(
            input_ids, **{CACHE: cache}, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            if clouds is None:
                return inputs
            if clouds.prompt_length is not None and inputs.get("input_ids") is not None:
                # Drafts of an assistant in the first step, and without a cache all tokens of the answer.
                prompt, answer = inputs["input_ids"].tensor_split([clouds.prompt_length], dim=1)
                answer = answer.masked_fill(answer == self.config.point_token_id, 0)
                inputs["input_ids"] = torch.cat([prompt, answer], dim=1)
            return inputs | {"mm_encoder_outputs": mm_encoder_outputs}
        new_ids = inputs["input_ids"]
        if new_ids.shape[1] == 1:
            return inputs
        # A step of several tokens after the first: drafts to check or, in an assistant, the first step, to which
        # transformers passes no clouds.
        if clouds is not None and cache is not None and cache.get_seq_length() == 0:
            # The features of the model that this one assists are for its own language model.
            own = clouds if clouds.inputs is None else EncodedClouds(self.get_point_features(**clouds.inputs))
            return inputs | {"mm_encoder_outputs": {"point": own}}
        # A drafted placeholder stands for no cloud, as one that is generated alone.
        inputs["input_ids"] = new_ids.masked_fill(new_ids == self.config.point_token_id, 0)
        return inputs

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """Encode clouds once, before the first step; transformers does so for images and videos."""
        if generation_config.prefill_chunk_size and not hasattr(generation, "_slice_mm_encoder_output"):
            raise ValueError("prefill_chunk_size with clouds; expected transformers 5.23 or newer, or None")
        features = model_kwargs.pop("point_features", None)
        inputs = {name: model_kwargs.pop(name, None) for name in self.cloud_inputs}
        has_clouds = inputs[self.cloud_inputs[0]] is not None
        if features is None:
            if not has_clouds:
                return model_kwargs
            # Encoded here and not in the first step, so that beams repeat features, not clouds.
            features = self.get_point_features(**inputs)
        unread = features
        cache = model_kwargs.get(CACHE)
        if model_input_name == "input_ids" and cache is not None:
            mask = model_kwargs.get("attention_mask")
            seen = getattr(generation_config, "_mask_length", -1) if mask is None else mask.shape[1]
            if seen == inputs_tensor.shape[1]:  # the conversation from its start, see `GenerationMixin._prefill`
                new_ids = inputs_tensor[:, cache.get_seq_length() :]
                unread = unread_clouds(inputs_tensor, new_ids, features, self.config.point_token_id)
        length = inputs_tensor.shape[1] if model_input_name == "input_ids" else None
        encoded = EncodedClouds(unread, inputs if has_clouds else None, length)
        return model_kwargs | {"mm_encoder_outputs": {"point": encoded}}

    def _get_candidate_generator(
        self,
        generation_config: GenerationConfig,
        input_ids: torch.LongTensor,
        *args: Any,
        model_kwargs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Refuse drafts after a cache."""
        seen = model_kwargs[CACHE].get_seq_length()
        if seen > 0:
            # transformers would read the whole prompt after what is in the cache, and answer otherwise.
            raise ValueError(f"{CACHE} of {seen} tokens with assisted generation; expected an empty cache")
        return super()._get_candidate_generator(
            generation_config, input_ids, *args, model_kwargs=model_kwargs, **kwargs
        )

    def _expand_multimodal_outputs(
        self, input_ids: torch.LongTensor, mm_encoder_output: dict[str, EncodedClouds], expand_size: int = 1, **_: Any
    ) -> dict[str, EncodedClouds]:
        """Repeat the clouds of each prompt, for beams and samples; transformers does so for images and videos."""
        clouds = mm_encoder_output["point"]
        if clouds.pooler_output is None:
            return mm_encoder_output
        # Samples may have no cloud or several, and clouds tokens of any number.
        samples = _rows(clouds.pooler_output).split(_places(input_ids, self.config.point_token_id))
        # `generate` puts the copies of a sample next to each other, and each reads all clouds of its sample in order.
        repeated = [sample for sample in samples for _ in range(expand_size)]
        return {
            "point": EncodedClouds(repeated, prompt_length=clouds.prompt_length)
        }  # no assistant model drafts more than one answer
