"""A stored run of the released SpatialLM: weights made from names, clouds, and what it returned."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_any3d.conversions.spatiallm.names import convert_spatiallm_state_dict, spatiallm_config
from hf_any3d.modeling.spatiallm import SpatialLMForConditionalGeneration
from tests.reference.fill import fill

FOLDER = Path(__file__).parents[2] / "reference"


class SpatialLMCase:
    """Reads `tests/reference/spatiallm_{name}.json` and `.safetensors`."""

    def __init__(self, name: str):
        self.name = name
        self.manifest = json.loads((FOLDER / f"spatiallm_{name}.json").read_text())
        self.expected = load_file(FOLDER / f"spatiallm_{name}.safetensors")
        self.tolerance = self.manifest["tolerance"]
        self.tokens: list[int] = self.manifest["point_tokens"]

    @property
    def published_config(self) -> dict[str, Any]:
        """The content of a released `config.json`."""
        return self.manifest["constructor_args"] | {"model_type": f"spatiallm_{self.name}"}

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        factors, state = self.manifest["weights"]["factors"], {}
        for name, (shape, dtype) in self.manifest["state_dict"].items():
            found = (factor for part, factor in factors.items() if part in name and name.endswith("weight"))
            factor = next(found, 1)
            state[name] = factor * torch.as_tensor(fill(name, shape, dtype))
        if self.published_config["tie_word_embeddings"] and "lm_head.weight" in state:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        return state

    @cached_property
    def model(self) -> SpatialLMForConditionalGeneration:
        """The model in eval mode."""
        model = SpatialLMForConditionalGeneration(spatiallm_config(self.published_config)).eval()
        model.load_state_dict(convert_spatiallm_state_dict(self.original, model.config))
        return model

    def clouds(self, *numbers: int) -> dict[str, list[torch.Tensor]]:
        """`points` and `grid_coord` of clouds."""
        rows = [self.expected[f"{number}.cloud"] for number in numbers]
        return {"points": [row[:, 3:].float() for row in rows], "grid_coord": [row[:, :3].long() for row in rows]}

    def with_places(self, row: list[int], count: int) -> list[int]:
        """Replace what stands between the start and end token of a cloud by its placeholders."""
        arguments = self.manifest["constructor_args"]
        start, end = row.index(arguments["point_start_token_id"]), row.index(arguments["point_end_token_id"])
        return [*row[: start + 1], *[arguments["point_token_id"]] * count, *row[end:]]

    @cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` of both rows, placeholders included."""
        pad, given = self.manifest["constructor_args"]["pad_token_id"], self.manifest["input"]
        rows = []
        for row, count in zip(given["input_ids"], self.tokens, strict=True):
            rows.append(self.with_places([token for token in row if token != pad], count))
        length = self.expected["attention_mask"].shape[1]
        input_ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        return {
            "input_ids": input_ids,
            "attention_mask": self.expected["attention_mask"].long(),
            "labels": self.expected["labels"].long(),
        }

    def prompt(self, number: int) -> torch.Tensor:
        """The prompt of a row for generation, `(1, tokens)`."""
        row = self.manifest["input"]["input_ids"][number][: self.manifest["input"]["prompt"][number]]
        return torch.tensor([self.with_places(row, self.tokens[number])])
