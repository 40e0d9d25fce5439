"""Loading options: precision, attention, devices and quantization."""

from typing import Any

import pytest
import torch

from hf_any3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d import build_from_parts
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN, clouds, tiny_config, tiny_model

CLOUD = [POINT_TOKEN] * PLACES
# The second row is shorter, and padded on the left.
BATCH = {
    "input_ids": torch.tensor([[2, *CLOUD, 5, 6, 7, 8], [1, 1, 2, *CLOUD, 5, 6]]),
    "attention_mask": torch.tensor([[1] * 8, [0] * 2 + [1] * 6]),
}
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1}


@pytest.fixture(scope="module")
def model() -> MiniGPT3DForConditionalGeneration:
    """A model whose LoRA has an effect and whose weights separate clouds."""
    model = tiny_model(use_query_experts=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("full")
    model.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logits(model):
    points = [cloud.to(model.device) for cloud in clouds(40, 30)]
    logits = model(**{name: value.to(model.device) for name, value in BATCH.items()}, points=points).logits
    return logits[BATCH["attention_mask"] == 1].float().cpu()


@torch.no_grad()
def answers(model):
    return model.generate(**BATCH, points=clouds(40, 30), **GREEDY)[:, 8:]


@pytest.mark.slow
@torch.no_grad()
def test_half_precision_generates_the_same_from_cached_features(saved, model):
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(logits(opened), logits(model)).min() > 0.98
    expected = answers(opened)
    features = opened.get_point_features(clouds(40, 30))
    assert features.dtype == torch.bfloat16
    assert torch.equal(opened.generate(**BATCH, point_features=features, **GREEDY)[:, 8:], expected)
    beams = opened.generate(**BATCH, points=clouds(40, 30), num_beams=2, **GREEDY)
    assert beams.shape == (2, 14)


@pytest.mark.slow
def test_submodels_may_be_on_different_devices(saved, model, tmp_path):
    """Tested on one device: the language model is loaded from disk, layer by layer."""
    places = {"point_encoder": "cpu", "bridge": "cpu", "language_model": "disk"}
    places = {f"minigpt3d.{name}": place for name, place in places.items()}
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(saved, device_map=places, offload_folder=tmp_path)
    assert opened.hf_device_map == places
    assert {parameter.device.type for parameter in opened.language_model.parameters()} == {"meta"}
    torch.testing.assert_close(logits(opened), logits(model))
    assert torch.equal(answers(opened), answers(model))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, str]:
    """Directories of a point encoder and of a language model wide enough for blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("parts")
    wide = {**tiny_config().text_config.to_dict(), "hidden_size": 64, "intermediate_size": 128}
    source = tiny_model(text_config=wide, text_lora=None)
    source.point_encoder.save_pretrained(folder / "eyes")
    source.language_model.save_pretrained(folder / "words")
    return {"point_encoder": str(folder / "eyes"), "language_model": str(folder / "words")}


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of a model around these parts."""
    config = tiny_config().to_dict()
    others = {name: config[name] for name in ("qformer_config", "text_lora", "qformer_lora", "point_token_id")}
    return others | {"num_query_tokens": PLACES, "num_query_experts": 4, "projector_width": 24}


@pytest.mark.slow
def test_stored_settings_of_generation_are_kept(parts, settings, tmp_path):
    model = build_from_parts(qformer=None, **parts, **settings)
    model.generation_config.update(max_new_tokens=7, repetition_penalty=1.5)
    model.save_pretrained(tmp_path)
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (opened.max_new_tokens, opened.repetition_penalty) == (7, 1.5)
