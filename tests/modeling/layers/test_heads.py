"""Heads: a batch of one row, features of another precision, and losses in full precision."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.layers.heads import ClassificationHead, HeadNorm, pool
from hf_any3d.modeling.layers.losses import mean_cross_entropy
from tests.closeness import assert_nearly_equal


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


def test_poolings_are_joined_in_their_order():
    generator = torch.Generator().manual_seed(0)
    tokens, prompts = torch.randn(2, 5, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    parts = {"cls": tokens[:, 0], "max": tokens[:, 1:].amax(dim=1), "mean": tokens[:, 1:].mean(dim=1)}
    parts |= {"prompt_max": prompts.amax(dim=1), "prompt_mean": prompts.mean(dim=1)}
    for how in (["max", "cls", "mean"], ["prompt_mean", "cls", "prompt_max"], ["mean"]):
        found = pool(tokens, how, prompts=prompts)
        assert torch.equal(found, torch.cat([parts[name] for name in how], dim=1))
    without = pool(tokens, ["mean", "max"], class_tokens=0)
    assert torch.equal(without, torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1))
