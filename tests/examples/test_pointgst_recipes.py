"""PointGST's recipes have the published values, and each kind of them runs."""

import json

import pytest
import yaml

from examples import run_point_cloud_classification
from hf_any3d import ActConfig, ActForPointCloudClassification, ActModel, PointGSTConfig
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments
from hf_any3d.training.models import PointModelArguments
from tests.examples.conftest import words_of
from tests.examples.test_act_recipes import FOLDER, SHORT, TINY, datasets, parsed
from tests.tuners.peft_case import FOLDER as CASES

__all__ = ["datasets"]  # a fixture
RECIPES = sorted(path.stem for path in FOLDER.glob("pointgst_*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_published_values_and_its_own_command(recipe):
    found, case = parsed(recipe), "modelnet" if "modelnet" in recipe else "scan"
    manifest = json.loads((CASES / f"peft_released_pgst_{case}.json").read_text())
    sizes = manifest["constructor_args"]
    config = PointGSTConfig(**found[AdapterArguments].peft_config)
    assert found[AdapterArguments].peft == "pointgst"
    assert (config.r, config.local_size) == (sizes["rank"], sizes["local"])
    settings = ActConfig(**found[PointModelArguments].model_config)
    assert (settings.num_groups, settings.group_size) == (sizes["num_group"], sizes["group_size"])
    assert settings.drop_path_rate == sizes["drop_path_rate"]
    data, training = found[DataArguments], found[PointTrainingArguments]
    assert data.num_points == (1024 if case == "modelnet" else 2048)
    assert any("scale" in step for step in data.augment) == (case == "modelnet")
    assert any("rotate" in step for step in data.augment) == (case == "scan")
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (5e-4, 0.05, 10)
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (32, 301)
    schedule = training.epoch_schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_lr, schedule.repeat_first) == (300, 10, 1e-6, 1)
    text = (FOLDER / f"{recipe}.yaml").read_text()
    assert f"python examples/run_point_cloud_classification.py examples/recipes/{recipe}.yaml --data_dir DATA" in text
    assert yaml.safe_load(text)["output_dir"] == training.output_dir == f"outputs/recipes/{recipe}"
    assert f"{manifest['trained_parameters']:,}" in text


@pytest.mark.parametrize("recipe", ["pointgst_modelnet40", "pointgst_scanobjectnn_obj_bg"])
def test_recipe_runs_and_stores_an_adapter(datasets, tmp_path, recipe):  # noqa: F811  the fixture
    ActModel(ActConfig(**TINY)).save_pretrained(tmp_path / "base")
    settings = SHORT | {"output_dir": str(tmp_path / "out"), "model_name_or_path": str(tmp_path / "base")}
    settings |= {"model_config": TINY, "augment": ["subsample:num_points=64"]}
    report = run_point_cloud_classification.main([str(FOLDER / f"{recipe}.yaml"), *words_of(settings)])
    assert report.start["tuning"] == "adapter"
    stored = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (stored["peft_type"], stored["transform"], stored["r"]) == ("POINTGST", "fourier", 36)
    assert {"class_token", "classifier"} <= set(stored["modules_to_save"])
    assert isinstance(ActForPointCloudClassification.from_pretrained(tmp_path / "out"), ActForPointCloudClassification)
