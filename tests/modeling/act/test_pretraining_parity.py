"""Our pretraining step against stored steps of the released program, tensor by tensor."""

import pytest
import torch

from hf_any3d.modeling.act.masking import block_mask
from tests.modeling.act.pretraining_case import FEATURE_HEAD, NEVER_READ, NEVER_STORED, PretrainingCase, Stages
from tests.modeling.act.reference_case import without_chance
from tests.turns import some

TOLERANCE = {"eval.": 1e-4, "eval_nonoise.": 1e-4, "train.": 1e-3}


# The second has all terms of the loss of the first, and that of the class token.
@pytest.fixture(scope="module", params=some(["act_pretrain", "act_pretrain_cls"], left_out=["act_pretrain"]))
def run(request):
    """The case, and all that it stores as our model computes it: `{path.stage: tensor}`."""
    case = PretrainingCase(request.param)
    model = case.build()
    stages = Stages(model)
    ours = {"model": model}
    for path in ("eval.", "eval_nonoise.", "train."):
        noise = torch.zeros(1) if path == "eval_nonoise." else case.noise
        if path == "train.":
            without_chance(model)
        with torch.set_grad_enabled(path == "train."):
            output = model(case.points, case.mask, noise)
        ours |= {path + name: tensor for name, tensor in stages.seen.items()}
        ours["center"] = output.centers
        ours[path + "loss"] = output.loss.detach()
        ours[path + "student_pred"] = output.predictions.detach()
        ours[path + "student_pred_global"] = output.class_token_predictions
        ours[path + "teacher_target_masked"] = output.targets
        ours[path + "teacher_target_all"] = model.teacher_features(model.act.cut(case.points), noise)
        if path == "eval.":
            ours["eval.svm_feature_cls_head"] = model.probe_features(case.points)
    output.loss.backward()
    return case, ours


@pytest.mark.slow
@pytest.mark.parametrize("path", TOLERANCE)
def test_every_stored_tensor_agrees(run, path):
    case, ours = run
    stored = {key for key in case.expected if key.startswith(path)} - {f"{path}loss", f"{path}grad_norms"}
    assert {f"{path}teacher_target_masked", f"{path}teacher_target_all"} <= stored <= ours.keys()
    for key in stored:
        assert case.error(key, ours[key]) <= TOLERANCE[path], key


@pytest.mark.slow
def test_nothing_else_is_stored(run):
    case, _ = run
    assert {key for key in case.expected if not key.startswith(tuple(TOLERANCE))} == {"center"}


@pytest.mark.slow
@pytest.mark.parametrize("path", TOLERANCE)
def test_losses_agree(run, path):
    case, ours = run
    assert case.error(f"{path}loss", ours[f"{path}loss"]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("path", ["eval.", "train."])
def test_class_token_predictions_exist_only_with_their_loss(run, path):
    case, ours = run
    counts = case.manifest["constructor_args"]["transformer_config"]["cls_loss"]
    assert (f"{path}student_pred_global" in case.expected) == counts
    assert (ours[f"{path}student_pred_global"] is not None) == counts


@pytest.mark.slow
def test_centers_agree(run):
    case, ours = run
    assert case.error("center", ours["center"]) <= 1e-4


def test_gradients_agree(run):
    case, ours = run
    assert case.differing_norms("train", ours["model"]) == {}


def test_the_same_parameters_train(run):
    case, ours = run
    trained = {name for name, parameter in ours["model"].named_parameters() if parameter.requires_grad}
    assert trained == {name for names in case.renames.values() for name in names}
    still = {name for name in trained if ours["model"].get_parameter(name).grad is None}
    assert still == {name for name in trained if name.startswith(FEATURE_HEAD)}


def test_parameter_counts_agree(run):
    case, ours = run
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    released = sum(
        torch.Size(shape).numel()
        for name, (shape, _) in case.manifest["state_dict"].items()
        if name not in NEVER_READ and not name.endswith(buffers)
    )
    counted = [p.numel() for name, p in ours["model"].named_parameters() if not name.startswith(NEVER_STORED)]
    assert sum(counted) == released


def test_a_block_is_hidden_around_the_stored_seeds(run):
    case, ours = run
    seeds = case.manifest["block_mask_seed_group"]
    if seeds is None:
        pytest.skip("its mask is random")
    mask = block_mask(ours["center"], int(case.mask[0].sum()), seed_groups=torch.tensor(seeds))
    assert torch.equal(mask, case.mask)
