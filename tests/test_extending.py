"""The tables "To add something" of docs/architecture.md, tried in a copy of the source: these files and no others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Copy:
    """A copy of the source with all additions, and what their programs print, all in one process.

    Args:
        folder: Where the copy is made.
    """

    def __init__(self, folder: Path):
        for name in ("hf_any3d", "modeling", "conversions"):
            # With its caches of compiled files.
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
        programs = {name: add(folder) for name, add in ADDITIONS.items()}
        # The installation of the checkout would come first, where it is a finder.
        start = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f}{type(f)}'.lower()]\n"
        start += f"import hf_any3d; assert hf_any3d.__file__.startswith({str(folder)!r})\n"
        each = f"""
import contextlib, io, json, traceback
results = {{}}
for name, program in {programs!r}.items():
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(program, {{"__name__": "__main__"}})
    except Exception:
        results[name] = [None, traceback.format_exc()]
    else:
        results[name] = [printed.getvalue(), ""]
open("results.json", "w").write(json.dumps(results))
"""
        environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", start + each], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        self.results = json.loads((folder / "results.json").read_text())

    def printed(self, addition: str) -> str:
        """Return what the program of an addition printed."""
        printed, error = self.results[addition]
        assert printed is not None, error
        return printed


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


def add_line(file: Path, after: str, line: str) -> None:
    """Insert a line after the first one that contains a text."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(number for number, text in enumerate(lines) if after in text)
    lines.insert(place + 1, line + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text that a file contains once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new), encoding="utf-8")


def add_file_format(folder: Path) -> str:
    (folder / "hf_any3d/data/files/corners.py").write_text(
        "import numpy as np\n"
        "from hf_any3d.data.files.point_cloud import PointCloudData\n"
        "def read(source):\n"
        "    return PointCloudData(np.frombuffer(source.data, '<f4').reshape(-1, 3))\n"
    )
    add_line(folder / "hf_any3d/data/files/registry.py", "READERS = {", '    "corners": "corners",')
    (folder / "cube.corners").write_bytes(bytes(range(24)) * 2)
    program = """
import hf_any3d
print(len(hf_any3d.read_point_cloud("cube.corners")))
print(tuple(hf_any3d.PointCloudProcessor(num_points=2)("cube.corners")["points"][0].shape))
"""
    return program


def add_dataset(folder: Path) -> str:
    (folder / "hf_any3d/data/catalog/dice.py").write_text(
        "from datasets import ClassLabel, Dataset, DatasetDict\n"
        "def load(data_dir=None, **options):\n"
        "    rows = Dataset.from_dict({'points': [[[0.0, 0.0, n]] * 4 for n in range(6)], 'label': [0, 1] * 3})\n"
        "    return DatasetDict(train=rows.cast_column('label', ClassLabel(names=['even', 'odd'])))\n"
    )
    add_line(folder / "hf_any3d/data/catalog/__init__.py", "CATALOG: dict", '    "dice": "dice",')
    program = (
        "import hf_any3d; rows = hf_any3d.load_point_dataset('dice', split='train')\n"
        "print(len(rows), rows[0]['points'].shape, rows.features['label'].names)"
    )
    return program


def add_encoder_family(folder: Path) -> str:
    file = folder / "modeling/encoders/families/vision.py"
    file.write_text(
        file.read_text(encoding="utf-8") + "\n\nregister_family(\n"
        "    EncoderFamily(name='Own', model_types=('own_vit',), tower='vision', layers='layers', branch='mlp',\n"
        "        positions=_grid(1), final_norm='layernorm', class_token=class_token)\n)\n",
        encoding="utf-8",
    )
    program = """
import hf_any3d, torch
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel
class OwnConfig(ViTConfig): model_type = "own_vit"
class OwnModel(ViTModel): config_class = OwnConfig
AutoConfig.register("own_vit", OwnConfig); AutoModel.register(OwnConfig, OwnModel)
sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
OwnModel(OwnConfig(image_size=32, patch_size=8, **sizes)).save_pretrained("own")
model = hf_any3d.Any2PointModel.from_encoder_pretrained("own", num_tokens=16).eval()
print(tuple(model(torch.rand(2, 64, 3)).pooler_output.shape))
"""
    return program


def add_head(folder: Path) -> str:
    name = "Any2PointForPointCloudRegression"
    file = folder / "modeling/any2point/modeling_any2point.py"
    add_line(file, "modeling.card_info import (", "    CardTask,")
    file.write_text(
        file.read_text(encoding="utf-8")
        + f"""

class {name}(Any2PointForPointCloudClassification):
    card_info = CardInfo(
        "regression",
        text=CardTask(
            task="point-cloud-classification",
            task_name="Point cloud regression",
            intro="Estimates numbers from 3D point clouds.",
            use='estimate("chair.ply", top_k=None)',
            portions="clouds are sampled to {{points}} in the unit sphere.",
            logits='numbers = model(**processor("chair.ply", return_tensors="pt")).logits',
            verb="estimate",
            metrics={{"mse": "Mean squared error"}},
            class_score="",
            has_classes=False,
            factors={{"mse": 1.0}},
        ),
    )

    def __init__(self, config, encoder=None):
        config.problem_type = "regression"
        super().__init__(config, encoder)
""",
        encoding="utf-8",
    )
    imported = folder / "modeling/any2point/__init__.py"
    add_line(imported, "modeling_any2point import (", f"    {name},")
    add_line(imported, "__all__ = [", f'    "{name}",')
    replace(folder / "hf_any3d/__init__.py", 'PointTokenizerModel"', f'PointTokenizerModel {name}"')
    one = "any2point.Any2PointForPointCloudClassification,"
    replace(folder / "hf_any3d/registration.py", one, f"{one} any2point.{name}")
    program = f"""
import hf_any3d, torch
from transformers import ViTConfig, ViTModel, pipeline
sizes = {{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}}
ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained("vit")
model = hf_any3d.{name}.from_encoder_pretrained("vit", num_tokens=16, num_labels=3)
assert model(points=torch.rand(2, 64, 3), labels=torch.rand(2, 3)).loss.ndim == 0
model.save_pretrained("numbers")
hf_any3d.PointCloudProcessor(num_points=64).save_pretrained("numbers")
assert "Estimates numbers" in open("numbers/README.md").read()
opened = hf_any3d.AutoModelForPointCloudClassification.from_pretrained("numbers")
estimate = pipeline("point-cloud-classification", model="numbers")
print(type(opened).__name__, len(estimate(torch.rand(64, 3), top_k=None)))
"""
    return program


