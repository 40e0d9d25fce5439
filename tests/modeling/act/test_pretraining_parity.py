"""Our pretraining step against stored steps of the released program, stage by stage."""

import pytest
import torch

from hf_any3d.modeling.act.masking import block_mask
from tests.modeling.act.pretraining_case import FEATURE_HEAD, NEVER_READ, NEVER_STORED, PretrainingCase, Stages
from tests.modeling.act.reference_case import without_chance

pytestmark = pytest.mark.slow
STAGES = [
    "student_tokens",
    "student_pos_visible",
    "student_block_0",
    "student_block_5",
    "student_block_11",
    "student_encoder_out_with_cls",
    "decoder_out",
    "student_pred",
    "teacher_target_masked",
    "teacher_target_all",
]


@pytest.fixture(scope="module", params=["act_pretrain", "act_pretrain_cls"])
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


def test_every_stored_tensor_is_compared(run):
    case, ours = run
    assert set(case.expected) - {"train.grad_norms"} <= set(ours)


@pytest.mark.parametrize("path", ["eval.", "eval_nonoise.", "train."])
@pytest.mark.parametrize("stage", STAGES)
def test_stages_agree(run, path, stage):
    case, ours = run
    if path + stage in case.expected:
        case.close(path + stage, ours[path + stage], 1e-3 if path == "train." else 1e-4)


@pytest.mark.parametrize("path", ["eval.", "eval_nonoise.", "train."])
def test_losses_agree(run, path):
    case, ours = run
    case.close(path + "loss", ours[path + "loss"], 1e-5)


@pytest.mark.parametrize("key", ["eval.student_pred_global", "train.student_pred_global"])
def test_guesses_by_way_of_the_class_token_agree(run, key):
    case, ours = run
    if case.manifest["constructor_args"]["transformer_config"]["cls_loss"]:
        case.close(key, ours[key].detach(), 1e-3 if key.startswith("train") else 1e-4)
    else:
        assert ours[key] is None


@pytest.mark.parametrize("key", ["center", "eval.svm_feature_cls_head"])
def test_centers_and_features_for_a_probe_agree(run, key):
    case, ours = run
    case.close(key, ours[key], 1e-4)


def test_gradients_agree(run):
    case, ours = run
    case.close_norms("train", ours["model"])


def test_the_same_parameters_train(run):
    case, ours = run
    trained = {name for name, parameter in ours["model"].named_parameters() if parameter.requires_grad}
    assert trained == {name for names in case.renames.values() for name in names}
    still = {name for name in trained if ours["model"].get_parameter(name).grad is None}
    assert still == {name for name in trained if name.startswith(FEATURE_HEAD)}


def test_parameters_are_as_many(run):
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
    if seeds is not None:
        mask = block_mask(ours["center"], int(case.mask[0].sum()), seed_groups=torch.tensor(seeds))
        assert torch.equal(mask, case.mask)
