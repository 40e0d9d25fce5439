"""Short settings of ACT's programs, and comparisons of runs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SHORT = {
    "num_points": 96,
    "max_train_samples": 32,
    "max_eval_samples": 12,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_total_limit": 3,
    "learning_rate": 0.01,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}
"""Arguments of both stages: eight steps on embedded shapes."""

CUT: dict[str, Any] = {"num_groups": 8, "group_size": 8}
AUTOENCODER = SHORT | {
    "model_config": {
        **CUT,
        "hidden_size": 16,
        "num_codes": 16,
        "graph_input_width": 16,
        "graph_widths": [16, 16],
        "coarse_width": 16,
        "folding_width": 16,
        "num_prompts": 2,
    }
}
STUDENT = SHORT | {
    "model_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    }
}


def losses_of(checkpoint: Path) -> list[float]:
    """Read the training loss of each step until a checkpoint."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a saved model or adapter."""
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else folder / "model.safetensors")


def assert_equal_weights(one: Path, other: Path) -> None:
    """Assert that two saved models have the same tensors."""
    first, second = weights_in(one), weights_in(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
