"""DAPT against stored runs of the released program, with all four heads."""

import json

import pytest
import torch
from peft import get_peft_model

from hf_any3d import ActConfig, ActForPointCloudClassification, DAPTConfig
from tests.tuners.peft_case import FOLDER, AdaptedRun

POOLING = {
    "": ("cls", "prompt_mean", "max"),
    "_noprompt": ("cls", "max"),
    "_nopatch": ("cls", "prompt_mean"),
    "_maxprompt": ("prompt_max",),
}
MODULES = ["class_token", "classifier"]


@pytest.fixture(params=POOLING, ids=lambda name: name or "all")
def run(request):
    config = DAPTConfig.published(r=6, modules_to_save=MODULES)
    return AdaptedRun(f"peft_dapt{request.param}", "dapt", config, pooling=POOLING[request.param])


def in_their_order(tokens, patches=16):
    """The program has prompts behind the class token, the newest first."""
    return torch.cat([tokens[:, :1], tokens[:, 1 + patches :].flip(1), tokens[:, 1 : 1 + patches]], dim=1)


@torch.no_grad()
def test_every_stored_tensor_agrees(run):
    case, model = run.case, run.model
    found, core = {}, model.get_base_model().act
    for number, layer in enumerate(core.blocks.layers):
        layer.register_forward_hook(
            lambda module, args, out, number=number: found.update({f"eval.block{number}_output": in_their_order(out)})
        )
        adapter = layer.nested["default"]["dapt_adapter"]
        adapter.register_forward_hook(
            lambda module, args, out, number=number: found.update(
                {
                    f"eval.adapter{number}_input": in_their_order(args[0]),
                    f"eval.adapter{number}_output": in_their_order(out),
                }
            )
        )
        adapter.scale.register_forward_hook(
            lambda module, args, out, number=number: found.update(
                {f"eval.adapter{number}_scale": in_their_order(out).relu()}
            )
        )
    first = core.blocks.layers[0].dapt_tokens["default"]
    first.register_forward_hook(lambda module, args, out: found.update({"eval.tokens": args[0]}))
    core.register_forward_hook(lambda module, args, out: found.update({"eval.feature": out.pooler_output}))
    found["eval.logits"] = model(points=case.points).logits
    stored = {key for key in case.expected if key.startswith("eval.")}
    assert stored <= found.keys() and len(stored) >= 3
    for key in stored:
        case.check(key, found[key])


@torch.no_grad()
def test_the_start_agrees(run):
    if "initial.logits" not in run.case.expected:
        pytest.skip("stored for one case")
    for name, weight in run.model.named_parameters():
        if "up_proj" in name or name.endswith(".beta") and "dapt_" in name:
            weight.zero_()
        elif name.endswith(".gamma") and "dapt_" in name:
            weight.fill_(1)
    run.case.check("initial.logits", run.model(points=run.case.points).logits)


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_a_training_step_agrees(run, mode):
    run.check_step(mode)
    trained = {name: weight.numel() for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert trained.keys() == {run.ours_of(name) for name in run.case.manifest["trained"]}
    assert sum(trained.values()) == run.case.manifest["trained_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooled"), [("scan", ""), ("objonly", "_nopatch"), ("modelnet", "_noprompt")])
def test_the_released_size_trains_as_many_parameters(name, pooled):
    manifest = json.loads((FOLDER / f"peft_released_dapt_{name}.json").read_text())
    sizes = manifest["constructor_args"]
    with torch.device("meta"):
        config = ActConfig(num_labels=sizes["cls_dim"], pooling=POOLING[pooled])
        model = get_peft_model(
            ActForPointCloudClassification(config), DAPTConfig.published(r=sizes["rank"], modules_to_save=MODULES)
        )
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(trained.values()) == manifest["trained_parameters"]
    adapters = sum(count for name, count in trained.items() if "dapt_adapter" in name)
    scales = sum(count for name, count in trained.items() if "dapt_" in name) - adapters
    assert (adapters, scales) == (manifest["adapter_parameters"], manifest["scale_shift_parameters"])
