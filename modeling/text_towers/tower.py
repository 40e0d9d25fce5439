"""A frozen text encoder with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_any3d.modeling.text_towers.registry import TextTowerFamily

_TEXTS_AT_ONCE = 64


class TextTower:
    """Texts in, unit vectors out. Frozen, and no `nn.Module`: a model that uses it neither counts nor stores it.

    Args:
        model: The text encoder.
        tokenizer: Its tokenizer.
        family: How it embeds.
        pooling: How words become a sentence, for sentence encoders.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, family: TextTowerFamily, pooling: str | None = None):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.family, self.pooling = tokenizer, family, pooling
        self.max_length = min(int(tokenizer.model_max_length), family.max_length(model.config))

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Texts as `input_ids` and `attention_mask`, `(texts, words)` each.

        Raises:
            ValueError: If there are no texts, or one is no text or is empty.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts is {texts!r}; expected a list with at least one text")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"texts has {text!r}; expected words")
        padding = "max_length" if self.family.fixed_length else "longest"
        encoded = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded.get("attention_mask", torch.ones_like(encoded["input_ids"])),
        }

    @torch.no_grad()
    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Unit vectors `(texts, width)` of tokenized texts, float32, on the device of `input_ids`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self.model.to(input_ids.device)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return nn.functional.normalize(self.family.features(self.model, inputs, self.pooling).float(), dim=-1)

    def embed(self, texts: Sequence[str], device: torch.device | str = "cpu") -> torch.Tensor:
        """Unit vectors `(texts, width)` of texts, each the same whatever texts are beside it."""
        inputs = self.tokenize(texts)
        parts = zip(*(values.split(_TEXTS_AT_ONCE) for values in inputs.values()), strict=True)
        return torch.cat([self.features(ids.to(device), mask.to(device)) for ids, mask in parts])
