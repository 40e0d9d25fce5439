"""A stored run of a released Any2Point program, and our model with the same weights."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from hf_any3d.conversions.any2point import VARIANTS, convert_state_dict
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.tuners import GuidedAdapterConfig
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[2] / "reference"


class ReferenceCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`."""

    def __init__(self, name: str, variant: str):
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")
        self.variant = VARIANTS[variant]

    @property
    def points(self) -> torch.Tensor:
        return torch.from_numpy(points(**self.manifest["input"]))

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        entries = self.manifest["state_dict"].items()
        return {name: torch.from_numpy(fill(name, *spec)) for name, spec in entries}

    def build(self) -> PeftModel:
        """Our model under the converted weights, guided adapters included."""
        frozen, trained = convert_state_dict(self.original, self.variant)
        settings = dict(self.variant.encoder)
        encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings, vocab_size=4, eos_token_id=2)
        encoder = AutoModel.from_config(encoder_config)
        table = fill("positional_embedding", *self.manifest["external"]["positional_embedding"])
        frozen["embeddings.position_embedding.weight"] = torch.from_numpy(table)
        report = encoder.load_state_dict(frozen, strict=False)
        assert not report.unexpected_keys
        assert {key for key in report.missing_keys if "final" not in key} <= {"embeddings.token_embedding.weight"}
        config = Any2PointConfig(encoder_config=encoder_config, **self.variant.model)
        model = Any2PointForPointCloudClassification(config, encoder)
        model = get_peft_model(model, GuidedAdapterConfig(**self.variant.adapter))
        # PEFT's own loader: what a converted repository goes through.
        report = set_peft_model_state_dict(model, {f"base_model.model.{key}": value for key, value in trained.items()})
        assert not report.unexpected_keys
        assert not [key for key in report.missing_keys if "guided_adapter" in key or "modules_to_save" in key]
        return model.eval()

    def stored(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """Our tensor at the places that the case keeps."""
        how = self.manifest["outputs"][key]["stored"]
        return ours if how == "full" else ours[..., :: int(how.split("::")[1].rstrip("]"))]
