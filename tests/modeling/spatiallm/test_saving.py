"""SpatialLM is saved, opened by every door and adapted with PEFT, and reads a scan once for an answer."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from hf_any3d import (
    AutoModelForPointCloudObjectDetection,
    AutoModelForPointCloudTextToText,
    BitFitConfig,
    GuidedAdapterConfig,
    PointGSTConfig,
    SideTuningConfig,
    SpatialLMForConditionalGeneration,
    encoder_linear_pattern,
)
from tests.common.test_quantization import ON_LOADING, rounded_weight, without_compiler  # noqa: F401
from tests.errors import raises
from tests.tiny_spatiallm import fitting_spatiallm, prompts, tiny_processor, tiny_spatiallm
from tests.turns import some

SETTINGS = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def answer_of(model) -> torch.Tensor:
    return model.generate(**prompts(2), **SETTINGS)


@pytest.mark.parametrize("more", ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}))
def test_a_scan_is_encoded_once_for_an_answer(more):
    model, calls = fitting_spatiallm(tiny_processor(num_bins=64, stride=2)), []
    model.point_encoder.register_forward_hook(lambda *_: calls.append(1))
    ids = model.config.point_token_id
    given = prompts(2)
    given["input_ids"] = given["input_ids"].masked_fill(given["input_ids"] == 27, ids)
    made = model.generate(**given, **(SETTINGS | more))
    assert made.shape[1] == given["input_ids"].shape[1] + 6 and len(calls) == 1
    # What is written depends on the scan.
    other = model.generate(**given | {"points": given["points"].flip(0) * 0.3}, **SETTINGS)
    assert more or not torch.equal(other, made)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_the_encoder_stays_in_float32_as_in_the_released_program(dtype, tmp_path):
    tiny_spatiallm().save_pretrained(tmp_path)
    model = SpatialLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    parts = {
        name: {weight.dtype for weight in model.spatiallm.get_submodule(name).parameters()}
        for name in ("point_encoder", "input_projection", "projector", "language_model")
    }
    full, half = {torch.float32}, {dtype}
    assert parts == {"point_encoder": full, "input_projection": full, "projector": half, "language_model": half}
    inputs = prompts(2)
    (own, *_), (expected, *_) = (
        one.get_point_features(inputs["points"], inputs["grid_coord"])
        for one in (model, SpatialLMForConditionalGeneration.from_pretrained(tmp_path))
    )
    torch.testing.assert_close(own.float(), expected, rtol=0.02, atol=0.02)
    assert answer_of(model).shape == answer_of(tiny_spatiallm()).shape
    # A part that is opened as a whole in half precision on purpose computes in it.
    assert {weight.dtype for weight in model.to(dtype).parameters()} == {dtype}
    assert answer_of(model).shape == answer_of(tiny_spatiallm()).shape


BETWEEN = ["input_projection", "projector"]
ON_ENCODER = {
    "guided adapter": lambda model: GuidedAdapterConfig(r=4, init_weights=False, modules_to_save=BETWEEN),
    "BitFit": lambda model: BitFitConfig(modules_to_save=BETWEEN),
    "side tuning": lambda model: SideTuningConfig(r=4, init_weights=False, modules_to_save=BETWEEN),
    "LoRA": lambda model: LoraConfig(
        r=2, target_modules=encoder_linear_pattern(model), init_lora_weights=False, modules_to_save=BETWEEN
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", some(ON_ENCODER, left_out=["BitFit", "side tuning"]))
def test_adapters_of_the_point_encoder_learn_and_open_by_three_doors(method, tmp_path):
    base = tiny_spatiallm()
    base.save_pretrained(tmp_path / "base")
    open_base = SpatialLMForConditionalGeneration.from_pretrained
    torch.manual_seed(0)
    base = open_base(tmp_path / "base")
    model, inputs = get_peft_model(base, ON_ENCODER[method](base)).train(), prompts(2)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    learned = {name: own for name, own in model.named_parameters() if own.requires_grad}
    assert not any("language_model" in name for name in learned)
    assert {part for part in ("point_encoder", *BETWEEN) if any(part in name for name in learned)} == {
        "point_encoder",
        *BETWEEN,
    }
    with torch.no_grad():
        for weight in learned.values():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad.sign()
    model.eval().save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    doors = (
        PeftModel.from_pretrained(open_base(tmp_path / "base"), tmp_path / "adapter"),
        open_base(tmp_path / "adapter"),
        AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "adapter"),
        AutoModelForPointCloudObjectDetection.from_pretrained(tmp_path / "adapter"),
    )
    with torch.no_grad():
        expected = model(**inputs).logits
        for opened in doors:
            torch.testing.assert_close(opened.eval()(**inputs).logits, expected)
        assert not torch.allclose(open_base(tmp_path / "base")(**inputs).logits, expected, atol=1e-3)
    assert torch.equal(answer_of(doors[0]), answer_of(doors[1]))


def test_adapters_that_do_not_fit_are_refused_by_name():
    with raises(ValueError, naming="modules_to_save"):
        get_peft_model(tiny_spatiallm(), GuidedAdapterConfig())
    with raises(ValueError, naming="attention_axis"):
        get_peft_model(tiny_spatiallm(), PointGSTConfig(modules_to_save=BETWEEN))
    with raises(ValueError, naming="task_type"):
        get_peft_model(tiny_spatiallm(), GuidedAdapterConfig(modules_to_save=BETWEEN, task_type="CAUSAL_LM"))
