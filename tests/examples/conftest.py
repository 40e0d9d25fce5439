"""What tests of the example programs share: loading a program, and an encoder small enough to train around."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny_encoders import random_encoder, tiny_config

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
    random_encoder(tiny_config("bert")).push_to_hub("me/tiny-bert")
    return "me/tiny-bert"
