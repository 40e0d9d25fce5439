"""A tiny SpatialLM in the layout of the released repositories, with a tokenizer of bytes."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_any3d.processing.rooms import END, PLACE, START
from tests.modeling.spatiallm.reference_case import SpatialLMCase
from tests.tiny_spatiallm import tiny_processor


class Released:
    """The stored tiny model with rows for the tokens of a tokenizer that can write any answer.

    Args:
        name: "qwen" or "llama".
    """

    def __init__(self, name: str = "qwen"):
        self.case = SpatialLMCase(name)
        self.tokenizer = tiny_processor().tokenizer

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        start, end, place = self.tokenizer.convert_tokens_to_ids([START, END, PLACE])
        ids = {"point_start_token_id": start, "point_end_token_id": end, "point_token_id": place}
        ends = {"bos_token_id": None, "eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": None}
        return self.case.published_config | ids | ends | {"vocab_size": len(self.tokenizer)}

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """Tensors under the authors' names."""
        state, generator = dict(self.case.original), torch.Generator().manual_seed(0)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in state:
                shape = (len(self.tokenizer), state[name].shape[1])
                state[name] = 0.1 * torch.randn(shape, generator=generator)
        if self.config["tie_word_embeddings"]:
            state.pop("lm_head.weight", None)  # as files of tied models are stored
        return state

    def write_settings(self, folder: Path) -> None:
        """Write `config.json` and the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        self.tokenizer.save_pretrained(folder)

    def write(self, folder: Path) -> Path:
        """Write the whole repository, and return its folder."""
        self.write_settings(folder)
        save_file({name: tensor.contiguous() for name, tensor in self.state.items()}, folder / "model.safetensors")
        return folder

    def files(self, folder: Path) -> dict[str, bytes]:
        """Return the files of the repository by name."""
        return {file.name: file.read_bytes() for file in sorted(self.write(folder).iterdir())}
