"""PPT against a stored run of the released program."""

import json

import pytest
import torch
from peft import get_peft_model

from hf_any3d import ActConfig, ActForPointCloudClassification, PPTConfig
from tests.tuners.peft_case import FOLDER, AdaptedRun, ours_of_base

BASE = {"pooling": ("cls", "mean", "prompt_mean"), "head_activation": "gelu"}


@pytest.fixture
def run():
    return AdaptedRun("peft_ppt", "ppt", PPTConfig.published(num_groups=7, group_size=12), **BASE)


@torch.no_grad()
def test_every_stored_tensor_agrees(run):
    case, model = run.case, run.model
    found, core = {}, model.get_base_model().act
    for number, layer in enumerate(core.blocks.layers):
        layer.register_forward_hook(
            lambda module, args, out, number=number: found.update({f"eval.block{number}_output": out})
        )
        # The program's input of a block has passed the MLPs before it.
        layer.base_layer.register_forward_pre_hook(
            lambda module, args, number=number: found.update({f"eval.block{number}_input": args[0]})
        )
    core.register_forward_hook(lambda module, args, out: found.update({"eval.feature": out.pooler_output}))
    found["eval.logits"] = model(points=case.points).logits
    stored = {key for key in case.expected if key.startswith("eval.")}
    assert stored == found.keys()
    for key in stored:
        case.check(key, found[key])


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_a_training_step_agrees(run, mode):
    run.check_step(mode)
    trained = {name: weight.numel() for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert trained.keys() == {run.ours_of(name) for name in run.case.manifest["trained"]}
    assert sum(trained.values()) == run.case.manifest["trained_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan", "modelnet"])
def test_the_released_size_trains_as_many_parameters(name):
    manifest = json.loads((FOLDER / f"peft_released_ppt_{name}.json").read_text())
    with torch.device("meta"):
        config = ActConfig(num_labels=manifest["constructor_args"]["cls_dim"], **BASE)
        model = get_peft_model(ActForPointCloudClassification(config), PPTConfig.published())
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(trained.values()) == manifest["trained_parameters"]
    assert sum(count for name, count in trained.items() if "ppt_" in name) == manifest["prompt_parameters"]
    others = {ours_of_base(name) for name in manifest["trained_tensors"] if "blocks.prompt_" not in name}
    assert {name for name in trained if "ppt_" not in name} == others
