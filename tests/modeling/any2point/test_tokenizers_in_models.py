"""Each tokenizer in a model: the contract that the sweep over encoders checks for the default one."""

import pytest
import torch

from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from tests.closeness import assert_nearly_equal
from tests.tiny_encoders import adapted_model, clouds, train_step

pytestmark = pytest.mark.parametrize("tokenizer", ["point_pn", "patch"])


def model_of(tokenizer, **kwargs):
    return adapted_model("vit", tokenizer=tokenizer, **kwargs)


@torch.no_grad()
def logits_of(model):
    return model.eval()(points=clouds()).logits


def test_model_trains_and_reloads_equal(tokenizer, tmp_path):
    model = model_of(tokenizer)
    start = logits_of(model)
    train_step(model)
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name
    assert not torch.allclose(logits_of(model), start)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(Any2PointForPointCloudClassification.from_pretrained(tmp_path)), logits_of(model))


def test_logits_of_a_cloud_are_the_same_alone_and_in_a_batch(tokenizer):
    model = model_of(tokenizer, large_logits=True)
    with torch.no_grad():
        alone = torch.cat([model(points=cloud[None]).logits for cloud in clouds()])
    assert_nearly_equal(alone, logits_of(model), 1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max_mean"])
def test_a_single_token_of_a_single_cloud_runs_and_trains(tokenizer, pooling):
    model = model_of(tokenizer, adapter={"pooling": pooling}, num_tokens=1, head_widths=(), large_logits=True)
    with torch.no_grad():
        together = model(points=clouds()).logits
        alone = torch.cat([model(points=cloud[None]).logits for cloud in clouds()])
    assert_nearly_equal(alone, together, 1e-4)
    assert train_step(model, clouds(1)).isfinite()
    adapters = [p.grad for name, p in model.named_parameters() if "guided_adapter_" in name and p.requires_grad]
    assert all(gradient.isfinite().all() for gradient in adapters) and any(g.any() for g in adapters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_in_another_precision_has_the_same_places(tokenizer, dtype):
    model = model_of(tokenizer, large_logits=True)
    core = model.base_model.model.any2point
    with torch.no_grad():
        expected, logits = core(clouds()).center_index, logits_of(model)
        model.to(dtype)
        assert torch.equal(core(clouds()).center_index, expected)
    assert_nearly_equal(logits_of(model), logits, 0.1 if dtype == torch.bfloat16 else 1e-3)


def test_autocast_gives_nearly_the_same_logits(tokenizer):
    model = model_of(tokenizer, large_logits=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits_of(model)
    assert_nearly_equal(found, logits_of(model), 0.1)


def test_colors_reach_the_logits(tokenizer):
    model = model_of(tokenizer, in_channels=6, large_logits=True)
    points = clouds(channels=6)
    gray = points.clone()
    gray[..., 3:] = 0.5
    with torch.no_grad():
        assert not torch.allclose(model(points=points).logits, model(points=gray).logits, rtol=0.01)
