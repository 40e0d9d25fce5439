"""Heads: a batch of one row, features of another precision, and losses in full precision."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.act import ActForPointCloudClassification, ActForSemanticSegmentation
from hf_any3d.modeling.layers.forward_contract import onloaded
from hf_any3d.modeling.layers.heads import ClassificationHead, HeadNorm
from hf_any3d.modeling.layers.tasks import mean_cross_entropy
from tests.closeness import assert_nearly_equal
from tests.tiny_act import clouds, tiny_act


def test_one_training_row_is_normalized_with_running_statistics():
    norm = HeadNorm(4, eps=0.5)
    norm.running_var.fill_(0.25)
    row = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    expected = row / 0.75**0.5
    torch.testing.assert_close(norm.train()(row), expected)
    torch.testing.assert_close(norm.eval()(row), expected)
    assert torch.equal(norm.running_var, torch.full((4,), 0.25)), "one row must not change the statistics"


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("theirs", [torch.float32, torch.bfloat16, torch.float16])
def test_a_head_accepts_features_of_any_precision(own, theirs):
    torch.manual_seed(0)
    head = ClassificationHead(8, 3, (6,)).eval()
    features = 3 * torch.randn(5, 8)
    expected = head(features)
    found = head.to(own)(features.to(theirs))
    assert found.dtype == own
    assert_nearly_equal(found, expected, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cross_entropy_is_computed_in_full_precision(dtype):
    # Confident rows, whose losses half precision cannot distinguish from 0.
    logits = torch.tensor([[9.0, 0.0, 0.5], [0.0, 8.0, 0.0], [1.0, 2.0, 3.0]], dtype=dtype)
    labels = torch.tensor([0, 1, -100])
    loss = mean_cross_entropy(logits, labels)
    assert loss.dtype == torch.float32 and 1e-4 < loss < 1e-3
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits[:2].float(), labels[:2]))


@pytest.mark.parametrize("model_class", [ActForPointCloudClassification, ActForSemanticSegmentation])
def test_a_half_precision_models_loss_is_in_full_precision(model_class):
    model = tiny_act(model_class).bfloat16()
    shape = (2,) if model_class is ActForPointCloudClassification else (2, 60)
    labels = torch.arange(2 * 60)[: torch.Size(shape).numel()].view(shape) % 3
    output = model(clouds(), labels=labels)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    flat = output.logits.float().view(-1, 3)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(flat, labels.flatten()))


def test_only_offloaded_weights_are_loaded():
    class Hook:
        calls = 0

        def pre_forward(self, module):
            Hook.calls += 1

        def post_forward(self, module, output):
            Hook.calls += 1

    here, away = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False, device="meta")
    here._hf_hook = away._hf_hook = Hook()
    with onloaded(here):
        assert Hook.calls == 0
    with onloaded(here, away):
        assert Hook.calls == 1
    assert Hook.calls == 2


def test_a_calibrated_head_divides_its_logits():
    torch.manual_seed(0)
    head = ClassificationHead(8, 3, (6,)).eval()
    features = torch.randn(5, 8)
    expected = head(features) / 0.8
    head.calibrate(0.8)
    torch.testing.assert_close(head(features), expected)
    with pytest.raises(ValueError, match="temperature=0; expected a number above 0"):
        head.calibrate(0)
