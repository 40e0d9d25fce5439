"""What tests of the example programs share: loading a program, and an encoder small enough to train around."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

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


@contextmanager
def imported(name: str, *folders: Path) -> Iterator[ModuleType]:
    """A program as it is when it is started in its folder; what it imports from examples/ is forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(str(folder))
        yield importlib.import_module(name)
    for other, module in list(sys.modules.items()):
        if EXAMPLES in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[other]


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
