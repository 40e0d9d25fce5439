"""Judges that run on this machine: a search for class names, and any causal language model of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_any3d.modeling.pretrained_parts.sources import weights_checksum

VERSION = "1"


class ClassNameJudge:
    """Replies with the class that an answer names first; of overlapping names the longest counts.

    Names match complete words in either case; a space in them matches spaces, hyphens and underscores. Synonyms and
    plurals are not found, so figures are lower than a language model's: a reproducible lower bound without a network.

    Args:
        classes: Names of the classes, in words.

    Raises:
        ValueError: There are no names, or one is empty or occurs twice.
    """

    name = "class names"
    reads_prompt = False
    kinds = ("class",)
    at_once = 1

    def __init__(self, classes: Sequence[str]):
        names = [" ".join(name.lower().replace("_", " ").split()) for name in classes]
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"classes are {list(classes)}; expected different names")
        self.numbers = {name: number for number, name in enumerate(names)}
        longest_first = sorted(names, key=len, reverse=True)
        patterns = [r"[\s_-]+".join(map(re.escape, name.split())) for name in longest_first]
        self.pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(patterns)})(?![^\W_])", re.IGNORECASE)
        self.settings = {"classes": len(names)}
        self.revisions = {VERSION}

    def __call__(self, text: str) -> str:
        """Return the class that an answer names, as `number#class#reason`."""
        found = self.pattern.search(text)
        if found is None:
            return "-1#NA#names no class"
        name = re.sub(r"[\s_-]+", " ", found.group().lower())
        return f"{self.numbers[name]}#{name}#named at character {found.start()}"


DEFAULT_SETTINGS = {"max_new_tokens": 256, "do_sample": False}


class LanguageModelJudge:
    """Generates replies with a language model, with its chat template if it has one.

    Decoding is greedy by default, so that verdicts are reproducible; the published judges sampled.

    Args:
        name: Directory or hub name.
        revision: Branch, tag or commit.
        settings: Settings of generation that differ from the default.
        device: Device to run on; by default the fastest available.
        dtype: Type of its weights, such as "auto" or "bfloat16".
        seed: Random seed of each reply.
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
        """Return the model's reply to a prompt.

        Raises:
            ValueError: Prompt and reply exceed the model's context.
        """
        if self.tokenizer.chat_template is not None:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            inputs = self.tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and length + self.settings["max_new_tokens"] > longest:
            raise ValueError(
                f"judge {self.name}: {length} tokens of prompt and up to {self.settings['max_new_tokens']} of reply; "
                f"expected at most {longest} together"
            )
        torch.manual_seed(self.seed)
        settings = {key: value for key, value in self.settings.items() if key not in ("dtype", "seed")}
        batch = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        tokens = self.model.generate(**batch, pad_token_id=pad, **settings)
        return self.tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
