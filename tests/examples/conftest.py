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

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

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
def imported_beside_others(name: str, folder: Path = EXAMPLES) -> Iterator[ModuleType]:
    """A program that imports other files of examples/; all of them are forgotten at the end."""
    there = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module(name)
    for other in set(sys.modules) - there:
        if EXAMPLES in Path(getattr(sys.modules[other], "__file__", None) or "/").parents:
            del sys.modules[other]


def load_program(name: str) -> ModuleType:
    """Import a file of examples/ under its own name, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def tiny_shapes(classes: int = 2, rows: int = 8, points: int = 160) -> DatasetDict:
    """Random clouds of classes that differ in their extent, the same for training and test."""
    random = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    clouds = random.normal(size=(rows, points, 3)) * (1 + labels)[:, None, None]
    features = Features(
        points=Array2D((points, 3), "float32"), label=ClassLabel(names=[f"class {i}" for i in range(classes)])
    )
    one = Dataset.from_dict({"points": clouds.astype(np.float32), "label": labels}, features=features)
    one = one.with_format("numpy")
    return DatasetDict(train=one, test=one)


@pytest.fixture(scope="session")
def tiny_encoder(hub) -> str:
    """Name of a random two-layer BERT on the local hub."""
    random_encoder(tiny_config("bert")).push_to_hub("me/tiny-bert")
    return "me/tiny-bert"
