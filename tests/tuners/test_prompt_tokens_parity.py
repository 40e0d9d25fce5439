"""Prompt tokens with positions against a stored run of VPT-deep in the released program."""

import json
import re

import pytest
import torch
from peft import get_peft_model

from hf_any3d import PromptTokensConfig
from tests.modeling.act.reference_case import without_chance
from tests.tuners.peft_case import FOLDER, PeftCase, ours_of_base

MODULES = ["class_token", "classifier"]


def ours_of(name: str) -> str:
    """Our name of a trained tensor of the released program."""
    match = re.fullmatch(r"cls_prompt_(pos_)?list\.(\d+)", name)
    if match is None:
        return ours_of_base(name)
    part = "position" if match[1] else "embedding"
    return f"base_model.model.act.blocks.layers.{match[2]}.prompt_tokens_{part}.default"


@pytest.fixture
def run():
    case = PeftCase("peft_vpt_deep")
    count = case.manifest["constructor_args"]["prompt_nums"]
    config = PromptTokensConfig(num_prompts=count, positions=True, modules_to_save=MODULES)
    model = get_peft_model(case.base("cls_prompt_"), config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in case.original.items():
            if "cls_prompt_" in name:
                named[ours_of(name)].copy_(tensor[0])
    return case, model.eval()


@torch.no_grad()
def test_every_stored_tensor_agrees(run):
    case, model = run
    found, core = {}, model.get_base_model().act
    for number, layer in enumerate(core.blocks.layers):
        layer.base_layer.register_forward_hook(
            lambda module, args, out, number=number: found.update({f"eval.block{number}_output": out})
        )
    core.patch_encoder.register_forward_hook(lambda module, args, out: found.update({"eval.tokens": out}))
    core.register_forward_hook(lambda module, args, out: found.update({"eval.feature": out.pooler_output}))
    found["eval.logits"] = model(points=case.points).logits
    stored = {key for key in case.expected if key.startswith("eval.")}
    assert stored == found.keys()
    for key in stored:
        case.check(key, found[key])


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_a_backward_pass_agrees(run, mode):
    case, model = run
    without_chance(model)
    if mode == "train":  # the released program trains with the statistics of the batch, which then drift
        encoder = model.get_base_model().act.patch_encoder
        encoder.lift_norm.training = encoder.join_norm.training = True
    output = model(points=case.points, labels=torch.tensor(case.manifest["labels"]))
    case.check(f"{mode}.logits", output.logits)
    case.check(f"{mode}.loss", output.loss)
    output.loss.backward()
    if mode == "train":
        case.check_gradients(mode, model, ours_of)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {ours_of(name) for name in case.manifest["trained"]}
    assert sum(trained.values()) == case.manifest["trained_parameters"]


def test_the_released_size_has_as_many_parameters():
    manifest = json.loads((FOLDER / "peft_released_vpt_scan.json").read_text())
    sizes = manifest["constructor_args"]
    config = PromptTokensConfig(positions=True)
    assert config.num_prompts == sizes["prompt_nums"]
    own = 2 * config.num_prompts * sizes["trans_dim"] * sizes["depth"]
    assert own == sum(
        torch.Size(manifest["state_dict"][name][0]).numel() for name in manifest["trained_tensors"] if "prompt" in name
    )
