import runpy
from pathlib import Path

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Value, load_dataset

SCRIPT = Path(__file__).parents[2] / "examples" / "make_cut.py"
SOURCES = {"Scopia": "CC-BY-3.0", "eTeks": "GPL-2.0-or-later", "BlendSwap-CC-0": "CC0-1.0"}


def full_set(folder, groups):
    """Two splits of three shapes each, one of every collection, with twice the points that are kept."""
    generator = np.random.default_rng(0)
    text = {name: Value("string") for name in ("name", "title", "source", "creator", "license")}
    features = Features(
        {
            "points": Array2D((2048, 3), "float16"),
            "normals": Array2D((2048, 3), "float16"),
            "colors": Array2D((2048, 3), "uint8"),
            "part": Value("string"),
            "label": ClassLabel(names=["cup", "mug"]),
            "group": Value("int32"),
            **text,
        }
    )
    folder.mkdir()
    for split in groups:
        columns = {name: [f"{name} {source}" for source in SOURCES] for name in text}
        columns.update(source=list(SOURCES), license=list(SOURCES.values()), label=[0, 0, 1], group=groups[split])
        columns["part"] = ["left out"] * 3
        for name in ("points", "normals"):
            columns[name] = generator.uniform(-1, 1, (3, 2048, 3)).astype(np.float16)
        columns["colors"] = generator.integers(0, 256, (3, 2048, 3), dtype=np.uint8)
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.slow
def test_the_cut_keeps_the_first_points_of_shapes_under_creative_commons(tmp_path):
    cache_dir = str(tmp_path / "cache")
    source = full_set(tmp_path / "full", {"train": [0, 1, 2], "test": [3, 4, 5]})
    runpy.run_path(str(SCRIPT))["main"](["--source", str(source), "--output", str(tmp_path / "cut")])
    small = load_dataset(str(tmp_path / "cut"), cache_dir=cache_dir).with_format("numpy")
    full = load_dataset("parquet", data_dir=str(source), cache_dir=cache_dir).with_format("numpy")
    assert small["train"]["source"][:].tolist() == ["Scopia", "BlendSwap-CC-0"]
    assert small["train"].features["points"] == Array2D((1024, 3), "float32")
    assert "part" not in small["train"].column_names
    for name in ("points", "normals", "colors"):
        np.testing.assert_array_equal(small["test"][1][name], full["test"][2][name][:1024])
    card = (tmp_path / "cut" / "README.md").read_text(encoding="utf-8")
    assert "# 4 real 3D models in 2 classes" in card and "| cup | 1 | 1 |" in card and "creator Scopia" in card
