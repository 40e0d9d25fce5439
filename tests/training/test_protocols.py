"""Fine-tuning protocols: trained parameters compared with the released programs, and unchanged ones."""

import pytest
import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.act import ActConfig, ActForPartSegmentation, ActForPointCloudClassification, ActModel
from hf_any3d.training.protocol import set_trainable
from hf_any3d.training.trainer import decaying_parameters
from tests.errors import raises
from tests.modeling.act.reference_case import ReferenceCase
from tests.tiny_act import clouds, tiny_act

# Protocol, its name in the released program, and the model.
RELEASED = {
    "full": ("full", {}),
    "mlp-3": ("mlp-3", {}),
    "linear": ("linear", {"head_widths": ()}),
    "side": ("side", {"side_network": True}),
    "bitfit": ("bit-fit", {}),
}


def of_true_size(**changes) -> ActForPointCloudClassification:
    with torch.device("meta"):
        return ActForPointCloudClassification(ActConfig(num_labels=15, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", RELEASED)
def test_protocol_trains_the_parameters_of_the_released_program(protocol):
    case = ReferenceCase("act_cls", "cls")
    theirs, changes = RELEASED[protocol]
    shapes = dict(case.manifest["state_dict"])
    for name in case.manifest.get(f"missing_state_{theirs}", ()):
        del shapes[name]
    case.manifest["state_dict"] = shapes | case.manifest.get(f"extra_state_{theirs}", {})
    model = of_true_size(**changes)
    trained = set_trainable(model, protocol)
    expected = case.manifest["trainable"][theirs]
    if expected == "all parameters":
        assert trained == [name for name, _ in model.named_parameters()]
    else:
        assert set(trained) == {ours for name in expected for ours in case.renames[name]}
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_head_protocol_trains_only_new_modules_of_a_segmenter():
    case = ReferenceCase("act_partseg", "partseg")
    with torch.device("meta"):
        model = ActForPartSegmentation(ActConfig(num_labels=50, category_parts=[[n] for n in range(16)]))
    expected = {ours for name in case.manifest["only_new_parameters"] for ours in case.renames[name]}
    assert set(set_trainable(model, "head")) == expected


def test_weight_decay_can_be_that_of_the_released_program():
    case = ReferenceCase("act_cls", "cls")
    model = of_true_size()
    decaying = set(decaying_parameters(model, [r"class_token\.token$"]))
    spared = {ours for name in case.manifest["optimizer_no_decay"] for ours in case.renames[name]}
    assert decaying == {name for name, _ in model.named_parameters()} - spared


def one_step(model: PreTrainedModel) -> tuple[dict, dict]:
    """Return the state before and after a training step."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model(clouds(), labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    return before, model.state_dict()


def test_frozen_parts_keep_weights_and_statistics():
    model = tiny_act(ActForPointCloudClassification, drop_path_rate=0.9)
    trained = set(set_trainable(model, "head"))
    before, after = one_step(model)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"act", "classifier"}
    assert {name for name in changed if name.startswith("act.")} == {
        "act.class_token.token",
        "act.class_token.position",
    }
    assert trained - changed <= {"classifier.hidden.0.bias"}  # the norm after it cancels this bias
    assert not model.act.blocks.training and model.classifier.training and not model.eval().classifier.training


def test_drifting_statistics_change_as_released():
    model = tiny_act(ActForPointCloudClassification)
    set_trainable(model, "head", drifting_statistics=True)
    before, after = one_step(model)
    name = "act.patch_encoder.lift_norm.running_mean"
    assert not torch.equal(before[name], after[name]) and model.act.blocks.training
    weight = "act.patch_encoder.lift.weight"
    assert torch.equal(before[weight], after[weight])


@pytest.mark.parametrize(
    ("protocol", "changes", "message"),
    [
        ("linear", {}, r"head_widths=\(16,\); expected 0 hidden"),
        ("mlp-3", {"head_widths": ()}, r"head_widths=\(\); expected 2 hidden layers"),
        ("side", {}, "expected side_network=True"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused(protocol, changes, message):
    with pytest.raises(ValueError, match=message):
        set_trainable(tiny_act(ActForPointCloudClassification, **changes), protocol)


def test_a_model_without_head_is_refused():
    with raises(ValueError, naming="ActModel"):
        set_trainable(tiny_act(ActModel), "full")
