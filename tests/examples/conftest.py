"""What tests of the example programs share: loading a program, and an encoder small enough to train around."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tiny_encoders import random_encoder, tiny_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SMALL = {
    "num_tokens": 8,
    "tokenizer_neighbors": 4,
    "num_points": 64,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 0.01,
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}
"""Arguments of a training program that make a run short."""


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Arguments as a command line would have them."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return words


@contextmanager
def imported_beside_others(name: str) -> Iterator[ModuleType]:
    """A program that imports other files of examples/; all of them are forgotten at the end."""
    there = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module(name)
    for file in EXAMPLES.glob("*.py"):
        if file.stem not in there:
            sys.modules.pop(file.stem, None)


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
