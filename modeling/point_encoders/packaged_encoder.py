"""The point encoder that comes with the package: that of the classifier which pipelines open without a name."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path(str(files("hf_any3d") / "default_model"))
"""Directory of the classifier around it."""
PACKAGED_UP_AXIS = "y"
"""The axis that points up in the shapes that it has learned."""
_OF_THE_CLASSIFIER = ("architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version", "unknown")


def packaged_settings() -> dict[str, Any]:
    """Return the settings of its configuration, `model_type` included."""
    # The file is that of a classifier, whose labels and scores are none of the encoder's.
    stored = json.loads((FOLDER / "config.json").read_text())
    return {name: value for name, value in stored.items() if name not in _OF_THE_CLASSIFIER}


@cache
def packaged_weights() -> dict[str, torch.Tensor]:
    """Return its weights by their names in the encoder; they are shared, and not to be changed."""
    # Where the classifier has its encoder; heads and scores are left out.
    prefix = "act."
    stored = _classifier()
    return {name.removeprefix(prefix): weight for name, weight in stored.items() if name.startswith(prefix)}


def packaged_rows() -> torch.Tensor:
    """Return its features `(shapes, width)` of the upright shapes from which the classifier has learned."""
    return _classifier()["unknown_score.features"]


def packaged_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that comes with the package, without transformers' models, which start slowly."""
    return load_file(file)


def _classifier() -> dict[str, torch.Tensor]:
    return packaged_tensors(FOLDER / "model.safetensors")
