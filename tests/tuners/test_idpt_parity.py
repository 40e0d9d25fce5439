"""IDPT against stored runs of the released program: all modules, all heads, the last layer and one before it."""

import json

import pytest
import torch
from peft import get_peft_model

from hf_any3d import ActConfig, ActForPointCloudClassification, IDPTConfig
from tests.tuners.idpt_parts_case import parts_run
from tests.tuners.peft_case import FOLDER, AdaptedRun, ours_of_base

CASES = ("", "_middle", "_promptonly", "_promptcls_light", "_pointcls_light2", "_mlp", "_transformer")
POOLING = {
    "all": ("cls", "prompt_mean", "max"),
    "promptcls": ("cls", "prompt_mean"),
    "pointcls": ("cls", "max"),
    "promptonly": ("prompt_mean",),
}
MODULES = ["class_token", "classifier"]


@pytest.fixture(params=CASES, ids=lambda name: name or "graph")
def run(request):
    manifest = json.loads((FOLDER / f"peft_idpt{request.param}.json").read_text())
    sizes = manifest["constructor_args"]
    config = IDPTConfig.published(
        prompt_layers=sizes["prompt_layer"], prompt_module=sizes["prompt_module"], modules_to_save=MODULES
    )
    return AdaptedRun(
        f"peft_idpt{request.param}", "idpt", config, sizes["prompt_layer"], pooling=POOLING[sizes["cls_type"]]
    )


def test_every_stored_tensor_agrees(run):
    case, model = run.case, run.model
    found, core = {}, model.get_base_model().act
    layers = core.blocks.layers
    for number, layer in enumerate(layers):
        # The program's prompt is the second token.
        layer.register_forward_hook(
            lambda module, args, out, number=number: found.update(
                {f"eval.block{number}_output": torch.cat([out[:, :1], out[:, 27:], out[:, 1:27]], dim=1)}
            )
        )
    prompt = layers[run.prompt_layer].nested["default"]["idpt"]
    prompt.register_forward_hook(
        lambda module, args, out: found.update({"eval.prompt_input": args[0], "eval.prompt": out})
    )
    core.patch_encoder.register_forward_hook(lambda module, args, out: found.update({"eval.tokens": out}))
    core.register_forward_hook(lambda module, args, out: found.update({"eval.feature": out.pooler_output}))
    with torch.no_grad():
        found["eval.logits"] = model(points=case.points).logits
    stored = {key for key in case.expected if key.startswith("eval.")}
    assert stored <= found.keys() and len(stored) >= 4
    for key in stored:
        case.check(key, found[key])


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_a_training_step_agrees(run, mode):
    run.check_step(mode)
    manifest = run.case.manifest
    trained = {name: weight.numel() for name, weight in run.model.named_parameters() if weight.requires_grad}
    # The program also counts a norm that nothing reads.
    kept = [name for name in manifest["trained"] if run.case.kept(name) != name or "blocks.cls.bn" not in name]
    unread = len(manifest["trained"]) - len(kept)
    width = manifest["constructor_args"]["trans_dim"]
    assert trained.keys() == {run.ours_of(name) for name in kept}
    assert sum(trained.values()) == manifest["trained_parameters"] - unread * width
    assert unread == (2 if manifest["constructor_args"]["prompt_module"] in ("dgcnn_light", "mlp") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan", "objbg", "modelnet"])
def test_the_released_size_trains_as_many_parameters(name):
    manifest = json.loads((FOLDER / f"peft_released_idpt_{name}.json").read_text())
    sizes = manifest["constructor_args"]
    with torch.device("meta"):
        config = ActConfig(num_labels=sizes["cls_dim"], pooling=POOLING[sizes["cls_type"]])
        model = get_peft_model(ActForPointCloudClassification(config), IDPTConfig.published(modules_to_save=MODULES))
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(trained.values()) == manifest["trained_parameters"]
    own = sum(count for name, count in trained.items() if "idpt_conv" in name)
    assert own == manifest["prompt_module_parameters"]
    others = {ours_of_base(name) for name in manifest["trained_tensors"] if "blocks.cls." not in name}
    assert {name for name in trained if "idpt_" not in name} == others


def test_prompts_of_three_blocks_give_the_stored_parts():
    case, model = parts_run()
    found = {}
    for number in (3, 7, 11):
        model.get_base_model().act.blocks.layers[number].nested["default"]["idpt"].register_forward_hook(
            lambda module, args, out, number=number: found.update({f"eval.prompt{number}": out})
        )
    with torch.no_grad():
        logits = model(points=case.points, category=torch.tensor(case.manifest["object_class"])).logits
    found["eval.log_probabilities"] = logits.log_softmax(dim=-1)[:, ::8]
    assert found.keys() == {key for key in case.expected if key.startswith("eval.")}
    for key, ours in found.items():
        torch.testing.assert_close(ours, case.expected[key], atol=2e-4, rtol=2e-4, msg=lambda m, k=key: k + m)