def add_model(folder: Path) -> str:
    own = folder / "modeling/mean_point"
    own.mkdir()
    (own / "configuration_mean_point.py").write_text(
        "from transformers import PreTrainedConfig\n"
        "from hf_any3d.modeling.card_info import NamesPackageMixin\n"
        "class MeanPointConfig(NamesPackageMixin, PreTrainedConfig):\n"
        "    model_type = 'mean_point'\n"
        "    in_channels: int = 3\n"
    )
    (own / "modeling_mean_point.py").write_text(
        "from torch import nn\n"
        "from transformers import PreTrainedModel\n"
        "from transformers.modeling_outputs import BaseModelOutputWithPooling\n"
        "from hf_any3d.modeling.card_info import STORED_HERE, CardDescription, CardInfo, CardMixin\n"
        "from hf_any3d.modeling.layers.tasks import PointCloudClassificationMixin\n"
        "from hf_any3d.modeling.mean_point.configuration_mean_point import MeanPointConfig\n"
        "class MeanPointPreTrainedModel(CardMixin, PreTrainedModel):\n"
        "    config_class = MeanPointConfig\n"
        "    base_model_prefix = 'mean_point'\n"
        "    main_input_name = 'points'\n"
        "    @classmethod\n"
        "    def describe_for_card(cls, subject):\n"
        "        return CardDescription(what='It reads the mean point.', stored=STORED_HERE, tags=('mean_point',))\n"
        "class MeanPointModel(MeanPointPreTrainedModel):\n"
        "    card_info = CardInfo('features', opens='MeanPointModel')\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.linear = nn.Linear(config.in_channels, 8)\n"
        "        self.post_init()\n"
        "    def forward(self, points, output_hidden_states=None, output_attentions=None, return_dict=True):\n"
        "        states = self.linear(points)\n"
        "        return BaseModelOutputWithPooling(states, states.mean(dim=1))\n"
        "class MeanPointForPointCloudClassification(PointCloudClassificationMixin, MeanPointPreTrainedModel):\n"
        "    card_info = CardInfo('classification')\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.mean_point = MeanPointModel(config)\n"
        "        self.classifier = nn.Linear(8, config.num_labels)\n"
        "        self.post_init()\n"
    )
    names = "MeanPointForPointCloudClassification", "MeanPointModel"
    (own / "__init__.py").write_text(
        "from hf_any3d.modeling.mean_point.configuration_mean_point import MeanPointConfig\n"
        f"from hf_any3d.modeling.mean_point.modeling_mean_point import {', '.join(names)}\n"
    )
    public = f'    "modeling.mean_point": "MeanPointConfig {" ".join(names)}",'
    add_line(folder / "hf_any3d/__init__.py", "_NAMES = {", public)
    registration = folder / "hf_any3d/registration.py"
    add_line(registration, "import set_card_writer", "from hf_any3d.modeling import mean_point")
    heads = "{auto.AutoModelForPointCloudClassification: (mean_point.MeanPointForPointCloudClassification,)}"
    add_line(registration, "MODELS = {", f"    mean_point.MeanPointConfig: (mean_point.MeanPointModel, {heads}),")
    program = """
import hf_any3d, torch
from hf_any3d.model_facts import model_facts
from hf_any3d.training.models import MODEL_TYPES
from transformers import AutoConfig, AutoModel, pipeline
model = hf_any3d.AutoModelForPointCloudClassification.from_config(AutoConfig.for_model("mean_point"))
model.save_pretrained("mean")
hf_any3d.PointCloudProcessor(num_points=4).save_pretrained("mean")
assert "It reads the mean point." in open("mean/README.md").read()
assert type(AutoModel.from_pretrained("mean")).__name__ == "MeanPointModel"
assert len(pipeline("point-cloud-classification", model="mean")(torch.rand(4, 3), top_k=None)) == 2
facts = model_facts("mean")
print("mean_point" in MODEL_TYPES, facts["class"], facts["total parameters"], facts["tokens"])
"""
    return program


ADDITIONS = {
    "file_format": add_file_format,
    "dataset": add_dataset,
    "encoder_family": add_encoder_family,
    "head": add_head,
    "model": add_model,
}
"""Each adds something to a copy of the source and returns a program that uses it."""


def test_a_file_format_is_a_file_and_a_line(copy):
    assert copy.printed("file_format").split("\n")[:2] == ["4", "(2, 3)"]


def test_a_dataset_is_a_file_and_a_line(copy):
    assert copy.printed("dataset").strip() == "6 (4, 3) ['even', 'odd']"


def test_an_encoder_family_is_a_call(copy):
    assert copy.printed("encoder_family").strip() == "(2, 72)"


def test_a_head_is_in_four_files(copy):
    assert copy.printed("head").strip() == "Any2PointForPointCloudRegression 3"


def test_a_model_is_its_folder_and_two_tables(copy):
    assert copy.printed("model").strip() == "True MeanPointForPointCloudClassification 50 None"
