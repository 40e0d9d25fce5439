"""Short settings, tiny datasets and tiny encoders for tests of the example programs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

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
"""Arguments of a training program for a short run."""


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Convert arguments to a command line."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return words


def python_blocks(card: str) -> list[str]:
    """Find the Python code blocks of a model card."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def tiny_shapes(classes: int = 2, rows: int = 8, points: int = 160) -> DatasetDict:
    """Random clouds of classes with different extents, the same for training and test."""
    random = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    clouds = random.normal(size=(rows, points, 3)) * (1 + labels)[:, None, None]
    features = Features(
        points=Array2D((points, 3), "float32"), label=ClassLabel(names=[f"class {i}" for i in range(classes)])
    )
    one = Dataset.from_dict({"points": clouds.astype(np.float32), "label": labels}, features=features)
    one = one.with_format("numpy")
    return DatasetDict(train=one, test=one)
