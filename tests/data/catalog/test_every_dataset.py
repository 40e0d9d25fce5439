"""Tests of every published dataset of the catalog."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import dataset_module
from hf_any3d.data.parquet.published_dataset import OPEN_LICENSES
from hf_any3d.registry import DATASETS as NAMES, OF_YOUR_FILES

MODULES = {name: dataset_module(name) for name in NAMES}
DATASETS = {name: module for name, module in MODULES.items() if hasattr(module, "DATASET")}
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "datasets.md"


@pytest.mark.parametrize("name", DATASETS)
def test_it_has_a_description(name):
    described = DATASETS[name].DATASET
    assert described.name == name and described.description.endswith(".")
    assert described.homepage.startswith("https://") and "https://" in described.origin
    assert described.citation.startswith("@") and described.citation.count("{") == described.citation.count("}")
    assert described.license.name in OPEN_LICENSES or described.license.terms and described.license.link
    assert len(set(described.class_names)) == len(described.class_names)
    assert all(count > 0 for splits in described.expected_counts.values() for count in splits.values())
    assert all(line.startswith("  ") for line in described.layout.splitlines())


def test_data_that_come_with_the_package_have_a_license_too():
    own = {name: module for name, module in MODULES.items() if name not in DATASETS}
    assert {name for name, module in own.items() if not hasattr(module, "LICENSE")} == {*OF_YOUR_FILES}
    parts = load_point_dataset("parts", train_objects=2, validation_objects=0, test_objects=0, num_points=64)
    assert parts["train"].info.license == str(own["parts"].LICENSE) == "apache-2.0"
    assert all(
        module.LICENSE.name in OPEN_LICENSES or module.LICENSE.terms
        for name, module in own.items()
        if name in ("parts", "rooms", "shapes")
    )


@pytest.mark.parametrize("name", DATASETS)
def test_its_loader_accepts_the_common_options(name):
    parameters = list(inspect.signature(DATASETS[name].load).parameters.values())
    assert parameters[0].name == "data_dir" and parameters[0].default is None
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[1:-1])


@pytest.mark.parametrize("name", DATASETS)
def test_without_its_files_the_error_says_where_to_get_them(name, tmp_path, cache_dir):
    described = DATASETS[name].DATASET
    for data_dir in (None, tmp_path, tmp_path / "no"):
        with pytest.raises(FileNotFoundError) as error:
            load_point_dataset(name, data_dir=data_dir, cache_dir=cache_dir)
        assert {described.origin, described.layout} <= set(error.value.__notes__)


def test_the_example_of_how_to_add_one_works(tmp_path, cache_dir):
    names: dict = {}
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Add a data set")[2]
    exec(section.split("```python\n")[1].split("```")[0], names)
    for split, name in (("train", "mug_0001"), ("train", "tile_0002"), ("test", "tile_0001")):
        (tmp_path / split).mkdir(exist_ok=True)
        np.save(tmp_path / split / f"{name}.npy", np.ones((4, 3), np.float32))
    splits = names["load"](tmp_path, cache_dir=cache_dir, verify=False)
    assert splits["train"]["label"][:] == [0, 1] and splits["test"].features["label"].names == ["mug", "tile"]
    with pytest.raises(ValueError, match="mine, split train, has 2 clouds; expected 100, so 98 are missing"):
        names["load"](tmp_path, cache_dir=cache_dir)


@pytest.mark.parametrize("name", DATASETS)
def test_it_is_in_the_document(name):
    assert f"| `{name}` |" in DOCUMENT.read_text(encoding="utf-8")
