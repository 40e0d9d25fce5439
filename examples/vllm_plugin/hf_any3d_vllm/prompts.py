"""Prompts as vLLM takes them: one placeholder for each cloud, which vLLM expands itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MODALITY = "point_cloud"


def collapse_placeholders(input_ids: Sequence[int], placeholder: int, count: int) -> list[int]:
    """Replace each run of `count` placeholders by one.

    Args:
        input_ids: Token ids.
        placeholder: Id of the placeholder, `config.point_token_id`.
        count: Tokens of a cloud, `config.num_query_tokens`.

    Raises:
        ValueError: A run of placeholders is not that of whole clouds.
    """
    collapsed: list[int] = []
    run = 0
    for token in [*input_ids, None]:
        if token == placeholder:
            run += 1
            continue
        if run % count:
            raise ValueError(f"{run} placeholders (id {placeholder}) in a row; expected a multiple of {count}")
        collapsed += [placeholder] * (run // count)
        run = 0
        if token is not None:
            collapsed.append(token)
    return collapsed


def vllm_prompt(processor: Any, messages: Sequence[Mapping[str, Any]], chat_template: str | None = None) -> dict:
    """Return a conversation as argument of `LLM.generate`.

    Args:
        processor: The processor of the chat model.
        messages: Messages of the pipeline.
        chat_template: Name of one of the processor's templates.

    Raises:
        ValueError: The template hides tokens from attention, which vLLM cannot.
    """
    (prompt,) = processor.prompts([messages], chat_template, add_generation_prompt=True)
    if not all(prompt.attention_mask):
        raise ValueError("the processor hides inner start tokens (hide_inner_bos), which vLLM cannot; expected False")
    ids = collapse_placeholders(prompt.input_ids, processor.point_token_id, processor.num_query_tokens)
    return {"prompt_token_ids": ids, **({"multi_modal_data": {MODALITY: prompt.points}} if prompt.points else {})}


def dummy_clouds(count: int, num_points: int, channels: int) -> list[np.ndarray]:
    """Return random clouds (num_points, channels), with which vLLM measures memory; equal ones would be one patch."""
    generator = np.random.default_rng(0)
    return [generator.uniform(0, 1, (num_points, channels)).astype(np.float32) for _ in range(count)]
