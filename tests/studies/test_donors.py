"""The library around real pretrained encoders, which `make donors` fetches."""

import pytest
import torch
from peft import get_peft_model

from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig
from studies.donors import donors_folder
from tests.tiny_encoders import clouds, train_step

FAMILIES = {"minilm": "bert", "smollm2": "llama", "dinov2": "dinov2", "whisper": "whisper"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_around_a_donor_is_trained_and_opens_again(name, tmp_path):
    folder = donors_folder() / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: make donors")
    torch.manual_seed(0)
    build = Any2PointForPointCloudClassification.from_encoder_pretrained
    model = build(folder, num_layers=2, num_labels=3, tokenizer_neighbors=8, num_tokens=16)
    assert model.any2point.family.model_types == (FAMILIES[name],)
    adapted = get_peft_model(model, GuidedAdapterConfig.light())
    frozen = {key: value.clone() for key, value in model.any2point.encoder.state_dict().items() if "guided" not in key}
    train_step(adapted)
    assert all(torch.equal(value, model.any2point.encoder.state_dict()[key]) for key, value in frozen.items())
    adapted.eval().save_pretrained(tmp_path)
    again = Any2PointForPointCloudClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = adapted(points=clouds()).logits
        assert logits.isfinite().all() and torch.equal(again(clouds()).logits, logits)
