"""Adapters that are loaded: their weights stay as they are stored, onto their own base, with what they trained."""

import warnings

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    trainable_module_names,
)
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from tests.common.models import case_of
from tests.common.tuners import answer_of, assert_apart, assert_same, base_of, config_of
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_config
from tests.turns import by_turns

CASE = case_of(ActForPointCloudClassification)


@pytest.fixture
def saved_base(tmp_path):
    base_of(CASE).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def opened(base, dtype=torch.float32):
    return ActForPointCloudClassification.from_pretrained(base, dtype=dtype)


def stored(base, folder, method="LORA", seed=1, **settings):
    """Store an adapter with random weights, head included, and return its model."""
    model = opened(base)
    model = get_peft_model(model, config_of(method, model, **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model


def loaded(base, dtype, folder):
    base = opened(base, dtype)
    base.load_adapter(folder)
    return base


DOORS = {
    "class": lambda base, folder, dtype: ActForPointCloudClassification.from_pretrained(folder, dtype=dtype),
    "auto class": lambda base, folder, dtype: AutoModelForPointCloudClassification.from_pretrained(
        folder, dtype=str(dtype).removeprefix("torch.")
    ),
    "AutoPeftModel": lambda base, folder, dtype: AutoPeftModel.from_pretrained(folder, dtype=dtype),
    "training": lambda base, folder, dtype: AutoPeftModel.from_pretrained(folder, dtype=dtype, is_trainable=True),
    "PeftModel": lambda base, folder, dtype: PeftModel.from_pretrained(opened(base, dtype), folder),
    "low memory": lambda base, folder, dtype: PeftModel.from_pretrained(
        opened(base, dtype), folder, low_cpu_mem_usage=True
    ),
    "load_adapter": lambda base, folder, dtype: loaded(base, dtype, folder),
}


# By turns methods of added layers, and of parameters that the base has already.
@pytest.mark.parametrize(("door", "method"), by_turns(DOORS, ["LORA", "LN_TUNING", "GUIDED_ADAPTER", "BITFIT"]))
def test_the_dtype_that_is_asked_for_is_that_of_the_base(door, method, saved_base, tmp_path):
    full = stored(saved_base, tmp_path / "adapter", method)
    dtype = torch.float16 if door == "AutoPeftModel" else torch.bfloat16
    model = DOORS[door](saved_base, tmp_path / "adapter", dtype)
    inside = [weight for name, weight in model.named_parameters() if ".attention.qkv" in name or ".mlp." in name]
    assert dtype in {weight.dtype for weight in inside or model.parameters()}
    assert_same(answer_of(CASE, model), answer_of(CASE, full), 0.25)
    model.save_pretrained(tmp_path / "again")
    before, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert before.keys() == again.keys()
    for name, weight in before.items():
        assert weight.dtype == again[name].dtype and torch.equal(weight, again[name]), name
    if door == "training":
        model.train()
        CASE.loss_of(model).backward()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert trained and all(weight.dtype == torch.float32 for weight in trained)
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in trained)


def test_load_adapter_of_transformers_compares_the_base(saved_base, tmp_path):
    right = stored(saved_base, tmp_path / "adapter")
    other = opened(saved_base)
    with torch.no_grad():
        next(other.act.parameters()).add_(0.1)
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
        other.load_adapter(tmp_path / "adapter")
    assert {name: weight.shape for name, weight in other.state_dict().items()} == {
        name: weight.shape for name, weight in before.items()
    }
    base = loaded(saved_base, torch.float32, tmp_path / "adapter")
    assert_same(answer_of(CASE, base), answer_of(CASE, right))
    # A second adapter beside it.
    second = stored(saved_base, tmp_path / "second", seed=2)
    base.load_adapter(tmp_path / "second", adapter_name="second")
    base.set_adapter("second")
    assert_same(answer_of(CASE, base), answer_of(CASE, second))
    # Tensors have no record of their base but its name.
    state = load_peft_weights(tmp_path / "adapter", device="cpu")
    for place, count in ((saved_base, 0), (tmp_path / "elsewhere", 1)):
        config = PeftConfig.from_pretrained(tmp_path / "adapter")
        config.base_model_name_or_path = str(place)
        given = opened(saved_base)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            given.load_adapter(peft_config=config, adapter_state_dict=dict(state))
        assert sum("as its base model" in str(warning.message) for warning in told) == count
        assert_same(answer_of(CASE, given), answer_of(CASE, right))


def test_merged_models_have_the_head_of_the_adapter_that_is_merged(saved_base, tmp_path):
    second = stored(saved_base, tmp_path / "second", seed=2)
    model = stored(saved_base, tmp_path / "first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    expected = answer_of(CASE, second)
    assert_apart(answer_of(CASE, model), expected)
    with raises(ValueError, naming="set_adapter"):
        model.merge_adapter(adapter_names=["second"])
    with raises(ValueError, naming="classifier"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both")
    with raises(ValueError, naming="classifier"):
        model.merge_and_unload(adapter_names=["default", "second"])
    assert_same(answer_of(CASE, model.merge_and_unload(adapter_names=["second"])), expected)


def test_an_adapter_with_a_head_is_replaced_in_place(saved_base, tmp_path):
    second = stored(saved_base, tmp_path / "second", seed=2)
    stored(saved_base, tmp_path / "other", lora_alpha=64)
    model = stored(saved_base, tmp_path / "first")
    weights = {name: weight for name, weight in model.named_parameters()}
    with raises(ValueError, naming="lora_alpha"):
        model.load_adapter(tmp_path / "other", "default")
    first = answer_of(CASE, model)
    model.load_adapter(tmp_path / "second", "default")
    assert_same(answer_of(CASE, model), answer_of(CASE, second))
    hotswap_adapter(model, str(tmp_path / "first"), adapter_name="default", torch_device="cpu")
    assert_same(answer_of(CASE, model), first)
    assert all(weight is weights[name] for name, weight in model.named_parameters())


# Of the checkpoint of a language model, whose head and pooling the encoder does without
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this adapter leaves out", "ignore:the encoder came from")
@pytest.mark.parametrize(
    ("checkpoint", "dtype", "is_complete"),
    [
        (*pair, is_complete)
        for is_complete, turn in ((True, 0), (False, 1))
        for pair in by_turns([AutoModel, AutoModelForMaskedLM], [torch.float32, torch.bfloat16][:: 1 - 2 * turn])
    ],
)
def test_an_adapter_is_loaded_again_around_an_encoder_of_a_directory(checkpoint, dtype, is_complete, tmp_path):
    torch.manual_seed(0)
    checkpoint.from_config(tiny_config("bert")).save_pretrained(tmp_path / "encoder")
    settings = {"num_labels": 3, "num_tokens": 16, "tokenizer": "patch", "tokenizer_neighbors": 4}
    base = Any2PointForPointCloudClassification.from_encoder_pretrained(tmp_path / "encoder", dtype=dtype, **settings)
    trained = trainable_module_names(base) if is_complete else ["classifier"]
    config = LoraConfig(target_modules=["query"], modules_to_save=trained, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    points = clouds(2)
    with torch.no_grad():
        expected = model(points=points).logits
        model.save_pretrained(tmp_path / "adapter")
        model.load_adapter(tmp_path / "adapter", "default")
        assert torch.equal(model(points=points).logits, expected)
        again = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "adapter", dtype=dtype)
        # In half precision the head that is opened beside the base computes in its own.
        limit = 0 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(again(points=points).logits.float(), expected.float(), rtol=0, atol=limit)
