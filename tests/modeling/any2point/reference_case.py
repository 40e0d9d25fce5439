"""A stored run of a released Any2Point program, and the model with the same weights."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from hf_any3d.conversions.any2point import VARIANTS, convert_state_dict
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.tuners import GuidedAdapterConfig
from tests.reference.fill import fill, points

FOLDER = Path(__file__).parents[2] / "reference"


class ReferenceCase:
    """Reads `tests/reference/{name}.json` and `.safetensors`; the name is `any2point_{encoder}_{data set}_…`.

    Args:
        name: The name of the files.
        layers: The number of the encoder's layers, of all where it is None.
    """

    def __init__(self, name: str, layers: int | None = None):
        self.manifest = json.loads((FOLDER / f"{name}.json").read_text())
        self.expected = load_file(FOLDER / f"{name}.safetensors")
        self.variant_name = "-".join(name.split("_")[1:3])
        self.variant, self.layers = VARIANTS[self.variant_name], layers
        if layers is not None:
            encoder = self.variant.encoder | {"num_hidden_layers": layers}
            self.variant = dataclasses.replace(self.variant, encoder=encoder)

    @property
    def points(self) -> torch.Tensor:
        return torch.from_numpy(points(**self.manifest["input"]))

    @cached_property
    def original(self) -> dict[str, torch.Tensor]:
        """The state dict of the released program."""
        state = {}
        for name, spec in self.manifest["state_dict"].items():
            block = re.search(r"blocks\.(\d+)\.", name)
            if self.layers is None or block is None or int(block[1]) < self.layers:
                state[name] = torch.from_numpy(fill(name, *spec))
        return state

    @property
    def position_table(self) -> torch.Tensor:
        """The base checkpoint's table of positions, which no released state dict holds."""
        ((name, spec),) = self.manifest["external"].items()
        return torch.from_numpy(fill(name, *spec))

    def encoder(self, **changes: Any) -> PreTrainedModel:
        """The public checkpoint that the program started from: the case's frozen weights and its position table."""
        frozen, _ = convert_state_dict(self.original, self.variant)
        settings = self.variant.encoder | changes
        small = {"vocab_size": 4, "eos_token_id": 2} if "clip" in settings["model_type"] else {}
        with no_init_weights():
            encoder = AutoModel.from_config(AutoConfig.for_model(**(settings | small)))
        table = next(name for name, _ in encoder.named_parameters() if "position_embedding" in name)
        report = encoder.load_state_dict(frozen | {table: self.position_table}, strict=False)
        assert not report.unexpected_keys
        for name in report.missing_keys:
            torch.nn.init.zeros_(encoder.get_parameter(name))
        for module in encoder.modules():
            module._is_hf_initialized = True  # as `init_weights` marks them; others are drawn again in a larger model
        # A bias key and value are what the released programs leave out.
        assert not [key for key in report.missing_keys if "layer" in key and "norm" not in key and "bias_" not in key]
        return encoder

    def build(self) -> PeftModel:
        """Our model under the converted weights, guided adapters included."""
        _, trained = convert_state_dict(self.original, self.variant)
        encoder = self.encoder(**self.variant.encoder_changes)
        config = Any2PointConfig(encoder_config=encoder.config, **self.variant.model)
        model = Any2PointForPointCloudClassification(config, encoder)
        model = get_peft_model(model, GuidedAdapterConfig(**self.variant.adapter))
        # PEFT's own loader: what a converted repository goes through.
        report = set_peft_model_state_dict(model, {f"base_model.model.{key}": value for key, value in trained.items()})
        assert not report.unexpected_keys
        assert not [key for key in report.missing_keys if "guided_adapter" in key or "modules_to_save" in key]
        vars(self).pop("original", None)  # hundreds of megabytes, which the model has copies of
        return model.eval()

    def stored(self, key: str, ours: torch.Tensor) -> torch.Tensor:
        """Our tensor at the places that the case keeps."""
        how = self.manifest["outputs"][key]["stored"]
        return ours if how == "full" else ours[..., :: int(how.split("::")[1].rstrip("]"))]
