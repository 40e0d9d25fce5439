"""Recipes of adapters on ACT's transformer have the published values, and each kind of them runs."""

import json

import pytest
import torch
import yaml
from peft import get_peft_model

from examples import run_point_cloud_classification
from hf_any3d import ActConfig, ActForPointCloudClassification, ActModel, DAPTConfig, IDPTConfig, PPTConfig
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments
from hf_any3d.training.models import PointModelArguments
from tests.examples.conftest import words_of
from tests.examples.test_act_recipes import FOLDER, SHORT, TINY, datasets, parsed
from tests.tuners.peft_case import FOLDER as CASES

__all__ = ["datasets"]  # a fixture


METHODS = {"idpt": IDPTConfig, "dapt": DAPTConfig, "ppt": PPTConfig}
CASE_OF = {"modelnet40": "modelnet", "pb_t50_rs": "scan", "obj_bg": "objbg", "obj_only": "objonly"}
POOLING = {
    "all": ["cls", "prompt_mean", "max"],
    "promptonly": ["prompt_mean"],
    ("use", "mean", "max"): ["cls", "prompt_mean", "max"],
    ("use", "mean", "None"): ["cls", "prompt_mean"],
    ("use", "None", "max"): ["cls", "max"],
}
OTHERS = sorted(path.stem for method in METHODS for path in FOLDER.glob(f"{method}_*.yaml"))
CLASSIFIERS = [name for name in OTHERS if "fewshot" not in name and "shapenetpart" not in name]


def sizes_of(recipe):
    """Constructor arguments of the released program, and the number of its trained parameters."""
    method, _, rest = recipe.partition("_")
    case = CASE_OF[rest.removeprefix("scanobjectnn_")]
    path = CASES / f"peft_released_{method}_{case}.json"
    path = path if path.is_file() else CASES / f"peft_released_{method}_scan.json"
    manifest = json.loads(path.read_text())
    return manifest["constructor_args"], manifest["trained_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CLASSIFIERS)
def test_recipes_of_other_methods_have_the_published_values(recipe):
    found, (sizes, count), method = parsed(recipe), sizes_of(recipe), recipe.partition("_")[0]
    assert found[AdapterArguments].peft == method
    config = METHODS[method](**found[AdapterArguments].peft_config)
    settings = ActConfig(**found[PointModelArguments].model_config, num_labels=sizes["cls_dim"])
    assert (settings.num_groups, settings.group_size) == (sizes["num_group"], sizes["group_size"])
    assert settings.drop_path_rate == sizes["drop_path_rate"]
    if method == "idpt":
        # The program's file for OBJ_ONLY has the sizes of the one for PB_T50_RS, but for the block.
        assert config.prompt_layers == (6 if "obj_only" in recipe else None)
        assert list(settings.pooling) == POOLING[sizes["cls_type"]]
    elif method == "dapt":
        assert config.r == sizes["rank"]
        assert list(settings.pooling) == POOLING[sizes["class_token"], sizes["prompt_token"], sizes["patch_token"]]
        dropout = 0.5 if "obj_bg" in recipe else sizes["drop_adapter_rate"]
        assert config.dropout == dropout
    else:
        assert (config.num_groups, config.group_size) == (sizes["prompt_num_group"], sizes["prompt_group_size"])
        assert (list(settings.pooling), settings.head_activation) == (["cls", "mean", "prompt_mean"], "gelu")
    data, training = found[DataArguments], found[PointTrainingArguments]
    rotates = method != "dapt" and "scanobjectnn" in recipe
    assert any("rotate" in step for step in data.augment) == rotates
    assert any("scale" in step for step in data.augment) == (not rotates)
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (5e-4, 0.05, 10)
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (32, 301)
    with torch.device("meta"):
        model = get_peft_model(ActForPointCloudClassification(settings), config)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # The position of IDPT's prompt is trained here.
    assert trained == count + (384 if method == "idpt" else 0)
    text = (FOLDER / f"{recipe}.yaml").read_text()
    assert f"{trained:,}" in text and f"examples/recipes/{recipe}.yaml --data_dir DATA" in text
    assert yaml.safe_load(text)["output_dir"] == training.output_dir == f"outputs/recipes/{recipe}"


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        ("pointgst_modelnet40", {}),
        ("idpt_scanobjectnn_obj_bg", {"neighbors": 4, "modules_to_save": ["classifier", "class_token"]}),
        ("dapt_modelnet40", {"r": 4, "modules_to_save": ["classifier", "class_token"]}),
        (
            "ppt_modelnet40",
            {"num_groups": 4, "group_size": 4, "modules_to_save": list(PPTConfig.published().modules_to_save)},
        ),
    ],
)
def test_recipes_run_and_store_an_adapter(datasets, tmp_path, recipe, config):  # noqa: F811  the fixture
    ActModel(ActConfig(**TINY)).save_pretrained(tmp_path / "base")
    kept = {
        name: value for name, value in parsed(recipe)[PointModelArguments].model_config.items() if name == "pooling"
    }
    settings = SHORT | {"output_dir": str(tmp_path / "out"), "model_name_or_path": str(tmp_path / "base")}
    settings |= {"model_config": TINY | kept, "augment": ["subsample:num_points=64"]}
    settings |= {"peft_config": config} if config else {}
    report = run_point_cloud_classification.main([str(FOLDER / f"{recipe}.yaml"), *words_of(settings)])
    assert report.start["tuning"] == "adapter"
    stored = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert stored["peft_type"].lower() == recipe.partition("_")[0]
    assert {"class_token", "classifier"} <= set(stored["modules_to_save"])
    opened = ActForPointCloudClassification.from_pretrained(tmp_path / "out")
    assert list(opened.config.pooling) == kept.get("pooling", ["cls", "max"])
