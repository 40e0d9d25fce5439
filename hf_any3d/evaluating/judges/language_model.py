"""A judge that runs here: any causal language model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_any3d.modeling.encoders.checksums import weights_checksum

DEFAULT_SETTINGS = {"max_new_tokens": 256, "do_sample": False}


class LanguageModelJudge:
    """Generates replies with a language model, through its chat template where it has one.

    It chooses the likeliest word by default, so that the same answers get the same verdicts; the published judges
    sampled.

    Args:
        name: Directory or hub name.
        revision: Branch, tag or commit.
        settings: Settings of generation that differ from the default.
        device: Where it runs; the fastest place by default.
        dtype: Of its weights, such as "auto" or "bfloat16".
        seed: Governs what is drawn, the same for each reply.
    """

    reads_prompt = True
    kinds = ("class", "same", "caption")
    at_once = 1

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        settings: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        dtype: str = "auto",
        seed: int = 0,
    ):
        self.name, self.seed = name, seed
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype).eval()
        self.model.to(device or torch.accelerator.current_accelerator() or "cpu")
        self.settings = {**DEFAULT_SETTINGS, "dtype": str(self.model.dtype), "seed": seed, **(settings or {})}
        commit = getattr(self.model.config, "_commit_hash", None)
        self.revisions = {commit or weights_checksum(Path(name))}

    @torch.no_grad()
    def __call__(self, text: str) -> str:
        """The model's reply to a prompt.

        Raises:
            ValueError: The prompt is longer than the model reads.
        """
        if self.tokenizer.chat_template is not None:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            inputs = self.tokenizer(text, return_tensors="pt")
        read = inputs["input_ids"].shape[1]
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and read + self.settings["max_new_tokens"] > longest:
            raise ValueError(
                f"judge {self.name}: {read} tokens of prompt and up to {self.settings['max_new_tokens']} of reply; "
                f"expected at most {longest} together"
            )
        torch.manual_seed(self.seed)
        passed = {key: value for key, value in self.settings.items() if key not in ("dtype", "seed")}
        masks = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        tokens = self.model.generate(**masks, pad_token_id=pad, **passed)
        return self.tokenizer.decode(tokens[0, read:], skip_special_tokens=True)
