"""Loading options: precision, attention, devices and quantization."""

from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from hf_any3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d import build_from_parts, set_stage
from tests.closeness import assert_nearly_equal
from tests.common.test_quantization import with_rounded_weights
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


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_the_same_however_it_is_computed(model, saved, implementation):
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(saved, attn_implementation=implementation)
    parts = (opened, opened.point_encoder, opened.bridge.qformer, opened.language_model)
    assert {part.config._attn_implementation for part in parts} == {implementation}
    torch.testing.assert_close(logits(opened), logits(model), rtol=1e-4, atol=1e-4)
    assert torch.equal(answers(opened), answers(model))


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


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map_places_the_whole_model(saved, model, device_map):
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(saved, device_map=device_map)
    wanted = torch.accelerator.current_accelerator() if device_map == "auto" else None
    assert {parameter.device.type for parameter in opened.parameters()} == {(wanted or torch.device("cpu")).type}
    torch.testing.assert_close(logits(opened), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["minigpt3d.", ""])  # names of today, and of earlier versions
def test_submodels_may_be_on_different_devices(saved, model, tmp_path, prefix):
    """Tested on one device: the language model is loaded from disk, layer by layer."""
    given = {f"{prefix}point_encoder": "cpu", f"{prefix}bridge": "cpu", f"{prefix}language_model": "disk"}
    places = {f"minigpt3d.{name.removeprefix(prefix)}": place for name, place in given.items()}
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(saved, device_map=given, offload_folder=tmp_path)
    assert opened.hf_device_map == places
    assert {parameter.device.type for parameter in opened.language_model.parameters()} == {"meta"}
    torch.testing.assert_close(logits(opened), logits(model))
    assert torch.equal(answers(opened), answers(model))


def test_layers_of_the_language_model_are_never_split(saved):
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(saved)
    assert "NormedPhiDecoderLayer" in opened._no_split_modules


BITS = {
    "8 bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "4 bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
}


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


def test_stored_settings_of_generation_are_kept(parts, settings, tmp_path):
    model = build_from_parts(qformer=None, **parts, **settings)
    model.generation_config.update(max_new_tokens=7, repetition_penalty=1.5)
    model.save_pretrained(tmp_path)
    opened = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (opened.max_new_tokens, opened.repetition_penalty) == (7, 1.5)


@pytest.mark.parametrize("bits", BITS)
def test_quantized_language_model_generates_and_trains(parts, settings, bits, tmp_path):
    torch.manual_seed(0)
    plain = build_from_parts(qformer=None, **parts, **settings)
    torch.manual_seed(0)
    small = build_from_parts(qformer=None, quantization_config=BITS[bits](), **parts, **settings)
    kinds = {type(module).__name__ for module in small.language_model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    assert not {type(module).__name__ for module in small.bridge.modules()} & {"Linear8bitLt", "Linear4bit"}
    # In 4 bits, random weights are so coarse that outputs say nothing; the rounded weights do.
    assert_nearly_equal(logits(small), logits(with_rounded_weights(plain, small)), 0.3 if bits == "8 bit" else 1e-3)
    assert answers(small).shape == (2, 6)
    names = set_stage(small, 2)
    small.train()
    labels = BATCH["input_ids"].masked_fill(BATCH["input_ids"] == POINT_TOKEN, -100)
    small(**BATCH, points=clouds(40, 30), labels=labels).loss.backward()
    gradients = [small.get_parameter(name).grad for name in names]
    assert all(gradient is not None for gradient in gradients)
    # LoRA's A gets no gradient while B is zero.
    assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) / 3
    small.save_pretrained(tmp_path)
    again = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path, quantization_config=BITS[bits]())
    torch.testing.assert_close(logits(again), logits(small.eval()), rtol=1e-3, atol=1e-3)
