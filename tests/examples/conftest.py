"""What tests of the example programs share: loading a program, and an encoder small enough to train around."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import BertConfig, BertModel

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load_program(name: str) -> ModuleType:
    """Import a file of examples/ under its own name, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_encoder(hub) -> str:
    """Name of a random two-layer BERT on the local hub."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).push_to_hub("me/tiny-bert")
    return "me/tiny-bert"
