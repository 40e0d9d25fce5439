"""Start a model of your own: `python -m tests.skeleton my_model`, in the root of a checkout.

Writes `modeling/my_model`, a small network with a classification head that already does what `tests/common` asks of
every model, and its line of the registry. Then put your layers in place of `MyModelLayer`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

CONFIGURATION = '''"""Configuration of the MyModel network."""

from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig


class MyModelConfig(PointCloudConfig):
    """Configuration of the MyModel network.

    Args:
        hidden_sizes: Channels of the layers.
        **kwargs: What all models have: `in_channels`, `head_widths`, `head_dropout`.
    """

    model_type = "my_model"
'''

MODELING = '''"""MyModel: points ─► the same layers on each point ─► maximum over the cloud ─► scores.

Shapes: B clouds, N points of each.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.modeling.layers.forward_contract import strict_forward
from hf_any3d.modeling.layers.heads import ClassificationHead
from hf_any3d.modeling.layers.losses import classification_loss
from hf_any3d.modeling.my_model.configuration_my_model import MyModelConfig
from hf_any3d.modeling.point_encoders.base_model import PointCloudModel, PointCloudPreTrainedModel


class MyModelLayer(nn.Module):
    """Linear layer on each point, with a norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features `(batch, points, inputs)` to `(batch, points, outputs)`."""
        return torch.relu(self.norm(self.linear(features)))


class MyModelPreTrainedModel(PointCloudPreTrainedModel):
    """Base class of MyModel models."""

    config_class = MyModelConfig
    base_model_prefix = "my_model"


class MyModelModel(PointCloudModel, MyModelPreTrainedModel):
    """MyModel network without a head."""

    def __init__(self, config: MyModelConfig):
        super().__init__(config)
        sizes = (config.in_channels, *config.hidden_sizes)
        self.layers = nn.ModuleList(map(MyModelLayer, sizes[:-1], sizes[1:]))
        self.post_init()

    def encode(self, points: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the points with the output of each layer, and their positions."""
        states = [self.input_tokens(points.to(self.dtype))]  # (B, N, in_channels)
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states, points[..., :3]


class MyModelForPointCloudClassification(MyModelPreTrainedModel):
    """MyModel network with a classification head."""

    def __init__(self, config: MyModelConfig):
        super().__init__(config)
        self.my_model = MyModelModel(config)
        self.classifier = ClassificationHead(
            config.hidden_size, config.num_labels, config.head_widths, dropout=config.head_dropout
        )
        self.post_init()

    @strict_forward
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify point clouds; returns `logits (batch, labels)`."""
        output = self.my_model(points, **kwargs, return_dict=True)
        logits = self.classifier(output.pooler_output)  # (B, labels)
        loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)
'''

PACKAGE = '''"""MyModel, trained from scratch."""

from hf_any3d.modeling.my_model.configuration_my_model import MyModelConfig
from hf_any3d.modeling.my_model.modeling_my_model import (
    MyModelForPointCloudClassification,
    MyModelModel,
    MyModelPreTrainedModel,
)

__all__ = ["MyModelConfig", "MyModelForPointCloudClassification", "MyModelModel", "MyModelPreTrainedModel"]
'''

RECORD = '''"""MyModel as the rest of the package knows it; see `hf_any3d.modeling.records`."""

from hf_any3d.modeling.records import ModelType, Record

RECORD = Record(
    model_types={
        "my_model": ModelType(
            "MyModelConfig",
            "MyModelModel",
            {"point-cloud-classification": ("MyModelForPointCloudClassification",)},
            says="a small network, trained from scratch",
        ),
    },
)
'''

FILES = {
    "configuration_my_model.py": CONFIGURATION,
    "modeling_my_model.py": MODELING,
    "__init__.py": PACKAGE,
    "about.py": RECORD,
}
# The end of the list of folders in the registry.
REGISTERED = ')\n"""Folders in `modeling/`'


def write_skeleton(name: str, root: Path) -> Path:
    """Write the folder of a new model, and its line of the registry.

    Args:
        name: Name of the folder and of the model type, in lower case with underscores.
        root: The root of a checkout.

    Returns:
        The folder.

    Raises:
        ValueError: If the name is no such name, or if there is no registry at this root.
        FileExistsError: If there is such a folder already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f"{name!r} is no name of a model, such as my_model")
    registry = root / "hf_any3d" / "registry.py"
    if not registry.is_file():
        raise ValueError(f"{root} is not the root of a checkout: it has no hf_any3d/registry.py")
    folder = root / "modeling" / name
    folder.mkdir()
    class_name = class_name_of(name)
    for file, text in FILES.items():
        text = sort_imports(text.replace("MyModel", class_name).replace("my_model", name))
        (folder / file.replace("my_model", name)).write_text(text, encoding="utf-8")
    lines = registry.read_text(encoding="utf-8")
    registry.write_text(lines.replace(REGISTERED, f'    "{name}",\n{REGISTERED}', 1), encoding="utf-8")
    return folder


def class_name_of(name: str) -> str:
    """Return the name that the classes of a model begin with, such as MyModel."""
    return "".join(word.capitalize() for word in name.split("_"))


def sort_imports(text: str) -> str:
    """Return a file with its one-line imports of this package in the order of their names."""
    lines = text.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.startswith("from hf_any3d.") and "(" not in line]
    imports = sorted(lines[number] for number in places)
    for number, line in zip(places, imports, strict=True):
        lines[number] = line
    return "".join(lines)


def main() -> int:
    """Write the skeleton that the arguments name, and say what to run."""
    parser = argparse.ArgumentParser(prog="python -m tests.skeleton", description=__doc__)
    parser.add_argument("name", help="name of the model in lower case, such as my_model")
    name = parser.parse_args().name
    try:
        folder = write_skeleton(name, Path.cwd())
    except (ValueError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 2
    tests = f"HF_ANY3D_ALL_PAIRS=1 python -m pytest tests/common -k {class_name_of(name)}"
    print(f"{folder.relative_to(Path.cwd())}: registered; try: {tests}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
