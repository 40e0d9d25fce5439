"""Small classifiers to export, one for each kind of graph, and clouds to run them on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from tests.tiny_encoders import adapted_model, clouds, tiny_model, train_step

LABELS = ["bottle", "chair", "lamp"]


def text_with_point_tokenizer() -> PeftModel:
    """Positions from a line; guidance pools means and maxima."""
    return adapted_model("bert", {"pooling": "max_mean"}, num_layers=1, id2label=dict(enumerate(LABELS)))


def vision_with_patch_tokenizer() -> PeftModel:
    """Positions from a plane, colors, and the released programs' settings that do not mix clouds."""
    return adapted_model(
        "vit",
        {"gate": 0.5},
        num_layers=1,
        tokenizer="patch",
        tokenizer_width=24,
        in_channels=6,
        token_scale=1.0,
        released={
            "sampling_tie_rule": "cuda",
            "sampling_min_squared_norm": 1e-3,
            "plane_mapping": "wrap",
            "transposed_plane_positions": True,
            "position_injection": "input_and_every_layer",
        },
    )


def rotary_with_lora() -> PeftModel:
    """Positions in the attention; LoRA in the frozen layers, not merged."""
    model = tiny_model("llama", num_layers=1, tokenizer="patch", tokenizer_width=24)
    lora = LoraConfig(
        r=4,
        target_modules=encoder_linear_pattern(model),
        modules_to_save=trainable_module_names(model),
        init_lora_weights=False,
    )
    return get_peft_model(model, lora)


CASES = {case.__name__: case for case in (text_with_point_tokenizer, vision_with_patch_tokenizer, rotary_with_lora)}


def trained(name: str) -> PeftModel:
    """A case after two training steps, which change the statistics, with several labels among `other_clouds`."""
    model = CASES[name]()
    for seed in (5, 6):
        train_step(model, clouds(6, 64, model.config.in_channels, seed))
    heads = [
        module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == len(LABELS)
    ]
    asked = other_clouds(model.config.in_channels)
    with torch.no_grad():
        for head in heads:
            nn.init.normal_(head.weight, std=20.0, generator=torch.Generator().manual_seed(0))
        model.eval()
        # Otherwise an untrained head predicts one label for all clouds.
        middle = torch.cat([model(points=points).logits for points in asked]).mean(dim=0)
        for head in heads:
            head.bias -= middle
    return model


def other_clouds(channels: int) -> list[torch.Tensor]:
    """Batches of sizes that no graph was traced with; the last one has ties and repeated points."""
    grid = (clouds(4, 300, channels, seed=9) * 3).round() / 3
    return [clouds(1, 700, channels, seed=7), clouds(5, 2048, channels, seed=8), grid]


def assert_written(file: Path, printed: str, labels: list[str], min_points: int) -> None:
    """Assert what `hf-any3d export` says of a file, and the settings that it writes beside it."""
    assert f"{file.name}: " in printed and " MB; outputs differ by at most " in printed
    assert {"model.json", file.name} == {one.name for one in file.parent.iterdir() if one.suffix != ".safetensors"}
    settings = json.loads((file.parent / "model.json").read_text())
    assert settings["labels"] == labels
    assert settings["input"] == {
        "name": "points",
        "shape": ["batch", "points", 3],
        "dtype": "float32",
        "min_points": min_points,
    }
    assert settings["processor"]["num_points"] == 64 and settings["processor"]["up_axis"] == "z"
    assert 0 <= settings["worst_difference"] < 1e-4
