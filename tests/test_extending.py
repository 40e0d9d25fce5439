"""The tables "To add something" of docs/architecture.md, tried in a copy of the source: these files and no others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path):
    """A copy of the source, and a function that runs a program with it."""
    for folder in ("hf_any3d", "modeling", "conversions"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))

    def run(program: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        # The installation of the checkout would come first, where it is a finder.
        start = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in f'{f}{type(f)}'.lower()]\n"
        done = subprocess.run(
            [sys.executable, "-c", start + program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return tmp_path, run


def add_line(file: Path, after: str, line: str) -> None:
    """Insert a line after the first one that contains a text."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(number for number, text in enumerate(lines) if after in text)
    lines.insert(place + 1, line + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def test_a_file_format_is_a_file_and_a_line(copy):
    folder, run = copy
    (folder / "hf_any3d/data/files/corners.py").write_text(
        "import numpy as np\n"
        "from hf_any3d.data.files.point_cloud import PointCloudData\n"
        "def read(source):\n"
        "    return PointCloudData(np.frombuffer(source.data, '<f4').reshape(-1, 3))\n"
    )
    add_line(folder / "hf_any3d/data/files/registry.py", "READERS = {", '    "corners": "corners",')
    (folder / "cube.corners").write_bytes(bytes(range(24)) * 2)
    assert run("import hf_any3d; print(len(hf_any3d.read_point_cloud('cube.corners')))").strip() == "4"
    program = (
        "import hf_any3d\nprint(tuple(hf_any3d.PointCloudProcessor(num_points=2)('cube.corners')['points'][0].shape))"
    )
    assert run(program).strip() == "(2, 3)"


def test_a_dataset_is_a_file_and_a_line(copy):
    folder, run = copy
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
    assert run(program).strip() == "6 (4, 3) ['even', 'odd']"


def test_an_encoder_family_is_a_call(copy):
    folder, run = copy
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
    assert run(program).strip() == "(2, 48)"
