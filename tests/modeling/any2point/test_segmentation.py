"""Segmentation models: shapes, gradients, categories, propagation, and every entry point of a repository."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_any3d import (
    AutoModelForPointCloudSegmentation,
    GuidedAdapterConfig,
    encoder_linear_pattern,
    trainable_module_names,
)
from tests.tiny_encoders import clouds, tiny_part_model

POINTS = 48
CATEGORY = torch.tensor([0, 1, 1])


def inputs_of(kind):
    return {"points": clouds(3, POINTS)} | ({"category": CATEGORY} if kind == "part" else {})


def labels_of(kind, seed=4):
    drawn = torch.randint(0, 3, (3, POINTS), generator=torch.Generator().manual_seed(seed))
    return torch.where(CATEGORY[:, None] == 0, drawn % 2, drawn + 2) if kind == "part" else drawn


@torch.no_grad()
def logits_of(model, kind):
    return model.eval()(**inputs_of(kind)).logits


def adapted(base, method):
    if method == "guided":
        return get_peft_model(base, GuidedAdapterConfig(r=4, init_weights=False))
    names = trainable_module_names(base)
    return get_peft_model(base, LoraConfig(r=2, target_modules=encoder_linear_pattern(base), modules_to_save=names))


def train(model, kind, steps=2):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs_of(kind), labels=labels_of(kind)).loss
        loss.backward()
        optimizer.step()
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["point_pn", "patch"])
def test_levels_are_trained_and_saved_with_the_head(tokenizer, tmp_path):
    model = adapted(tiny_part_model(tokenizer=tokenizer, propagate_levels=True), "guided")
    train(model, "part")
    weights = [p for name, p in model.named_parameters() if "from_levels" in name and p.requires_grad]
    assert len(weights) == (3 if tokenizer == "point_pn" else 1) and all(p.grad.any() for p in weights)
    expected = logits_of(model, "part")
    model.save_pretrained(tmp_path)
    opened = AutoModelForPointCloudSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(opened, "part"), expected, rtol=0, atol=1e-6)


def test_missing_or_misshapen_category_is_refused():
    with pytest.raises(ValueError, match="category is missing"):
        tiny_part_model()(clouds(3, POINTS))
    with pytest.raises(ValueError, match=r"category has shape \(2,\); expected \(3,\)"):
        tiny_part_model()(clouds(3, POINTS), category=torch.tensor([0, 1]))
    single = tiny_part_model(category_parts=[[0, 1]], category_names=["table"], num_labels=2)
    assert single(clouds(3, POINTS)).logits.shape == (3, POINTS, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category_parts": None, "category_names": None}, "category_parts=None"),
        ({"category_parts": [[0], []]}, "expected some part numbers"),
        ({"category_parts": [[0, 1], [2, 7]]}, "expected some part numbers, 0 to 4"),
        ({"category_names": ["table"]}, "expected 2 names"),
    ],
)
def test_invalid_categories_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_part_model(**settings)
