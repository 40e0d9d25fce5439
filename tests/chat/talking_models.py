"""A tiny model with a tokenizer of bytes, and models that say what they are told to."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, Pipeline, pipeline

from hf_any3d import MiniGPT3DProcessor, PointCloudProcessor
from hf_any3d.chat import RELEASED_POINTS
from tests.chat.tiny_tokenizers import byte_tokenizer
from tests.modeling.minigpt3d.tiny_model import SIZES, tiny_model

NUM_POINTS = 40


def talking_pipeline(*merges: str, text: str = "normed_phi", **changes) -> Pipeline:
    """A pipeline around random weights, whose answers depend on all that was said."""
    tokenizer = byte_tokenizer(*merges)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "intermediate_size": 32, "max_position_embeddings": 512}
    sizes["partial_rotary_factor"] = 0.5
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text_config = {"model_type": text, **sizes, **special, "initializer_range": 0.3, **changes}
    model = tiny_model(text_config=text_config, point_token_id=900, initializer_range=0.3)
    points = PointCloudProcessor(**{**RELEASED_POINTS, "num_points": NUM_POINTS})
    processor = MiniGPT3DProcessor.from_config(model.config, tokenizer, points)
    return pipeline("point-cloud-text-to-text", model=model, processor=processor, device="cpu", max_new_tokens=12)


class Says(LogitsProcessor):
    """Makes the model say given texts, one a row.

    Args:
        tokenizer: Its tokenizer.
        texts: What to say; token by token if a list of texts is in the place of a text.
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
