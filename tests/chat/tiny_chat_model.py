"""A tiny model with a tokenizer of bytes, and models with scripted answers."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LogitsProcessor, Pipeline, pipeline

from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor
from hf_any3d.chat import RELEASED_POINTS
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.modeling.minigpt3d.tiny_model import TEXTS, tiny_model

NUM_POINTS = 40


def tiny_chat_pipeline(*merges: str, text: str = "llama", **changes) -> Pipeline:
    """A pipeline with random weights, large enough for answers, in ASCII, to depend on the complete conversation."""
    tokenizer = byte_tokenizer(*merges)
    sizes = {**TEXTS[text], "vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 1.0}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = tiny_model(
        text_config={"model_type": text, **sizes, **special, **changes}, point_token_id=900, num_query_tokens=12
    )
    generator = torch.Generator().manual_seed(0)
    for part in (model.point_encoder, model.bridge):
        for name, parameter in part.named_parameters():
            if parameter.ndim > 1 and "low_rank_" not in name:
                parameter.data.normal_(std=0.4, generator=generator)
    unreadable = [number for token, number in tokenizer.get_vocab().items() if not token.isascii() or len(token) > 9]
    model.generation_config.suppress_tokens = sorted(unreadable)
    points = PointCloudProcessor(**{**RELEASED_POINTS, "num_points": NUM_POINTS})
    processor = MiniGPT3DProcessor.from_config(model.config, tokenizer, points)
    return pipeline("point-cloud-text-to-text", model=model, processor=processor, device="cpu", max_new_tokens=6)


def cloud(seed: int = 0) -> np.ndarray:
    """A random cloud `(points, 6)` of one color."""
    generator = np.random.default_rng(seed)
    xyz = generator.normal(size=(NUM_POINTS, 3)) * generator.uniform(0.1, 1, 3)
    return np.concatenate([xyz, np.tile(generator.random(3), (NUM_POINTS, 1))], axis=1).astype(np.float32)


class ForcedAnswer(LogitsProcessor):
    """Forces given answers, one for each row.

    Args:
        tokenizer: Its tokenizer.
        texts: The answers.
    """

    def __init__(self, tokenizer, *texts: str):
        self.rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.step = 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        for number, row in enumerate(forced):
            words = self.rows[number % len(self.rows)]
            row[words[min(self.step, len(words) - 1)]] = 0
        self.step += 1
        return forced
