"""Our classifier against stored runs of the released program, tensor by tensor."""

import pytest
import torch

from hf_any3d.modeling.act import ActConfig, ActForPointCloudClassification
from hf_any3d.modeling.point_encoders.patches import group_patches
from tests.modeling.act.reference_case import RELEASED, ReferenceCase, without_chance
from tests.turns import some

CASES = {"act_cls": {"num_groups": 128, "num_labels": 15}, "act_cls_modelnet": {"num_labels": 40, "head_widths": ()}}
TOLERANCE = {"eval": 1e-4, "train": 1e-3}


def build(name: str, **changes) -> ActForPointCloudClassification:
    return ActForPointCloudClassification(ActConfig(**CASES[name], **RELEASED, **changes))


def all_stages(model: ActForPointCloudClassification, points: torch.Tensor, labels: torch.Tensor) -> dict:
    """Everything a case stores of one pass."""
    seen = {}

    def keep(key):
        return lambda module, args, out: seen.__setitem__(key, out)

    hooks = [model.act.patch_encoder.register_forward_hook(keep("tokens"))]
    hooks += [model.act.position_embed.register_forward_hook(keep("pos"))]
    for number in (0, 5, 11):
        hooks.append(model.act.blocks.layers[number].register_forward_hook(keep(f"block_{number}")))
    hooks.append(model.act.register_forward_hook(keep("output")))
    output = model(points, labels=labels)
    for hook in hooks:
        hook.remove()
    base = seen.pop("output")
    seen |= {"last_hidden_state": base.last_hidden_state, "pooled_concat": base.pooler_output}
    return seen | {"logits": output.logits, "loss": output.loss}


# The other one trains a plain head alone.
@pytest.fixture(scope="module", params=some(CASES, left_out=["act_cls_modelnet"]))
def run(request):
    case = ReferenceCase(request.param, "cls")
    model = case.load(build(request.param))
    labels = torch.tensor(case.manifest["labels"])
    if request.param == "act_cls_modelnet":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("classifier" in name or "class_token" in name)
    with torch.no_grad():
        found = {"eval": all_stages(model, case.points, labels)}
    without_chance(model)
    found["train"] = all_stages(model, case.points, labels)
    found["train"]["loss"].backward()
    patches = group_patches(case.points, model.config.num_groups, 32, 1e-3)
    return case, found, model, patches


@pytest.mark.slow
def test_patches_are_those_of_the_original(run):
    case, _, _, patches = run
    assert torch.equal(patches.centers, case.expected["center"])
    assert case.error("neighborhood", patches.neighborhoods) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_every_stored_tensor_agrees(run, mode):
    case, found, _, _ = run
    stored = {key.removeprefix(f"{mode}.") for key in case.expected if key.startswith(f"{mode}.")}
    stored -= {"grad_norms", "logits_linear", "logits_side"}
    assert stored == set(found[mode])
    for key in stored - {"loss"}:
        assert case.error(f"{mode}.{key}", found[mode][key]) <= TOLERANCE[mode], key
    assert found[mode]["loss"].item() == pytest.approx(case.expected[f"{mode}.loss"].item(), rel=1e-5)


@pytest.mark.slow
def test_gradient_norms_agree(run):
    case, _, model, _ = run
    assert case.differing_norms("train", model) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "changes"),
    some(
        [("linear", {"head_widths": ()}), ("side", {"side_network": True})], left_out=[("linear", {"head_widths": ()})]
    ),
)
def test_other_variants_match_the_original(variant, changes):
    case = ReferenceCase("act_cls", "cls")
    manifest = case.manifest
    own = {k: v for k, v in case.original.items() if k not in manifest[f"missing_state_{variant}"]}
    own |= case.filled(manifest[f"extra_state_{variant}"])
    model = case.load(build("act_cls", **changes), own)
    with torch.no_grad():
        logits = model(case.points).logits
    assert case.error(f"eval.logits_{variant}", logits) <= 1e-4


def test_one_step_of_the_released_optimizer_leads_to_the_same_model(run):
    case, _, model, _ = run
    spared = {ours for name in case.manifest["optimizer_no_decay"] for ours in case.renames[name]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert spared <= trained.keys()
    groups = [
        {"params": [p for n, p in trained.items() if n in spared], "weight_decay": 0.0},
        {"params": [p for n, p in trained.items() if n not in spared], "weight_decay": 0.05},
    ]
    torch.nn.utils.clip_grad_norm_(trained.values(), 10)
    torch.optim.AdamW(groups, lr=5e-4).step()
    with torch.no_grad():
        logits = model.eval()(case.points).logits
    # The first step of Adam follows signs, also those of rounding noise.
    assert case.error("after_one_step.eval_logits", logits) <= 0.05


def test_points_near_the_origin_are_skipped_as_released():
    case = ReferenceCase("act_group", "none")
    points = case.points * 0.06
    points[1, 0] = 0.01
    patches = group_patches(points, 64, 8, 1e-3)
    assert torch.equal(patches.center_index, case.expected["fps_index"].long())
    assert torch.equal(patches.centers, case.expected["center"])
    assert case.error("neighborhood", patches.neighborhoods) <= 1e-6
