"""Our segmentation models against stored runs of the released programs, tensor by tensor."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.act import ActConfig, ActForPartSegmentation, ActForSemanticSegmentation
from tests.modeling.act.reference_case import RELEASED, ReferenceCase, without_chance
from tests.turns import some

PARTS = [list(range(3 * n, 3 * n + 3)) for n in range(15)] + [[45, 46, 47, 48, 49]]
MODELS = {
    "act_partseg": (ActForPartSegmentation, {"num_labels": 50, "category_parts": PARTS}),
    "act_semseg": (ActForSemanticSegmentation, {"num_labels": 13}),
}
TOLERANCE = {"eval": 1e-4, "train": 1e-3}
# A training step takes seconds; tests/conversions/test_point_mae.py has one through the same layers.
MODES = some(TOLERANCE, left_out=["train"])


def all_stages(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything a case stores of one pass, in its layouts."""
    seen = {}

    def keep(key):
        return lambda module, args, out: seen.__setitem__(key, out)

    def keep_inputs(module, args):
        points, clouds = args
        spread = clouds.unsqueeze(1).expand(-1, points.shape[1], -1)
        seen["feature_propagation"] = points.transpose(1, 2)
        seen["concat_before_head"] = torch.cat([points, spread], dim=-1).transpose(1, 2)
        if clouds.shape[1] > 2304:
            seen["label_feature"] = clouds[:, 2304:].unsqueeze(-1)

    hooks = [model.act.patch_encoder.register_forward_hook(keep("tokens"))]
    hooks += [model.segmenter.register_forward_pre_hook(keep_inputs)]
    for number in (0, 3, 7, 11):
        hooks.append(model.act.blocks.layers[number].register_forward_hook(keep(f"block_{number}")))
    logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    return seen | {"logits_raw": logits.transpose(1, 2), "log_prob": logits.log_softmax(dim=-1)}


# Parts of shapes are also compared with the stored run in tests/conversions/test_point_mae.py.
@pytest.fixture(scope="module", params=some(MODELS, left_out=["act_partseg"]))
def run(request):
    case = ReferenceCase(request.param, request.param.removeprefix("act_"))
    model_class, settings = MODELS[request.param]
    model = case.load(model_class(ActConfig(num_groups=128, **settings, **RELEASED)))
    inputs = {"points": case.points}
    if case.manifest["object_class"]:
        inputs["category"] = torch.tensor(case.manifest["object_class"])
    classes = settings["num_labels"]
    labels = 7 * torch.arange(case.points.shape[0] * case.points.shape[1]) % classes
    weights = 1 + torch.arange(classes) / classes if case.manifest["class_weights_rule"] else None

    def loss_of(stages):
        return nn.functional.nll_loss(stages["log_prob"].flatten(0, 1), labels, weights)

    with torch.no_grad():
        found = {"eval": all_stages(model, inputs)}
        found["eval"]["loss"] = loss_of(found["eval"])
    if "train" in MODES:
        found["train"] = all_stages(without_chance(model), inputs)
        found["train"]["loss"] = loss_of(found["train"])
        found["train"]["loss"].backward()
    return case, found, model


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_stored_tensor_agrees(run, mode):
    case, found, model = run
    stored = {key.removeprefix(f"{mode}.") for key in case.expected if key.startswith(f"{mode}.")} - {"grad_norms"}
    assert stored == set(found[mode])
    for key in stored - {"loss"}:
        assert case.error(f"{mode}.{key}", found[mode][key]) <= TOLERANCE[mode], key
    assert found[mode]["loss"].item() == pytest.approx(case.expected[f"{mode}.loss"].item(), rel=1e-5)
    assert mode == "eval" or case.differing_norms("train", model) == {}


@pytest.mark.slow
def test_new_parameters_are_those_that_the_released_programs_call_new(run):
    case, _, model = run
    new = {ours for name in case.manifest["only_new_parameters"] for ours in case.renames[name]}
    assert new == {name for name, _ in model.named_parameters() if not name.startswith("act.")}
